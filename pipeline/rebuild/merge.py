"""Merge the shards of a job into a new index version and publish it. Idempotent."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.embed.shard_files import ShardFiles, ShardFolder
from pipeline.errors import (
    ImgrecError,
    IndexBroken,
    IndexMissing,
    JobFailed,
    ServerUnavailable,
    StoreRefused,
)
from pipeline.failpoints import failpoint
from pipeline.images.decode import DECODING
from pipeline.index import faiss_index
from pipeline.index.engine import FAISS, Base, Engines, drop_unused, engine_of
from pipeline.index.faiss_engine import has_lists
from pipeline.index.id_map import write_id_map
from pipeline.index.segments import BASE_VECTORS, INDEX_FILES, VECTOR_FILES, base_files
from pipeline.index.versions import IndexRows, Stamp, Version, VersionStore, order_by_hash
from pipeline.rebuild.join import join
from pipeline.settings import Settings
from pipeline.store.job import Job
from pipeline.store.shards import DoneShard

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Merged:
    """The result of a merge: a published version, or shards whose files must be made again."""

    version: str | None = None
    broken: list[int] = field(default_factory=list)


def merge(
    job: Job,
    shards: Iterable[DoneShard],
    settings: Settings,
    versions: VersionStore,
    check: Callable[[], None],
    *,
    engines: Engines,
    later_jobs: Mapping[str, str | None],
    require_fit: Callable[[int], None] = lambda vector_bytes: None,
    files: ShardFiles | None = None,
    seen: Stamp | None = None,
) -> Merged:
    """Publish a job's vectors. The caller holds `versions.lock()`.

    A second run after a crash finds what the first had finished: a version that names this job is
    published as it is.

    Args:
        check: called between steps; raises to stop.
        engines: build the index.
        later_jobs: see `Jobs.created_after`.
        require_fit: called with the bytes of all vectors; raises where memory is too small.
        files: those of the job's shards; None for those in DATA_DIR.
        seen: the pointer's stamp before `later_jobs` was read, see `VersionStore.point_to`.

    Raises:
        ObjectConflict: another process has published since `seen`; run this again.
        JobFailed: no good image, or a later job has published already.
        IndexBroken: the base version or the new index contradict themselves.
    """
    finished = _finished(job, versions, later_jobs, seen)
    if finished is not None:
        return Merged(finished)
    shards = list(shards)
    unchanged = _unchanged(job, shards, versions, engines)
    if unchanged is not None:
        return Merged(unchanged)
    workspace = versions.workspace()
    drop_unused(engines, versions)
    try:
        contents, broken = join(
            job,
            shards,
            files or ShardFolder(settings.jobs_dir),
            lambda: _base(job, versions),
            workspace,
            check,
            lambda base, folder: _share(base, folder, versions, engines),
        )
        if contents is None:
            return Merged(broken=broken)
        failpoint("merge.after_read")
        check()
        same = None if job.full else _same(job, contents, versions, engines)
        if same is not None:
            return Merged(same)
        check()
        if engines.current.builds_in_memory:
            require_fit(contents.vectors.nbytes)
        index = engines.current.build(
            contents.vectors, workspace, check, _like(contents, job, versions)
        )
        _write(contents, workspace)
        check()
        failpoint("merge.before_commit")
        facts = {**_facts(job, contents, versions), "index": index}
        version = versions.commit(
            workspace, facts, check, _shared_digests(job, workspace, versions)
        )
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    failpoint("merge.before_pointer")
    versions.point_to(version, seen)
    failpoint("merge.after_pointer")
    return Merged(version.name)


def _finished(
    job: Job, versions: VersionStore, later_jobs: Mapping[str, str | None], seen: Stamp | None
) -> str | None:
    """Publish what an earlier run has finished; return its name, or None.

    Raises:
        JobFailed: a later job has published already.
    """
    own = None
    # One that found nothing to change is named by no version, only by the job table.
    later = next((each for each in later_jobs.items() if each[1]), None)
    for version in versions.versions():
        if version.manifest["job_id"] == job.id:
            own = version
        elif later is None and version.manifest["job_id"] in later_jobs:
            later = version.manifest["job_id"], version.name
    if own is not None:
        if later is None:
            versions.point_to(own, seen)
        return own.name
    if later is not None:
        raise JobFailed(
            f"A later job, {later[0]}, has already published {later[1]}; this "
            "older one would replace it. Run the rebuild again to publish its images."
        )
    return None


def _facts(job: Job, contents: IndexRows, versions: VersionStore) -> dict[str, Any]:
    """Return what the manifest says, but for the index."""
    return {
        "job_id": job.id,
        "job_created_at": job.created_at,
        "changes_seen": job.changes_seen,
        "created_at": time.time(),
        "root": job.root,
        "images": len(contents.paths),
        "dimension": int(contents.vectors.shape[1]),
        "random_pairs": faiss_index.random_pairs(contents.vectors),
        "decoding": _decoding(job, versions),
        "fingerprint": {"id": job.fingerprint, "summary": job.fingerprint_summary},
    }


def _decoding(job: Job, versions: VersionStore) -> int:
    """Return the oldest decoding that a vector of the job may come from."""
    return min(DECODING, versions.open(job.base_version).decoding) if job.base_version else DECODING


def _base(job: Job, versions: VersionStore) -> Version:
    """Open the version whose vectors a job reuses.

    Raises:
        IndexBroken: it is damaged, or the job names none.
    """
    if not job.base_version:
        raise IndexBroken(f"Job {job.id} reuses rows, but names no base version.")
    base = versions.open(job.base_version)
    try:
        versions.verify(base, VECTOR_FILES)  # `open` has verified what names the rows
    except IndexBroken as error:
        raise IndexBroken(
            f"The vectors of {base.name} changed on disk and cannot be reused: run 'imgrec "
            "enqueue-rebuild --full'."
        ) from error
    return base


def _share(base: Version, workspace: Path, versions: VersionStore, engines: Engines) -> bool:
    """Give the base's large files second names in the workspace, if the next version may use them.

    False where an engine or a store has none to share, the disk has no hard links, or the base's
    index is damaged.
    """
    if not (versions.shares_files and engines.current.name == FAISS and has_lists(base)):
        return False
    try:
        versions.verify(base, INDEX_FILES)
        for name, of_base in base_files(base.manifest["files"]).items():
            os.link(base.file(of_base), workspace / name)
    except IndexBroken as error:
        log.warning("The index of %s is not reused: %s", base.name, error)
    except OSError as error:
        log.info("All vectors are written anew: no hard link of %s (%s).", base.name, error)
    else:
        return True
    for name in base_files(base.manifest["files"]):
        (workspace / name).unlink(missing_ok=True)
    return False


def _shared_digests(job: Job, workspace: Path, versions: VersionStore) -> dict[str, str]:
    """Return the digests of the base's files that the next version uses: `_share` verified them."""
    if job.base_version is None or not (workspace / BASE_VECTORS).exists():
        return {}
    files = versions.open(job.base_version).manifest["files"]
    return {name: files[of_base]["sha256"] for name, of_base in base_files(files).items()}


