"""Join the shards of a job into the rows of one index version, sorted by path.

The job table says which rows there can be, so each shard's file is read once and its vectors go
straight to their place in a mapped file. Rows of images that could not be used stay empty there and
are removed at the end. Memory holds one shard's vectors, and the paths and hashes of all rows.

Where few rows are new or gone, that file has the new ones only: the base's file is shared, see
pipeline/index/segments.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.embed.shard_files import ShardFiles
from pipeline.errors import IndexBroken, JobFailed
from pipeline.index.segments import (
    BASE_VECTORS,
    NEW_VECTORS,
    PLACES,
    VECTORS,
    SegmentedVectors,
    as_segmented,
    is_small,
)
from pipeline.index.versions import IndexRows, Version
from pipeline.store.job import Job
from pipeline.store.shards import DoneShard

BLOCK_ROWS = 4096  # moved at once


@dataclass(frozen=True)
class PlannedShard:
    """The rows of one shard: embedded ones have a file, reused ones are `rows` of the base.

    files: (n, 2) int64 bytes and mtime in ns.
    """

    n: int
    paths: list[str]
    files: NDArray[np.int64]
    file: str
    sha256: str
    rows: NDArray[np.int64] | None


def join(
    job: Job,
    shards: Iterable[DoneShard],
    files: ShardFiles,
    open_base: Callable[[], Version],
    workspace: Path,
    check: Callable[[], None],
    share: Callable[[Version, Path], bool] = lambda base, workspace: False,
) -> tuple[IndexRows | None, list[int]]:
    """Return the rows of the next version, or the numbers of shards whose files must be made again.

    Args:
        open_base: opens the version whose rows are reused, if any are.
        workspace: the folder that the vectors are written to.
        check: called before each shard; raises to stop.
        share: called where few rows are new or gone; gives the base's large files second names in
            the workspace, or returns False.

    Raises:
        JobFailed: no image could be used.
        IndexBroken: the plan contradicts itself, or the base version is damaged.
    """
    planned, base = _planned(shards, open_base, check)
    stored = _stored(planned, base, workspace, share)
    joiner = _Joiner([path for shard in planned for path in shard.paths], stored, workspace)
    broken: list[int] = []
    embedded = [each for each in planned if each.rows is None or base is None]
    results = files.read(job.id, [(each.file, each.sha256) for each in embedded])
    start = 0
    for shard in planned:
        check()
        places = np.arange(start, start + len(shard.paths))
        start += len(shard.paths)
        if shard.rows is not None and base is not None:
            joiner.reuse(places, shard.files, base, shard.rows)
            continue
        result = next(results)
        if result is None:
            broken.append(shard.n)
            continue
        good = result.positions
        joiner.put(places[good], shard.files[good], result.sha256, result.vectors)
    if broken:
        return None, broken
    rows = joiner.finish()
    if rows is None:
        raise JobFailed(
            "No image of the folder could be used, so nothing was published: "
            f"'imgrec failures {job.id}' lists the reasons."
        )
    return rows, []


def _planned(
    shards: Iterable[DoneShard], open_base: Callable[[], Version], check: Callable[[], None]
) -> tuple[list[PlannedShard], Version | None]:
    planned: list[PlannedShard] = []
    base: Version | None = None
    base_paths: Sequence[str] = ()
    for shard in shards:
        check()
        rows = None
        if shard.rows:
            if base is None:
                base = open_base()
                base_paths = base.paths[:]  # decoded at once: most of them are needed
            rows = np.array(shard.rows)
            paths, files = [base_paths[row] for row in shard.rows], np.asarray(base.files[rows])
        else:
            paths = [image.path for image in shard.images]
            facts = [[image.size, image.mtime_ns] for image in shard.images]
            files = np.array(facts, np.int64).reshape(len(facts), 2)
        planned.append(
            PlannedShard(shard.n, paths, files, shard.file or "", shard.sha256 or "", rows)
        )
    return planned, base


@dataclass(frozen=True)
class _Stored:
    """Where the vectors of planned rows are already.

    places: (n,) in the plan's order: the row in the shared file, or -1.
    vectors: the shared file.
    """

    places: NDArray[np.int64]
    vectors: NDArray[np.float32]


def _stored(
    planned: list[PlannedShard],
    base: Version | None,
    workspace: Path,
    share: Callable[[Version, Path], bool],
) -> _Stored | None:
    """Share the base's file of vectors, if few rows are new or gone; return where its rows are."""
    if base is None:
        return None
    vectors, places_of = base.vectors, np.arange(len(base.paths))
    if segmented := as_segmented(vectors):  # the base shares the file of another one
        vectors, places_of = segmented.base, segmented.places
    n_base = len(vectors)
    pieces = [
        np.full(len(shard.paths), -1) if shard.rows is None else places_of[shard.rows]
        for shard in planned
    ]
    places = np.concatenate(pieces, dtype=np.int64)
    places[places >= n_base] = -1
    n_shared = int((places >= 0).sum())
    if not is_small(n_base, len(places) - n_shared, n_base - n_shared):
        return None
    return _Stored(places, vectors) if share(base, workspace) else None


