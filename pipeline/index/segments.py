"""A version of two segments: the files of an earlier version, and what is new since.

    base_vectors.npy    vectors.npy of an earlier version, under a second name (a hard link)
    base_index.bin      its index.bin, likewise; ids are its row numbers
    new_vectors.npy     (m, d) float32: the vectors that the base does not have
    new_index.bin       their index, with the same centroids; ids go on after those of the base
    places.npy          (n,) int64: the place of each row: a row of the base, or the number of rows
                        there + that of a new vector. The places of base rows that are gone are
                        missing.

A small change of a large catalogue then writes what changed, not gigabytes. All other files are
those of any version, so rows are sorted by path here, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

VECTORS, INDEX = "vectors.npy", "index.bin"  # of a version that is whole
BASE_VECTORS, BASE_INDEX = "base_vectors.npy", "base_index.bin"
NEW_VECTORS, NEW_INDEX, PLACES = "new_vectors.npy", "new_index.bin", "places.npy"
SEGMENT_FILES = (BASE_VECTORS, BASE_INDEX, NEW_VECTORS, NEW_INDEX, PLACES)
VECTOR_FILES = (VECTORS, BASE_VECTORS, NEW_VECTORS, PLACES)
INDEX_FILES = (INDEX, BASE_INDEX, NEW_INDEX)
# Of the base's rows: how many may be gone, and how many new, before all files are written anew.
# Each query passes over what is gone, and each rebuild writes all that is new since the base.
MAX_SHARE = 0.1
BLOCK_ROWS = 16_384


class StackedVectors:
    """The rows of one array, then those of another, without a copy of either."""

    dtype = np.dtype(np.float32)

    def __init__(self, base: Any, new: Vectors) -> None:
        self.base, self.new = base, new
        self.shape: tuple[int, int] = (len(base) + len(new), base.shape[1])

    def __len__(self) -> int:
        return int(self.shape[0])

    @property
    def nbytes(self) -> int:
        return 4 * len(self) * int(self.shape[1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or self.dtype, copy=False)

    def __getitem__(self, rows: Any) -> Vectors:
        return self._take(self._places(rows))

    def _places(self, rows: Any) -> Any:
        if isinstance(rows, slice):
            return np.arange(*rows.indices(len(self)))
        return rows if isinstance(rows, int | np.integer) else np.asarray(rows, np.int64)

    def _take(self, places: Any) -> Vectors:
        n_base = len(self.base)
        if np.ndim(places) == 0:
            one: Vectors = self.base[places] if places < n_base else self.new[places - n_base]
            return one
        is_new = np.flatnonzero(places >= n_base)
        # Where a new vector belongs, the last one of the base stands for a moment.
        of_base = np.minimum(places, n_base - 1)
        taken: Vectors = (
            self.base[of_base]  # not an array: NumPy would make one of all its rows
            if isinstance(self.base, StackedVectors)
            else np.take(self.base, of_base, axis=0, mode="wrap")
        )
        taken[is_new] = self.new[places[is_new] - n_base]
        return taken


class SegmentedVectors(StackedVectors):
    """The vectors of a version of two segments, by its rows; `places` is that file."""

    def __init__(self, base: Vectors, new: Vectors, places: NDArray[np.int64]) -> None:
        super().__init__(base, new)
        self.places = places
        self.shape = (len(places), base.shape[1])

    def _places(self, rows: Any) -> Any:
        return self.places[rows]

    def write(self, file: Path, check: Callable[[], None]) -> Vectors:
        """Write all rows to one .npy file; return them mapped."""
        whole: Vectors = np.lib.format.open_memmap(file, "w+", np.float32, self.shape)
        for start in range(0, len(self), BLOCK_ROWS):
            check()
            whole[start : start + BLOCK_ROWS] = self[start : start + BLOCK_ROWS]
        return whole


def as_segmented(vectors: Any) -> SegmentedVectors | None:
    """Return the vectors of a version if they are in two segments."""
    return vectors if isinstance(vectors, SegmentedVectors) else None


def is_small(n_base: int, n_new: int, n_gone: int) -> bool:
    """Tell whether a change is worth a segment of its own."""
    return max(n_new, n_gone) <= MAX_SHARE * n_base


def base_files(files: dict[str, Any]) -> dict[str, str]:
    """Return the base's files by the names that a version of two segments gives them.

    Args:
        files: of the manifest of a version, which is whole or has two segments itself.
    """
    if PLACES in files:
        return {BASE_VECTORS: BASE_VECTORS, BASE_INDEX: BASE_INDEX}
    return {BASE_VECTORS: VECTORS, BASE_INDEX: INDEX}


@dataclass
class SegmentedIndex:
    """Two FAISS indexes with the same inverted lists, searched as one, by the rows of a version."""

    base: Any
    new: Any
    places: NDArray[np.int64]

    @property
    def ntotal(self) -> int:
        return len(self.places)

    @property
    def nlist(self) -> int:
        return int(self.base.nlist)

    @property
    def quantizer(self) -> Any:
        return self.base.quantizer

    @property
    def parts(self) -> list[Any]:
        return [self.base, self.new]

    @cached_property
    def n_places(self) -> int:
        return int(self.base.ntotal) + int(self.new.ntotal)

    @cached_property
    def row_at(self) -> NDArray[np.int64]:
        """The row at each place; -1 where a row is gone, and at the end, for place -1."""
        rows = np.full(self.n_places + 1, -1, np.int64)
        rows[self.places] = np.arange(len(self.places))
        return rows

    @cached_property
    def present(self) -> NDArray[np.uint8] | None:
        """The places that have a row, a bit for each; None: all."""
        return None if self.n_places == self.ntotal else self.bits(None)

    def bits(self, allowed: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
        """Return the places of the rows that are allowed, a bit for each."""
        rows = self.row_at[:-1]
        # Row -1 takes what is put at the end.
        mask = rows >= 0 if allowed is None else np.append(allowed, False)[rows]
        return np.packbits(mask, bitorder="little")

    def best(
        self, found: list[tuple[Vectors, NDArray[np.int64]]], k: int
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """Return the best k of what each part has found, as (scores, rows)."""
        scores = np.concatenate([part for part, _ in found], axis=1)
        places = np.concatenate([part for _, part in found], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return (
            np.take_along_axis(scores, order, 1),
            self.row_at[np.take_along_axis(places, order, 1)],
        )
