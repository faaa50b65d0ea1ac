"""Keep a lease in the ledger alive while the work moves, and tell the work when to stop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType

from pipeline.errors import ImgrecError
from workers.watchdog import Watchdog

log = logging.getLogger(__name__)

BEATS_PER_LEASE = 6
BEAT_S = 1.0  # at most: the beat also carries the progress that people watch


class Stopped(Exception):
    """The process was asked to end; the work goes back to the queue."""


class LeaseLost(Exception):
    """The job has ended or another worker has the work; what was done here is not needed."""


class Lease:
    """A thread that calls `beat` several times a lease, as long as the work moves on."""

    def __init__(
        self,
        beat: Callable[[int], bool],
        lease_s: float,
        hung_after_s: float,
        what: str = "a task",
        *,
        stopping: threading.Event,
        watchdog: Watchdog,
    ) -> None:
        self._beat = beat
        self._pause_s = min(BEAT_S, lease_s / BEATS_PER_LEASE)
        self._hung_after_s = hung_after_s
        self._progress = 0
        self._work = watchdog.deadline(what, hung_after_s)
        self._stopping = stopping
        self._lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self._work.begin()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._work.end()

    def check(self, progress: int = 0) -> None:
        """Note progress; end the work where it must end.

        Raises:
            Stopped: the process was asked to end. LeaseLost: the job or the claim is gone.
        """
        if progress != self._progress:
            self._progress = progress
            self._work.touch()
        if self._lost:
            raise LeaseLost
        if self._stopping.is_set():
            raise Stopped

    def _run(self) -> None:
        while not self._ended.wait(self._pause_s):
            if self._work.idle_s > self._hung_after_s:
                # A hung worker must lose its lease although this thread still lives.
                log.error("No progress for %.0f s: giving the lease up.", self._hung_after_s)
                self._lost = True
                return
            try:
                if not self._beat(self._progress):
                    self._lost = True
                    return
            except ImgrecError as error:  # a short outage of the database; the lease may outlive it
                log.warning("The lease could not be extended: %s", error)
            except Exception:
                log.exception("The lease could not be extended; trying on.")
