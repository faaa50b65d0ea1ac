"""Whether processes at one Redis work with the same places; commands ask before they send.

Celery delivers a task to whoever listens on its queue. A worker with another database does not find
the job there, one with another data folder answers from another index, and neither is an error of
Celery's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import SettingsDiffer
from pipeline.settings import Settings
from pipeline.storage.address import is_address
from pipeline.store.identity import SETTING_OF, STORE_SETTING, Identity
from workers.registry import EVERY_S, STALE_S, Announcement, WorkerRegistry, serving
from workers.routes import CLASSIFY_IMAGE, FAILURE_IMAGE

LOOK_S = 0.3
ME = "this command"


@dataclass(frozen=True)
class Mismatch:
    """Processes at one Redis that do not work with the same places.

    `sides` names, for each part, the processes by the place that they work with.
    """

    differing: list[Announcement]
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
    ) -> Mismatch | None:
        """Compare this process with the workers on some queues, and those with each other."""
        workers = serving(present, queues)
        processes = [(me, mine), *((f"worker {w.worker}", w.identity) for w in workers)]
        sides, differing = {}, set[str]()
        for part in parts:
            groups = _groups(processes, part)
            if len(groups) > 1:
                groups.sort(key=lambda group: (me, mine) not in group)  # mine first
                sides[part] = groups
                differing |= {name for group in groups[1:] for name, _ in group}
        if not sides:
            return None
        return cls([w for w in workers if f"worker {w.worker}" in differing], len(workers), sides)

    @property
    def all_differ(self) -> bool:
        """Whether no worker works with what this process does."""
        return len(self.differing) == self.workers

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


def require_agreement(
    registry: WorkerRegistry,
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
        present: what the workers have said, see `WorkerRegistry.present`.
        me: what this process is called in the sentence.

    Raises:
        SettingsDiffer: with the settings, their values on each side, and what to do.
        ServerUnavailable: Redis does not answer.
    """
    said = {each.worker: each.at for each in present}
    deadline = time.monotonic() + STALE_S + EVERY_S
    while mismatch := Mismatch.find(mine, present, queues, parts, me):
        silent = [each for each in mismatch.differing if each.at == said.get(each.worker)]
        if not silent or time.monotonic() > deadline:
            raise SettingsDiffer(str(mismatch))
        time.sleep(LOOK_S)
        present = registry.present()


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
