"""Join the shards of a job into the next index version and publish it, at least once, once."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.atomic_files import file_sha256
from pipeline.embed.shards import read_shard
from pipeline.errors import ImgrecError, IndexBroken, IndexMissing, JobFailed
from pipeline.failpoints import failpoint
from pipeline.index import faiss_index
from pipeline.index.choose import IndexSpec
from pipeline.index.id_map import take, write_id_map
from pipeline.index.versions import IndexRows, Version, VersionStore, order_by_hash
from pipeline.settings import Settings
from pipeline.store.jobs import Job
from pipeline.store.shards import DoneShard

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Merged:
    """What a merge came to: a published version, or shards whose files must be made again."""

    version: str | None = None
    broken: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class ShardRows:
    """The rows that one shard brings; its vectors are read only when they are laid down."""

    paths: list[str]
    files: NDArray[np.int64]
    sha256: NDArray[np.bytes_]
    vectors: Callable[[], NDArray[np.float32]]


def merge(
    job: Job,
    shards: Iterable[DoneShard],
    settings: Settings,
    versions: VersionStore,
    check: Callable[[], None],
    *,
    later_jobs: Collection[str],
    require_fit: Callable[[int], None] = lambda vector_bytes: None,
) -> Merged:
    """Publish a job's vectors. The caller holds `versions.lock()`.

    A second run after a crash finds what the first had finished: a version that names this job is
    published as it is.

    Args:
        check: called between steps; raises to stop.
        later_jobs: the ids of the jobs created after this one, by the job table.
        require_fit: called with the bytes of all vectors; raises where memory is too small.

    Raises:
        JobFailed: no good image, or a later job has published already.
        IndexBroken: the base version or the new index contradict themselves.
    """
    done = [v for v in versions.versions() if v.manifest["job_id"] == job.id]
    later = next((v for v in versions.versions() if v.manifest["job_id"] in later_jobs), None)
    if done:
        if later is None:
            versions.point_to(done[-1])
        return Merged(done[-1].name)
    if later is not None:
        raise JobFailed(
            f"A later job, {later.manifest['job_id']}, has already published {later.name}; this "
            "older one would hide it. Run the rebuild again to have it."
        )
    blocks, broken = _read_all(
        settings.jobs_dir / job.id, shards, lambda: _base(job, versions), check
    )
    if broken:
        return Merged(broken=broken)
    failpoint("merge.after_read")
    check()
    workspace = versions.workspace()
    try:
        contents = _join(job.id, blocks, workspace / "vectors.npy")
        same = None if job.full else _same(contents, job.fingerprint, versions)
        if same is not None:
            return Merged(same)
        check()
        require_fit(contents.vectors.nbytes)
        kind = _write(contents, workspace, settings, check)
        check()
        failpoint("merge.before_commit")
        version = versions.commit(
            workspace,
            {
                "job_id": job.id,
                "job_created_at": job.created_at,
                "created_at": time.time(),
                "root": str(job.root),
                "images": len(contents.paths),
                "dimension": int(contents.vectors.shape[1]),
                "index": kind.parameters(),
                "random_pairs": faiss_index.random_pairs(contents.vectors),
                "fingerprint": {"id": job.fingerprint, "summary": job.fingerprint_summary},
            },
        )
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    failpoint("merge.before_pointer")
    versions.point_to(version)
    failpoint("merge.after_pointer")
    return Merged(version.name)


def _read_all(
    folder: Path,
    shards: Iterable[DoneShard],
    load_base: Callable[[], Version],
    check: Callable[[], None],
) -> tuple[list[ShardRows], list[int]]:
    """Describe the rows of every shard; return them, and the numbers of unreadable shards."""
    blocks, broken = [], []
    base = None
    for shard in shards:
        check()
        if shard.rows:
            base = base or load_base()
            blocks.append(_reused(shard, base))
            continue
        try:
            blocks.append(_embedded(folder, shard))
        except IndexBroken:
            broken.append(shard.n)
    return blocks, broken


def _base(job: Job, versions: VersionStore) -> Version:
    """Open the version whose vectors a job reuses, whole.

    Raises:
        IndexBroken: it rotted, or the job names none.
    """
    if not job.base_version:
        raise IndexBroken(f"Job {job.id} reuses rows, but names no base version.")
    base = versions.open(job.base_version)
    for name in ("vectors.npy", "sha256.npy", "files.npy", "id_to_filename.json"):
        if file_sha256(base.folder / name) != base.manifest["files"][name]["sha256"]:
            raise IndexBroken(
                f"{base.folder / name} changed on disk, so its vectors cannot be reused: "
                "run 'imgrec enqueue-rebuild --full'."
            )
    return base


def _reused(shard: DoneShard, base: Version) -> ShardRows:
    rows = np.array(shard.rows)
    return ShardRows(
        paths=take(base.paths, shard.rows),
        files=np.asarray(base.files[rows]),
        sha256=np.asarray(base.sha256[rows]),
        vectors=lambda: np.asarray(base.vectors[rows]),
    )


def _embedded(folder: Path, shard: DoneShard) -> ShardRows:
    name, digest = shard.file or "", shard.sha256 or ""
    piece = read_shard(folder, name, digest)
    good = [shard.images[position] for position in piece.positions]
    facts = np.array([[image.size, image.mtime_ns] for image in good], np.int64)
    return ShardRows(
        paths=[image.path for image in good],
        files=facts.reshape(len(good), 2),
        sha256=piece.sha256,
        vectors=lambda: read_shard(folder, name, digest).vectors,
    )


def _join(job_id: str, blocks: list[ShardRows], file: Path) -> IndexRows:
    """Lay all rows into one mapped array, sorted by path; one shard's vectors in memory."""
    paths = [path for block in blocks for path in block.paths]
    if not paths:
        raise JobFailed(
            "No image of the folder could be used, so nothing was published: "
            f"'imgrec failures {job_id}' tells why."
        )
    order = np.array(sorted(range(len(paths)), key=paths.__getitem__))
    ordered = [paths[row] for row in order]
    twice = [path for path, following in pairwise(ordered) if path == following]
    if twice:
        raise IndexBroken(f"The plan of this job names {twice[0]!r} twice: run the rebuild again.")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    dim = next(block.vectors().shape[1] for block in blocks if block.paths)
    vectors = np.lib.format.open_memmap(file, "w+", np.float32, (len(paths), dim))
    start = 0
    for block in blocks:
        end = start + len(block.paths)
        if block.paths:
            vectors[place[start:end]] = block.vectors()
        start = end
    vectors.flush()
    facts = np.concatenate([block.files for block in blocks])[order]
    hashes = np.concatenate([block.sha256 for block in blocks])[order]
    return IndexRows(ordered, facts, hashes, vectors)


