"""Workers say over Redis what they work with; commands compare before they send anything.

Celery delivers a task to whoever listens on its queue. A worker with another database does not find
the job there, one with another data folder answers from another index, and neither is an error of
Celery's. So each worker writes its identity into one hash in Redis every few seconds, by Redis's
clock.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import redis

from pipeline.errors import SettingsDiffer
from pipeline.settings import Settings
from pipeline.storage.address import is_address
from pipeline.store.identity import PARTS, SETTING_OF, STORE_SETTING, Identifier, Identity
from pipeline.store.redis_client import PREFIX, connect, server_time, trouble
from workers.routes import CLASSIFY_IMAGE, FAILURE_IMAGE

log = logging.getLogger(__name__)

WORKERS = f"{PREFIX}workers"
UNKNOWN_JOB = f"{PREFIX}unknown-job:"
EVERY_S = 3.0
STALE_S = 15.0  # a worker that was silent for so long has ended, or hangs
FORGET_S = 86_400.0
REPORT_S = 60
TIMEOUT_S = 3.0
LOOK_S = 0.3
ME = "this command"


@dataclass(frozen=True)
class Announcement:
    """What a worker has said; `at` in seconds by Redis's clock."""

    worker: str
    queues: tuple[str, ...]
    identity: Identity
    at: float


class RollCall:
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
        try:
            with closing(connect(self._redis_url, TIMEOUT_S)) as client:
                pipe = client.pipeline(transaction=False)
                question(pipe)
                return answer(pipe.execute(), limit_s)
        except redis.RedisError as error:
            raise trouble(self._redis_url, error) from error

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
        try:
            with closing(connect(self._redis_url, TIMEOUT_S)) as client:
                sentence: Any = client.get(f"{UNKNOWN_JOB}{job_id}")
        except redis.RedisError as error:
            raise trouble(self._redis_url, error) from error
        return None if sentence is None else sentence.decode(errors="replace")


def question(pipe: Any) -> None:
    """Ask for the announcements, as a part of a pipeline that has other commands, too."""
    pipe.time()
    pipe.hgetall(WORKERS)


def answer(results: Sequence[Any], limit_s: float = STALE_S) -> list[Announcement]:
    """Read the answers to `question`."""
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


def require_agreement(
    roll_call: RollCall,
    mine: Identity,
    queues: Sequence[str],
    parts: Sequence[str],
    present: list[Announcement],
    me: str = ME,
) -> None:
    """Refuse to send work that would reach a worker with another database or folder.

    A worker that differs is given the time to speak once more: it may have ended since, or the
    folder may have got its id a moment ago.

    Args:
        present: what the workers have said, see `RollCall.present`.
        me: what this process is called in the sentence.

    Raises:
        SettingsDiffer: with the settings, their values on each side, and what to do.
        ServerUnavailable: Redis does not answer.
    """
    said = {each.worker: each.at for each in present}
    deadline = time.monotonic() + STALE_S + EVERY_S
    while dispute := Dispute.find(mine, present, queues, parts, me):
        silent = [each for each in dispute.dissenters if each.at == said.get(each.worker)]
        if not silent or time.monotonic() > deadline:
            raise SettingsDiffer(str(dispute))
        time.sleep(LOOK_S)
        present = roll_call.present()


def parts_of_query(task: str, args: Sequence[Any], settings: Settings) -> list[str]:
    """Return what a query worker must share with who asks, for the answer to be the expected one.

    A question may come from a host that has neither an index nor heads. One that has them expects
    an answer from them.
    """
    if task == FAILURE_IMAGE:
        return ["database"]
    if task == CLASSIFY_IMAGE:
        return ["models"] if args[1:] and has_heads(settings) else []
    has_index = settings.artifacts_url or (settings.index_dir / "CURRENT").is_file()
    return ["data"] if has_index else []


def has_heads(settings: Settings) -> bool:
    """Tell whether heads were trained here, or may be in the store that all hosts share."""
    if settings.artifacts_url:
        return True
    return next(settings.models_dir.glob("*/*/model.pt"), None) is not None


