"""A version after a small change: the index of an earlier one on the server, and rows beside it.

Nothing is written on the server. What has gone since is left out, and what is new is compared
exactly in this process. The version's folder says which of its rows the server knows, and by which
id:

engine_ids.npy          (n,) int32: the id of each row on the server, or -1
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.access import is_unavailable
from pipeline.engines.scores import tune
from pipeline.errors import IndexBroken
from pipeline.index.engine import Base, Hits, OpenIndex, QueryByQuery, Vectors, engine_of
from pipeline.index.faiss_index import SELF_SCORE
from pipeline.index.versions import Version

FILE = "engine_ids.npy"
# Rows beside an index are compared one by one: 10,000 x 512 take about 2 ms.
MAX_BESIDE = 10_000
SMOKE_TEST_ROWS = 8
MIN_IMAGES = 2000  # with fewer, a new index takes a second
MAX_SHARE = 0.05  # rows beside it, and as many that have gone, of those of the index
LEAST_RECALL = 0.95  # of a patched index; with less, a new one is built
BASE_IMAGES = "base_images"  # in a manifest: how many rows the index on the server has


def _ids_after(base: Base) -> NDArray[np.int32] | None:
    """Return the ids on the server of the next version's rows; None where too much has changed."""
    known = ids_of(base.version)
    ids = np.where(base.rows >= 0, known[base.rows], np.int32(-1)).astype(np.int32)
    n_base, n_known = base_images(base.version), int((ids >= 0).sum())
    n_beside, n_gone = len(ids) - n_known, n_base - n_known
    if n_base < MIN_IMAGES or n_beside > MAX_BESIDE or max(n_beside, n_gone) > MAX_SHARE * n_base:
        return None
    return ids


def base_images(version: Version) -> int:
    """Return how many rows the index on the server has."""
    return int(version.manifest["index"].get(BASE_IMAGES, version.manifest["images"]))


def is_patched(version: Version) -> bool:
    """Tell whether a version's rows are not those of the index on the server."""
    return BASE_IMAGES in version.manifest["index"]