class _Joiner:
    """The rows of all planned paths, sorted, filled shard by shard."""

    def __init__(self, paths: list[str], stored: _Stored | None, workspace: Path) -> None:
        order = np.array(sorted(range(len(paths)), key=paths.__getitem__), np.int64)
        self._paths = [paths[place] for place in order.tolist()]
        for path, following in pairwise(self._paths):
            if path == following:
                raise IndexBroken(f"The plan of this job names {path!r} twice: rebuild again.")
        n = len(paths)
        self._row_of = np.empty(n, np.int64)
        self._row_of[order] = np.arange(n)
        self._filled = np.zeros(n, bool)
        self._base_rows = np.full(n, -1, np.int64)
        self._files = np.zeros((n, 2), np.int64)
        self._sha256 = np.zeros(n, "S64")
        self._workspace, self._stored = workspace, stored
        # By row: its place in the shared file, or -1; and its place in the file that is written.
        self._shared = np.full(n, -1, np.int64) if stored is None else stored.places[order]
        self._own = np.cumsum(self._shared < 0) - 1
        self._file = workspace / (VECTORS if stored is None else NEW_VECTORS)
        self._vectors: np.memmap[tuple[int, int], np.dtype[np.float32]] | None = None
        if stored is not None:
            self._create(stored.vectors.shape[1])

    def put(
        self,
        places: NDArray[np.int64],
        files: NDArray[np.int64],
        sha256: NDArray[np.bytes_],
        vectors: NDArray[np.float32],
    ) -> None:
        """Fill the rows of some paths, named by their places in the list of all."""
        if not len(places):
            return
        rows = self._row_of[places]
        self._note(rows, files, sha256)
        self._write(rows, vectors)

    def reuse(
        self,
        places: NDArray[np.int64],
        files: NDArray[np.int64],
        base: Version,
        base_rows: NDArray[np.int64],
    ) -> None:
        """Fill the rows of some paths with those of the base; copy vectors that are not shared."""
        rows = self._row_of[places]
        self._note(rows, files, base.sha256[base_rows])
        self._base_rows[rows] = base_rows
        own = self._shared[rows] < 0
        if own.any():
            self._write(rows[own], base.vectors[base_rows[own]])

    def finish(self) -> IndexRows | None:
        """Remove the empty rows; None if all are."""
        rows = np.flatnonzero(self._filled)
        if self._vectors is None or not len(rows):
            return None
        shared = self._shared[rows]
        own = self._own[rows][shared < 0]
        if len(own) < len(self._vectors):
            self._vectors = _keep(self._vectors, own, self._file)
        vectors: Any = self._vectors
        if self._stored is not None:
            places = shared
            places[shared < 0] = len(self._stored.vectors) + np.arange(len(own))
            np.save(self._workspace / PLACES, places)
            base = np.load(self._workspace / BASE_VECTORS, mmap_mode="r", allow_pickle=False)
            vectors = SegmentedVectors(base, self._vectors, places)
        paths = [self._paths[row] for row in rows.tolist()]
        return IndexRows(
            paths, self._files[rows], self._sha256[rows], vectors, self._base_rows[rows]
        )

    def _note(
        self, rows: NDArray[np.int64], files: NDArray[np.int64], sha256: NDArray[np.bytes_]
    ) -> None:
        self._files[rows], self._sha256[rows] = files, sha256
        self._filled[rows] = True

    def _write(self, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        if self._vectors is None:
            self._create(vectors.shape[1])
        assert self._vectors is not None
        self._vectors[self._own[rows]] = vectors

    def _create(self, dim: int) -> None:
        shape = (int((self._shared < 0).sum()), dim)
        self._vectors = np.lib.format.open_memmap(self._file, "w+", np.float32, shape)


def _keep(
    vectors: np.memmap[tuple[int, int], np.dtype[np.float32]],
    rows: NDArray[np.int64],
    file: Path,
) -> np.memmap[tuple[int, int], np.dtype[np.float32]]:
    """Move the given rows, in ascending order, to the front of a .npy file, and end it there."""
    for start in range(0, len(rows), BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS]
        vectors[start : start + len(block)] = vectors[block]  # a copy: blocks may overlap
    vectors.flush()
    dim, header_bytes = vectors.shape[1], vectors.offset
    with file.open("r+b") as stream:
        # numpy pads its headers, so that the first dimension can change in place.
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(rows), dim)}
        np.lib.format.write_array_header_1_0(stream, header)
        if stream.tell() != header_bytes:
            raise AssertionError("numpy wrote a header of another length")
        stream.truncate(header_bytes + 4 * dim * len(rows))
    return np.lib.format.open_memmap(file, "r+")