def serving(present: Sequence[Announcement], queues: Sequence[str]) -> list[Announcement]:
    """Return the workers that listen on one of the queues."""
    return [each for each in present if set(each.queues) & set(queues)]


@dataclass(frozen=True)
class Dispute:
    """Processes at one Redis that do not work with the same places.

    `sides` names, for each part, the processes by the place that they work with.
    """

    dissenters: list[Announcement]
    workers: int
    sides: dict[str, list[list[tuple[str, Identity]]]]

    @classmethod
    def find(
        cls,
        mine: Identity,
        present: Sequence[Announcement],
        queues: Sequence[str],
        parts: Sequence[str],
        me: str = ME,
    ) -> Dispute | None:
        """Compare this process with the workers on some queues, and those with each other."""
        workers = serving(present, queues)
        processes = [(me, mine), *((f"worker {w.worker}", w.identity) for w in workers)]
        sides, dissenters = {}, set[str]()
        for part in parts:
            groups = _groups(processes, part)
            if len(groups) > 1:
                groups.sort(key=lambda group: (me, mine) not in group)  # mine first
                sides[part] = groups
                dissenters |= {name for group in groups[1:] for name, _ in group}
        if not sides:
            return None
        return cls([w for w in workers if f"worker {w.worker}" in dissenters], len(workers), sides)

    @property
    def unanimous(self) -> bool:
        """Whether no worker works with what this process does."""
        return len(self.dissenters) == self.workers

    def __str__(self) -> str:
        settings = "; ".join(
            f"{_setting(groups, part)} is {' but '.join(_side(group, part) for group in groups)}"
            for part, groups in self.sides.items()
        )
        return (
            f"Not every process at this Redis works with the same data: {settings}. Set the same "
            "values for all of them, as absolute paths, or run all in one folder. For separate "
            "data, use another REDIS_URL, e.g. with another number after its last '/'."
        )


def _groups(processes: list[tuple[str, Identity]], part: str) -> list[list[tuple[str, Identity]]]:
    """Put processes together that do not certainly differ; those first that have an id."""
    groups: list[list[tuple[str, Identity]]] = []
    for each in sorted(processes, key=lambda process: not getattr(process[1], part).id):
        for group in groups:
            if not group[0][1].differs(each[1], part):
                group.append(each)
                break
        else:
            groups.append([each])
    return groups


def _setting(groups: list[list[tuple[str, Identity]]], part: str) -> str:
    """Name the setting that says where a part is, or both, where some have a store instead."""
    places = [is_address(getattr(group[0][1], part).where) for group in groups]
    if part == "database" or not any(places):
        return SETTING_OF[part]
    return STORE_SETTING if all(places) else f"{STORE_SETTING} or {SETTING_OF[part]}"


def _side(group: list[tuple[str, Identity]], part: str) -> str:
    identity = group[0][1]
    place = getattr(identity, part)
    about = f"{place.where} on {identity.host}"
    if place.problem:
        about += f" ({place.problem})"
    elif place.id:
        about += f" (id {place.id[:8]})"
    return f"{about} for {', '.join(name for name, _ in group)}"


class Announcer:
    """Announces a worker every few seconds, from a thread of its own, until `stopping` is set."""

    def __init__(
        self,
        roll_call: RollCall,
        worker: str,
        queues: Sequence[str],
        identifier: Identifier,
        stopping: threading.Event,
    ) -> None:
        self._roll_call = roll_call
        self._worker, self._queues = worker, tuple(queues)
        self._identifier = identifier
        self._stopping = stopping
        self._dispute_since: float | None = None

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
            self._roll_call.leave(self._worker)

    def _announce(self) -> None:
        identity = self._identifier.read(create=True)
        self._roll_call.announce(self._worker, self._queues, identity)
        others = [each for each in self._roll_call.present() if each.worker != self._worker]
        me = f"this worker, {self._worker}"
        dispute = Dispute.find(identity, others, self._queues, PARTS, me)
        if dispute is None:
            self._dispute_since = None
        elif self._dispute_since is None:
            self._dispute_since = time.monotonic()  # those of before may just have been stopped
        elif 0 < self._dispute_since < time.monotonic() - STALE_S:
            self._dispute_since = 0.0  # told once
            log.error("%s", dispute)