def ids_of(version: Version) -> NDArray[np.int32]:
    """Return the (n,) ids on the server of a version's rows.

    Raises:
        IndexBroken: the file is missing or cannot be read.
    """
    if not is_patched(version):
        return np.arange(version.manifest["images"], dtype=np.int32)
    try:
        ids: NDArray[np.int32] = np.load(version.file(FILE), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        if is_unavailable(error):
            raise
        raise IndexBroken(f"{version.folder / FILE} cannot be read: {error}.") from error
    return ids


def sample(ids: NDArray[np.int32]) -> dict[int, int]:
    """Return a few rows that the server knows, from the first to the last, by their ids there."""
    known = np.flatnonzero(ids >= 0)
    places = np.linspace(0, len(known) - 1, min(SMOKE_TEST_ROWS, len(known))).astype(np.int64)
    rows = known[places]
    return dict(zip(ids[rows].tolist(), rows.tolist(), strict=True))


def holds(
    version: Version, row_of: Mapping[int, int], stored: Collection[tuple[int, Sequence[float]]]
) -> bool:
    """Tell whether what a server has stored for a `sample` are the vectors of a version."""
    products = [float(version.vectors[row_of[each]] @ np.array(vector)) for each, vector in stored]
    return len(products) == len(row_of) and min(products) >= SELF_SCORE


def opened(
    version: Version, open_server: Callable[[Version], OpenIndex], ids: NDArray[np.int32]
) -> OpenIndex:
    """Return the index of a version.

    Args:
        open_server: returns the index on the server of a version that is as the server has it.
    """
    if not is_patched(version):
        return open_server(version)
    there = ServerVersion(version, ids)
    return PatchedIndex(version, open_server(there), ids, there.rows_by_id)


def patch(
    base: Base | None,
    engine: str,
    vectors: Vectors,
    workspace: Path,
    is_there: Callable[[Version], bool],
    open_server: Callable[[Version], OpenIndex],
    check: Callable[[], None],
) -> dict[str, Any] | None:
    """Write the ids of the next version's rows; return its facts, or None for a new index.

    Args:
        base: the version that the next one is like.
        engine: the name of the one that builds.
        is_there: tells whether the server has the index of a version.
        check: called between queries; raises to stop.
    """
    if base is None or engine_of(base.version.manifest) != engine:
        return None
    ids = _ids_after(base)
    if ids is None or not is_there(base.version):
        return None
    facts = {**base.version.manifest["index"], BASE_IMAGES: base_images(base.version)}
    draft = Version(workspace, {"images": len(vectors), "index": facts}, 0)
    vars(draft).update(vectors=vectors)
    index = opened(draft, open_server, ids)

    def find(_: int, query: Vectors, k: int) -> list[int]:
        check()
        return [row for row, _ in next(index.search_deepening(query, k))[:k]]

    _, recall = tune(vectors, (0,), find, check)  # the width is that of the index
    if recall < LEAST_RECALL:
        return None
    np.save(workspace / FILE, ids)
    n_beside = int((ids < 0).sum())
    n_gone = facts[BASE_IMAGES] - len(ids) + n_beside
    reason = f"the index of an earlier version, {n_beside:,} rows beside it, {n_gone:,} left out"
    return {**facts, "recall_at_10": recall, "reason": f"{len(ids):,} vectors: {reason}"}


class ServerVersion(Version):
    """A version as the index on the server has it: its rows are the ids there."""

    def __init__(self, version: Version, ids: NDArray[np.int32]) -> None:
        n_base = base_images(version)
        manifest = {**version.manifest, "images": n_base}
        super().__init__(version.folder, manifest, version.manifest_mtime_ns)
        row_of = np.full(n_base, -1, np.int64)
        known = np.flatnonzero(ids >= 0)
        row_of[ids[known]] = known
        # Not `self.x = x`: a version is frozen, and its cached properties are entries here.
        vars(self).update(row_of=row_of, vectors=SelectedVectors(version.vectors, row_of))

    @property
    def rows_by_id(self) -> NDArray[np.int64]:
        """The (n_base,) rows of the version by id; -1 for what has gone."""
        rows: NDArray[np.int64] = vars(self)["row_of"]
        return rows


class SelectedVectors:
    """Some rows of a mapped array, read like one; any vector stands for a row of -1."""

    def __init__(self, vectors: Vectors, rows: NDArray[np.int64]) -> None:
        self._vectors, self._rows = vectors, rows
        self.shape = (len(rows), vectors.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, places: Any) -> Vectors:
        vectors: Vectors = self._vectors[np.maximum(self._rows[places], 0)]
        return vectors


@dataclass(frozen=True)
class PatchedIndex(QueryByQuery):
    """An index on the server whose rows are those of an earlier version, and rows beside it."""

    version: Version
    server: OpenIndex
    ids: NDArray[np.int32]
    row_of: NDArray[np.int64]

    exact = False

    @property
    def n_vectors(self) -> int:
        return len(self.ids)

    def search_deepening(
        self, vector: Vectors, first: int, allowed: NDArray[np.bool_] | None = None
    ) -> Iterator[Hits]:
        """Yield ever deeper lists of (row, score), see `OpenIndex`.

        A list of the server goes down to some score; a row beside it that scores less waits for a
        deeper one.
        """
        beside, empty = self._beside_hits(vector, allowed), True
        for hits, is_last in self._server_hits(vector, first, allowed):
            empty = False
            lowest = -np.inf if is_last else hits[-1][1]
            merged = [*hits, *(hit for hit in beside if hit[1] >= lowest)]
            yield sorted(merged, key=lambda hit: -hit[1])
        if empty and beside:
            yield beside

    def _server_hits(
        self, vector: Vectors, first: int, allowed: NDArray[np.bool_] | None
    ) -> Iterator[tuple[Hits, bool]]:
        """Yield lists of what the server finds and is still there, and whether it is the last.

        Without a condition, what has gone is dropped here: a mask has a bit for each row, and would
        be sent with each query.
        """
        mask = None if allowed is None else self._mask(allowed)
        total = len(self.row_of) if mask is None else int(mask.sum())
        if mask is None:
            first_there = first + (0 if self._is_known.all() else max(2, first // 8))
        else:
            first_there = first
        if not total:
            return
        for found in self.server.search_deepening(vector, first_there, mask):
            rows = self.row_of[[each for each, _ in found]].tolist()
            hits = [(row, score) for row, (_, score) in zip(rows, found, strict=True) if row >= 0]
            is_last = len(found) == total
            if hits and (is_last or len(hits) >= min(first, total)):
                yield hits, is_last

    def plan(self, first: int, allowed: NDArray[np.bool_] | None) -> str:
        """Tell how the server is searched, and how many rows are compared beside it."""
        mask = None if allowed is None else self._mask(allowed)
        return f"{self.server.plan(first, mask)}; {len(self._beside[0])} rows beside it"

    @cached_property
    def _beside(self) -> tuple[NDArray[np.int64], Vectors]:
        rows = np.flatnonzero(self.ids < 0)
        return rows, np.asarray(self.version.vectors[rows])

    @cached_property
    def _is_known(self) -> NDArray[np.bool_]:
        return self.row_of >= 0

    def _mask(self, allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return self._is_known & allowed[np.maximum(self.row_of, 0)]

    def _beside_hits(self, vector: Vectors, allowed: NDArray[np.bool_] | None) -> Hits:
        rows, vectors = self._beside
        if allowed is not None:
            rows, vectors = rows[allowed[rows]], vectors[allowed[rows]]
        scores = vectors @ vector
        best = np.argsort(-scores, kind="stable")
        return list(zip(rows[best].tolist(), scores[best].tolist(), strict=True))
