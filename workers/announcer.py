"""Writes every few seconds into Redis what this worker works with."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Sequence

import redis

from pipeline.store.identity import PARTS, Identifier
from workers.agreement import Mismatch
from workers.registry import EVERY_S, STALE_S, WorkerRegistry

log = logging.getLogger(__name__)


class Announcer:
    """Announces a worker every few seconds, from a thread of its own, until `stopping` is set."""

    def __init__(
        self,
        registry: WorkerRegistry,
        worker: str,
        queues: Sequence[str],
        identifier: Identifier,
        stopping: threading.Event,
    ) -> None:
        self._registry = registry
        self._worker, self._queues = worker, tuple(queues)
        self._identifier = identifier
        self._stopping = stopping
        self._differs_since: float | None = None

    def run(self) -> None:
        """Announce until the end; a Redis or a database that is away is waited for."""
        while not self._stopping.is_set():
            try:
                self._announce()
            except redis.RedisError:
                pass  # Celery's own connection says so
            except Exception:
                log.exception("This worker could not say what it works with; trying again.")
            self._stopping.wait(EVERY_S)
        with contextlib.suppress(redis.RedisError):  # then what was said goes stale
            self._registry.leave(self._worker)

    def _announce(self) -> None:
        identity = self._identifier.read(create=True)
        self._registry.announce(self._worker, self._queues, identity)
        others = [each for each in self._registry.present() if each.worker != self._worker]
        me = f"this worker, {self._worker}"
        mismatch = Mismatch.find(identity, others, self._queues, PARTS, me)
        if mismatch is None:
            self._differs_since = None
        elif self._differs_since is None:
            self._differs_since = time.monotonic()  # those of before may just have been stopped
        elif 0 < self._differs_since < time.monotonic() - STALE_S:
            self._differs_since = 0.0  # told once
            log.error("%s", mismatch)
