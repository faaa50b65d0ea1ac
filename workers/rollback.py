"""Publish an earlier index version again."""

from __future__ import annotations

from pipeline.index.versions import Version
from workers.resources import Resources


def roll_back(resources: Resources, name: str | None) -> tuple[str | None, Version, int]:
    """Publish `name`, or the version before the current one, as its rebuild made it.

    Returns the old version's name, the new version, and how many changes of `imgrec add` and
    `imgrec remove` were undone: all since that rebuild was planned.

    Raises:
        IndexMissing, Conflict, IndexBroken: see `VersionStore.rollback`.
    """
    old, new = resources.versions.rollback(name, resources.engines.verify)
    return old, new, resources.live_changes.undo(new)
