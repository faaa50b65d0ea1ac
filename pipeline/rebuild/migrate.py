"""Move the published version to another engine, without embedding anything."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.engines import patched
from pipeline.failpoints import failpoint
from pipeline.index.engine import Engines, Migration, drop_unused, engine_of
from pipeline.index.faiss_engine import FILE
from pipeline.index.versions import Version, VersionStore


def migrate(
    versions: VersionStore,
    engines: Engines,
    to: str,
    check: Callable[[], None] = lambda: None,
    report: Callable[[str, int, int], None] = lambda step, done, total: None,
) -> tuple[Version, Version]:
    """Publish the rows of the published version as a new one that another engine searches.

    Returns the old and the new version; they are the same where the engine is. The caller holds
    `versions.lock()`. Killed on the way, it leaves the old version published; run it again, and it
    goes on: rows that a server has are not copied again, and a finished graph is not built again.

    Args:
        to: the name of the engine.
        check: called between steps; raises to stop.
        report: see `Migration`.

    Raises:
        IndexMissing: nothing was published. SetupError: the settings name no such engine.
        IndexBroken: the version is damaged. ObjectConflict: another host has published meanwhile.
    """
    engine = engines.named(to)
    seen = versions.pointer_stamp()
    old = versions.current()
    if engine_of(old) == to:
        return old, old
    versions.verify(old)
    key = str(old.manifest["files"]["vectors.npy"]["sha256"])
    migration = Migration(key, versions.versions(), report)
    workspace = versions.workspace()
    try:
        for name in old.manifest["files"]:
            if name not in (FILE, patched.FILE):
                _link(old.file(name), workspace / name)
        index = engine.build(old.vectors, workspace, check, migration=migration)
        failpoint("migrate.before_commit")
        kept = {
            name: value for name, value in old.manifest.items() if name not in ("seal", "build")
        }
        new = versions.commit(workspace, {**kept, "index": index, "created_at": time.time()}, check)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    versions.point_to(new, seen)
    drop_unused(engines, versions)  # not before: an unfinished move is among it
    return old, new


def _link(source: Path, target: Path) -> None:
    """Give a file that never changes a second name; copy it where the disk has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
