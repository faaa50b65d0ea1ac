"""Write the log of queries beside the queries, never in their way."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

from pipeline.errors import ServerUnavailable
from pipeline.failpoints import failpoint
from pipeline.search.relevance_feedback import LoggedQuery
from pipeline.store.feedback import FeedbackLog
from workers.watchdog import Watchdog

log = logging.getLogger(__name__)

WRITE_EVERY_S = 0.2
RETRY_S = 5.0
FORGET_EVERY_S = 3600.0
MOST = 10_000  # queries held while the database is away; then the oldest are lost


class QueryLog:
    """Hands answered queries to the database, many at a time, from a thread of its own.

    A process that is killed loses the queries of the last moment; feedback on them is refused.
    """

    def __init__(
        self, feedback: FeedbackLog, days: int, watchdog: Watchdog, hung_after_s: float
    ) -> None:
        self._feedback = feedback
        self._days = days
        self._watchdog = watchdog
        self._work = watchdog.deadline("the log of queries", hung_after_s)
        self._waiting: deque[LoggedQuery] = deque(maxlen=MOST)
        self._lock = threading.Lock()
        self._wanted = threading.Event()
        self._forget_at = 0.0
        self._thread: threading.Thread | None = None

    def put(self, query: LoggedQuery) -> None:
        """Take a query; it is in the database a moment later."""
        if not self._days:
            return
        self._waiting.append(query)
        self._wanted.set()
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="query-log", daemon=True)
                    self._thread.start()
                    self._watchdog.register_thread(self._thread)

    def flush(self) -> None:
        """Write what waits, now.

        Raises:
            ServerUnavailable: the database does not answer; nothing of it is lost.
        """
        with self._lock:
            batch = []
            while self._waiting:
                batch.append(self._waiting.popleft())
            if not batch:
                return
            try:
                self._feedback.put_queries(batch)
            except ServerUnavailable:
                room = MOST - len(self._waiting)  # beyond it, the newest would be dropped
                self._waiting.extendleft(reversed(batch[max(0, len(batch) - room) :]))
                raise
            if time.monotonic() >= self._forget_at:
                self._forget_at = time.monotonic() + FORGET_EVERY_S
                self._feedback.forget_queries(self._days)

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            time.sleep(WRITE_EVERY_S)
            failpoint("query_log.write")
            try:
                with self._work:
                    self.flush()
            except ServerUnavailable as error:
                log.warning("The log of queries is unavailable, trying again: %s", error)
                self._wanted.set()
                time.sleep(RETRY_S)
            except Exception:
                # What cannot be written once cannot be written later: it must not block the rest.
                log.exception("Some queries could not be logged; the log continues.")
