"""Which workers are there and what they work with, as they write it into Redis.

Each writes its queues and its identity into one hash every few seconds, by Redis's clock.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from pipeline.store.identity import Identity
from pipeline.store.redis_client import PREFIX, connect, explained, server_time

WORKERS = f"{PREFIX}workers"
UNKNOWN_JOB = f"{PREFIX}unknown-job:"
EVERY_S = 3.0
STALE_S = 15.0  # a worker that was silent for so long has ended, or hangs
FORGET_S = 86_400.0
REPORT_S = 60
TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Announcement:
    """What a worker has said; `at` in seconds by Redis's clock."""

    worker: str
    queues: tuple[str, ...]
    identity: Identity
    at: float


class WorkerRegistry:
    """The workers at one Redis, and what they have said."""

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url

    def announce(self, worker: str, queues: Sequence[str], identity: Identity) -> None:
        """Say what a worker works with.

        Raises:
            redis.RedisError: Redis does not take it.
        """
        with closing(connect(self._redis_url, TIMEOUT_S)) as client:
            value = {"queues": list(queues), "at": server_time(client), **identity.to_json()}
            client.hset(WORKERS, worker, json.dumps(value))

    def leave(self, worker: str) -> None:
        """Take back what a worker has said: it ends.

        Raises:
            redis.RedisError: Redis does not take it.
        """
        with closing(connect(self._redis_url, TIMEOUT_S)) as client:
            client.hdel(WORKERS, worker)
            now = server_time(client)
            announced: Any = client.hgetall(WORKERS)
            old = [each.worker for each in read(announced, now, FORGET_S, older=True)]
            if old:
                client.hdel(WORKERS, *old)

    def present(self, limit_s: float = STALE_S) -> list[Announcement]:
        """Return what the workers have said that have spoken within `limit_s`, by name.

        Raises:
            ServerUnavailable: Redis does not answer.
        """
        with explained(self._redis_url), closing(connect(self._redis_url, TIMEOUT_S)) as client:
            pipe = client.pipeline(transaction=False)
            queue_read(pipe)
            return parse_read(pipe.execute(), limit_s)

    def report_unknown_job(self, job_id: str, sentence: str) -> None:
        """Tell whoever waits for a job that a worker does not find it.

        Raises:
            redis.RedisError: Redis does not take it.
        """
        with closing(connect(self._redis_url, TIMEOUT_S)) as client:
            client.set(f"{UNKNOWN_JOB}{job_id}", sentence, ex=REPORT_S)

    def unknown_job(self, job_id: str) -> str | None:
        """Return what a worker has said that did not find a job.

        Raises:
            ServerUnavailable: Redis does not answer.
        """
        with explained(self._redis_url), closing(connect(self._redis_url, TIMEOUT_S)) as client:
            sentence: Any = client.get(f"{UNKNOWN_JOB}{job_id}")
        return None if sentence is None else sentence.decode(errors="replace")


def queue_read(pipe: Any) -> None:
    """Ask for the announcements, as a part of a pipeline that has other commands, too."""
    pipe.time()
    pipe.hgetall(WORKERS)


def parse_read(results: Sequence[Any], limit_s: float = STALE_S) -> list[Announcement]:
    """Read the answers to `queue_read`."""
    (seconds, micros), announced = results[:2]
    return read(announced, seconds + micros / 1e6, limit_s)


def read(
    announced: dict[bytes, bytes], now: float, limit_s: float, *, older: bool = False
) -> list[Announcement]:
    """Return the announcements of the last `limit_s`, or those before; what is no such is left."""
    announcements = []
    for name, value in sorted(announced.items()):
        try:
            facts = json.loads(value)
            each = Announcement(
                name.decode(),
                tuple(map(str, facts["queues"])),
                Identity.from_json(facts),
                float(facts["at"]),
            )
        except (ValueError, TypeError, KeyError):
            continue  # anybody who reaches Redis may have written it
        if (now - each.at > limit_s) == older:
            announcements.append(each)
    return announcements


def serving(present: Sequence[Announcement], queues: Sequence[str]) -> list[Announcement]:
    """Return the workers that listen on one of the queues."""
    return [each for each in present if set(each.queues) & set(queues)]