def _same(contents: IndexRows, fingerprint: str | None, versions: VersionStore) -> str | None:
    """Return the published version's name if it holds exactly these rows, all of it whole."""
    try:
        current = versions.current()
        if (
            current.fingerprint == fingerprint
            and current.paths == contents.paths
            and np.array_equal(current.files, contents.files)
            and np.array_equal(current.sha256, contents.sha256)
        ):
            versions.verify(current)
            return current.name
    except IndexMissing:
        return None
    except ImgrecError as error:  # a broken one is replaced
        log.warning("The published index is not kept: %s", error)
    return None


def _write(
    contents: IndexRows, workspace: Path, settings: Settings, check: Callable[[], None]
) -> IndexSpec:
    built, kind = faiss_index.build(
        contents.vectors,
        settings.flat_max_vectors,
        settings.threads,
        settings.index_memory,
        check,
    )
    faiss_index.self_check(built, contents.vectors, kind)
    failpoint("merge.before_save")
    faiss_index.save(built, workspace / "index.bin")
    write_id_map(workspace / "id_to_filename.json", contents.paths)
    np.save(workspace / "sha256.npy", contents.sha256)
    np.save(workspace / "by_hash.npy", order_by_hash(contents.sha256))
    np.save(workspace / "files.npy", contents.files)
    return kind
