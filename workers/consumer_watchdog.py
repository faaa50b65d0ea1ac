"""Whether Celery's own loop, which takes the messages, still turns."""

from __future__ import annotations

import threading
import time
from contextlib import closing, suppress

from redis import RedisError

from pipeline.failpoints import failpoint
from pipeline.settings import Settings
from pipeline.store.redis_client import connect
from workers.watchdog import Watchdog

# A read from a Redis that vanished ends after `socket_timeout`, 30 s; two may follow each other.
LOOP_S = 90.0
# Between two tries to connect Celery waits up to 30 s.
DEAF_S = 90.0


class ConsumerWatchdog:
    """Whether the consumer has a connection, since when, and whether its loop turns meanwhile."""

    def __init__(self, settings: Settings, watchdog: Watchdog) -> None:
        self.changed = threading.Event()  # for who waits for the connection to come or go
        self.connected = False
        self._redis_url = settings.redis_url
        self._loop = watchdog.deadline(
            "the loop that takes messages", min(LOOP_S, settings.hung_after_s)
        )
        self._since = time.monotonic()

    def connect(self) -> None:
        """Note a connection; from now on the loop must turn."""
        self._loop.begin()
        self._note(connected=True)

    def turn(self) -> None:
        """Note a turn of the loop."""
        failpoint("loop")
        self._loop.touch()

    def disconnect(self) -> None:
        """Note the connection's loss; without one there is no turn to expect."""
        self._note(connected=False)
        self._loop.end()

    def problem(self) -> str:
        """Say that a Redis that answers others is not connected to; one that is away is none."""
        lost_s = time.monotonic() - self._since
        if self.connected or lost_s < DEAF_S or not _answers(self._redis_url):
            return ""
        return f"Redis answers, but no connection has come about for {lost_s:.0f} s"

    def _note(self, *, connected: bool) -> None:
        self.connected, self._since = connected, time.monotonic()
        self.changed.set()


def _answers(redis_url: str) -> bool:
    with suppress(RedisError, OSError), closing(connect(redis_url, 3)) as client:
        return bool(client.ping())
    return False
