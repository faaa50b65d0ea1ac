"""Whether Celery's own loop, which takes the messages, still turns."""

from __future__ import annotations

import threading
import time
from typing import Any

from celery import bootsteps
from redis import RedisError

from pipeline.failpoints import failpoint
from pipeline.settings import load_settings
from pipeline.store.redis_client import connect
from workers.watchdog import Deadline

TURN_S = 1.0
# A read from a Redis that vanished ends after `socket_timeout`, 30 s; two may follow each other.
LOOP_S = 90.0
# Between two tries to connect Celery waits up to 30 s.
DEAF_S = 90.0


class Pulse(bootsteps.StartStopStep):
    """Notes each turn of the loop; while there is no connection, there is none to expect."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        _loop.limit_s = min(LOOP_S, load_settings().hung_after_s)
        _loop.begin()
        self._timer = consumer.timer.call_repeatedly(TURN_S, _turn)
        connection.set()

    def stop(self, consumer: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        connection.disconnect()
        _loop.end()

    shutdown = stop


class Connection:
    """Whether there is a connection, since when, and who waits for a change."""

    def __init__(self) -> None:
        self.changed = threading.Event()
        self.connected = False
        self._since = time.monotonic()

    def set(self) -> None:
        self.connected, self._since = True, time.monotonic()
        self.changed.set()

    def disconnect(self) -> None:
        self.connected, self._since = False, time.monotonic()
        self.changed.set()

    def problem(self) -> str:
        """Say that a Redis that answers others is not connected to; one that is away is none."""
        lost_s = time.monotonic() - self._since
        if self.connected or lost_s < DEAF_S or not _redis_answers():
            return ""
        return f"Redis answers, but no connection has come about for {lost_s:.0f} s"


connection = Connection()
_loop = Deadline("the loop that takes messages", LOOP_S)


def _turn() -> None:
    failpoint("loop")
    _loop.touch()


def _redis_answers() -> bool:
    client = connect(load_settings().redis_url, 3)
    try:
        return bool(client.ping())
    except (RedisError, OSError):
        return False
    finally:
        client.close()