def _like(contents: IndexRows, job: Job, versions: VersionStore) -> Base | None:
    """Return the base version of a job that reuses more than half of its rows from it."""
    share = float(np.mean(contents.base_rows >= 0))
    if job.base_version is None or share <= 0.5:
        return None
    return Base(versions.open(job.base_version), contents.base_rows)


def _unchanged(
    job: Job, shards: Sequence[DoneShard], versions: VersionStore, engines: Engines
) -> str | None:
    """Return the published version's name if the plan is to reuse all of its rows, and no others.

    So a rebuild of an unchanged folder ends without a copy of the vectors.
    """
    rows = [row for shard in shards for row in shard.rows]
    if job.full or any(shard.images for shard in shards) or not rows:
        return None
    try:
        current = versions.current()
        if (
            current.name == job.base_version
            and current.fingerprint == job.fingerprint
            and engine_of(current.manifest) == engines.current.name
            and np.array_equal(np.sort(np.array(rows)), np.arange(current.manifest["images"]))
        ):
            versions.verify(current)
            engines.verify(current)
            return current.name
    except (ServerUnavailable, StoreRefused):
        raise
    except ImgrecError as error:
        log.warning("A damaged published index is replaced: %s", error)
    return None


def _same(job: Job, contents: IndexRows, versions: VersionStore, engines: Engines) -> str | None:
    """Return the published version's name if it is undamaged and holds exactly these rows.

    One of another folder is another version: images are read where the published one says.
    """
    try:
        current = versions.current()
        if (
            current.fingerprint == job.fingerprint
            and current.manifest["root"] == job.root
            and engine_of(current.manifest) == engines.current.name
            and np.array_equal(current.files, contents.files)  # first what is compared soonest
            and np.array_equal(current.sha256, contents.sha256)
            and current.paths == contents.paths
        ):
            versions.verify(current)
            engines.verify(current)
            return current.name
    except IndexMissing:
        return None
    except (ServerUnavailable, StoreRefused):
        raise
    except ImgrecError as error:
        log.warning("A damaged published index is replaced: %s", error)
    return None


def _write(contents: IndexRows, workspace: Path) -> None:
    write_id_map(workspace, contents.paths)
    np.save(workspace / "sha256.npy", contents.sha256)
    np.save(workspace / "by_hash.npy", order_by_hash(contents.sha256))
    np.save(workspace / "files.npy", contents.files)
