"""Join the shards of a job into the rows of one index version, sorted by path.

The job table says which rows there can be, so each shard's file is read once and its vectors go
straight to their place in a mapped file. Rows of images that could not be used stay empty there and
are removed at the end. Memory holds one shard's vectors, and the paths and hashes of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.embed.shard_files import ShardFiles
from pipeline.errors import IndexBroken, JobFailed
from pipeline.index.versions import IndexRows, Version
from pipeline.store.jobs import Job
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
    file: Path,
    check: Callable[[], None],
) -> tuple[IndexRows | None, list[int]]:
    """Return the rows of the next version, or the numbers of shards whose files must be made again.

    Args:
        file: the .npy that the vectors are written to.
        open_base: opens the version whose rows are reused, if any are.
        check: called before each shard; raises to stop.

    Raises:
        JobFailed: no image could be used.
        IndexBroken: the plan contradicts itself, or the base version is damaged.
    """
    planned, base = _planned(shards, open_base, check)
    joiner = _Joiner([path for shard in planned for path in shard.paths], file)
    broken: list[int] = []
    embedded = [each for each in planned if each.rows is None or base is None]
    results = files.read(job.id, [(each.file, each.sha256) for each in embedded])
    start = 0
    for shard in planned:
        check()
        places = np.arange(start, start + len(shard.paths))
        start += len(shard.paths)
        if shard.rows is not None and base is not None:
            joiner.put(places, shard.files, base.sha256[shard.rows], base.vectors[shard.rows])
            joiner.note_base(places, shard.rows)
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
    for shard in shards:
        check()
        rows = None
        if shard.rows:
            base = base or open_base()
            rows = np.array(shard.rows)
            paths, files = [base.paths[row] for row in shard.rows], np.asarray(base.files[rows])
        else:
            paths = [image.path for image in shard.images]
            facts = [[image.size, image.mtime_ns] for image in shard.images]
            files = np.array(facts, np.int64).reshape(len(facts), 2)
        planned.append(
            PlannedShard(shard.n, paths, files, shard.file or "", shard.sha256 or "", rows)
        )
    return planned, base


class _Joiner:
    """The rows of all planned paths, sorted, filled shard by shard."""

    def __init__(self, paths: list[str], file: Path) -> None:
        order = np.array(sorted(range(len(paths)), key=paths.__getitem__), np.int64)
        self._paths = [paths[place] for place in order]
        for path, following in pairwise(self._paths):
            if path == following:
                raise IndexBroken(f"The plan of this job names {path!r} twice: rebuild again.")
        self._row_of = np.empty(len(order), np.int64)
        self._row_of[order] = np.arange(len(order))
        self._filled = np.zeros(len(paths), bool)
        self._base_rows = np.full(len(paths), -1, np.int64)
        self._files = np.zeros((len(paths), 2), np.int64)
        self._sha256 = np.zeros(len(paths), "S64")
        self._vectors: np.memmap[tuple[int, int], np.dtype[np.float32]] | None = None
        self._file = file

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
        if self._vectors is None:
            shape = (len(self._paths), vectors.shape[1])
            self._vectors = np.lib.format.open_memmap(self._file, "w+", np.float32, shape)
        rows = self._row_of[places]
        self._vectors[rows] = vectors
        self._files[rows], self._sha256[rows] = files, sha256
        self._filled[rows] = True

    def note_base(self, places: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        """Note the rows of the base version that some paths have."""
        self._base_rows[self._row_of[places]] = rows

    def finish(self) -> IndexRows | None:
        """Remove the empty rows; None if all are."""
        if self._vectors is None:
            return None
        rows = np.flatnonzero(self._filled)
        if len(rows) < len(self._paths):
            self._vectors = _keep(self._vectors, rows, self._file)
        self._vectors.flush()
        paths = [self._paths[row] for row in rows.tolist()]
        return IndexRows(
            paths, self._files[rows], self._sha256[rows], self._vectors, self._base_rows[rows]
        )


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
