"""Move the published version to another engine, without embedding anything."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.engines import patched
from pipeline.failpoints import failpoint
from pipeline.images.decode import sha256
from pipeline.index.engine import Engines, Migration, drop_unused, engine_of
from pipeline.index.segments import INDEX_FILES, SEGMENT_FILES, VECTORS, as_segmented
from pipeline.index.versions import MIGRATED_FROM, Version, VersionStore


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
    if engine_of(old.manifest) == to:
        return old, old
    versions.verify(old)
    migration = Migration(_key(old), versions.versions(), report)
    workspace = versions.workspace()
    try:
        for name in old.manifest["files"]:
            if name not in (*INDEX_FILES, *SEGMENT_FILES, patched.FILE):
                _link(old.file(name), workspace / name)
        vectors = old.vectors
        if segmented := as_segmented(vectors):
            vectors = segmented.write(workspace / VECTORS, check)
        index = engine.build(vectors, workspace, check, migration=migration)
        failpoint("migrate.before_commit")
        kept = {
            name: value for name, value in old.manifest.items() if name not in ("seal", "build")
        }
        facts = {"index": index, "created_at": time.time(), MIGRATED_FROM: old.name}
        new = versions.commit(workspace, {**kept, **facts}, check)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    versions.point_to(new, seen)
    drop_unused(engines, versions)  # not before: an unfinished move is among it
    return old, new


def _key(version: Version) -> str:
    """Return what tells a version's vectors from others: the digest of their file or files."""
    files = version.manifest["files"]
    names = [name for name in (VECTORS, *SEGMENT_FILES) if name in files]
    digests = [str(files[name]["sha256"]) for name in names]
    return digests[0] if len(digests) == 1 else sha256(" ".join(digests).encode())


def _link(source: Path, target: Path) -> None:
    """Give a file that never changes a second name; copy it where the disk has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
