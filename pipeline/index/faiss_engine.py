"""The engine of one machine: FAISS, as a file of the version folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import IndexBroken
from pipeline.failpoints import failpoint
from pipeline.index import faiss_index
from pipeline.index.choose import IndexSpec
from pipeline.index.engine import FAISS, Base, EngineState, Hits, Migration, Vectors, engine_of
from pipeline.index.segments import (
    BASE_INDEX,
    INDEX,
    INDEX_FILES,
    NEW_INDEX,
    SEGMENT_FILES,
    VECTORS,
    SegmentedIndex,
    SegmentedVectors,
    as_segmented,
)
from pipeline.index.versions import ADVICE, Version

log = logging.getLogger(__name__)

# An exact index loses no row by chance, and a query may wait for this check, which passes over all
# vectors for each row: so a few, which tell an index of other images. One of nearly the same
# images they may miss; the digests of `PublishedIndex._verify_digests` do not.
SMOKE_TEST_ROWS = 8
READ_BYTES = 1 << 20


@dataclass(frozen=True)
class FaissIndex:
    """A version with its FAISS index in memory or mapped."""

    version: Version
    faiss: Any

    @cached_property
    def kind(self) -> IndexSpec:
        return IndexSpec.of(self.version.manifest["index"])

    @property
    def n_vectors(self) -> int:
        return int(self.faiss.ntotal)

    @property
    def exact(self) -> bool:
        # Otherwise a deeper search looks at more lists, or scores more rows exactly.
        return not self.kind.nlist and not self.kind.rerank

    def search_deepening(
        self, vector: Vectors, first: int, allowed: NDArray[np.bool_] | None = None
    ) -> Iterator[Hits]:
        """Yield ever deeper lists of (row, score), see `OpenIndex`."""
        total, nlist, nprobe = self.n_vectors, self.kind.nlist, self.kind.nprobe
        if allowed is not None:
            total = int(allowed.sum())
            nprobe = self._lists_for(total)
        depth = min(first, total)
        while total:
            scores, rows = self._search(vector[None, :], depth, allowed, nprobe)
            n_rows = int((rows[0] >= 0).sum())  # fewer where the inverted lists ran out
            if n_rows == depth or nprobe >= nlist:
                yield list(zip(rows[0, :n_rows].tolist(), scores[0, :n_rows].tolist(), strict=True))
            if depth >= total and (n_rows == total or nprobe >= nlist):
                return
            nprobe, depth = min(nlist, 4 * nprobe), min(total, 4 * depth)

    def search(
        self, queries: Vectors, k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """Return (scores, rows), see `faiss_index.search`."""
        return self._search(queries, k, allowed, self.kind.nprobe)

    def plan(self, first: int, allowed: NDArray[np.bool_] | None) -> str:
        """Tell how many rows, and lists, the search looks at."""
        n_rows = self.n_vectors if allowed is None else int(allowed.sum())
        if not self.kind.nlist:
            return f"exact search of {n_rows:,} rows"
        nprobe = self.kind.nprobe if allowed is None else self._lists_for(n_rows)
        return f"{nprobe} of {self.kind.nlist} lists, {n_rows:,} rows allowed"

    def warm(self) -> None:
        """Read the files once, so that the first searches find them in memory, not on the disk."""
        block = bytearray(READ_BYTES)
        for name in INDEX_FILES:
            if name in self.version.manifest["files"]:
                with self.version.file(name).open("rb", buffering=0) as stream:
                    while stream.readinto(block):
                        pass

    def _lists_for(self, n_rows: int) -> int:
        """Return the lists to read: what is allowed lies as thin in them as in the whole."""
        kind = self.kind
        return min(kind.nlist, kind.nprobe * self.n_vectors // max(1, n_rows))

    def _search(
        self, queries: Vectors, k: int, allowed: NDArray[np.bool_] | None, nprobe: int
    ) -> tuple[Vectors, NDArray[np.int64]]:
        kind = replace(self.kind, nprobe=nprobe)
        return faiss_index.search(
            self.faiss, queries, k, allowed, kind=kind, vectors=self.version.vectors
        )


class FaissEngine:
    """Builds an index file beside the vectors, and maps it."""

    name = FAISS
    builds_in_memory = True

    def __init__(self, flat_max: int = 0, threads: int = 1, budget: int | None = None) -> None:
        """Build with these limits, see `faiss_index.build`; opening needs none."""
        self._flat_max, self._threads, self._budget = flat_max, threads, budget

    def build(
        self,
        vectors: Vectors,
        workspace: Path,
        check: Callable[[], None],
        base: Base | None = None,
        migration: Migration | None = None,
    ) -> dict[str, Any]:
        """Build and check an index, and save it to the workspace; keep the lists of the base.

        Vectors in two segments get two indexes. Where the lists of the base serve no longer, all
        vectors are written to one file, and have one index.
        """
        segmented = as_segmented(vectors)
        if base is not None and segmented is not None:
            extended = self._extend(vectors, segmented, workspace, check, base)
            if extended is not None:
                return extended.parameters()
            vectors = made_whole(segmented, workspace, check)
        trained = None if base is None else _trained(base)
        built, kind = faiss_index.build(
            vectors, self._flat_max, self._threads, self._budget, check, trained
        )
        faiss_index.self_check(built, vectors, kind)
        failpoint("merge.before_save")
        faiss_index.save(built, workspace / INDEX)
        return kind.parameters()

    def _extend(
        self,
        vectors: Vectors,
        segmented: SegmentedVectors,
        workspace: Path,
        check: Callable[[], None],
        base: Base,
    ) -> IndexSpec | None:
        """Index the new segment beside the base's index, which is in the workspace already."""
        earlier = base.version
        kind = _kind(earlier)
        extended = faiss_index.extend(
            workspace / BASE_INDEX,
            faiss_index.keep_lists(_load(earlier, kind), kind, base.rows),
            segmented,
            self._flat_max,
            self._threads,
            self._budget,
            check,
        )
        if extended is None:
            return None
        index, kind = extended
        try:
            faiss_index.self_check(index, vectors, kind)
        except IndexBroken as error:
            log.warning("The index of %s is not gone on with: %s", earlier.name, error)
            return None
        failpoint("merge.before_save")
        faiss_index.save(index.new, workspace / NEW_INDEX)
        return kind

    def open(self, version: Version) -> FaissIndex:
        """Map the index of a version, and try whether it is that of its vectors."""
        spec = IndexSpec.of(version.manifest["index"])
        loaded = _load(version, spec)
        exact = not spec.nlist and not spec.rerank
        try:
            faiss_index.self_check(
                loaded, version.vectors, spec, SMOKE_TEST_ROWS if exact else faiss_index.SAMPLE
            )
        except IndexBroken as error:
            raise IndexBroken(
                f"{version.folder / INDEX} and {VECTORS} do not belong together ({error}): "
                f"{ADVICE}."
            ) from error
        return FaissIndex(version, loaded)

    def verify(self, version: Version) -> None:
        """Nothing: the digests of the folder say all."""

    def keep_only(self, versions: Collection[Version], min_age_s: float = 0.0) -> list[str]:
        """Delete nothing: the file goes with its folder."""
        return []

    def check(self) -> EngineState:
        """Nothing but the library, which each build and search needs."""
        return EngineState("FAISS, in files of DATA_DIR")


def _load(version: Version, kind: IndexSpec) -> Any:
    """Load the index of a version, whole or of two segments.

    Raises:
        IndexBroken: FAISS cannot read a file. OSError: it is missing.
    """
    vectors = as_segmented(version.vectors)
    if vectors is None:
        return faiss_index.load(version.file(INDEX), kind)
    base, new = (faiss_index.load(version.file(name), kind) for name in (BASE_INDEX, NEW_INDEX))
    return SegmentedIndex(base, new, vectors.places)


def _kind(version: Version) -> IndexSpec:
    """Return the kind of a version's index, with the number of vectors it was trained for."""
    kind = IndexSpec.of(version.manifest["index"])
    # One of before this was noted was trained for all of its vectors.
    return replace(kind, trained=kind.trained or version.manifest["images"])


def has_lists(version: Version) -> bool:
    """Tell whether a version has inverted lists of FAISS, which a later one may go on with."""
    manifest = version.manifest
    return engine_of(manifest) == FAISS and bool(IndexSpec.of(manifest["index"]).nlist)


def _trained(base: Base) -> faiss_index.Trained | None:
    """Return the lists of a version, where it has some that can be read."""
    version = base.version
    if not has_lists(version):
        return None
    kind = _kind(version)
    try:
        opened = _load(version, kind)
        kept = faiss_index.keep_lists(opened, kind, base.rows)
        # What is filled anew is one index.
        return replace(kept, index=opened.base) if version.is_segmented else kept
    except (IndexBroken, FileNotFoundError) as error:
        log.warning("The lists of index %s are trained anew: %s", version.name, error)
        return None


def made_whole(vectors: SegmentedVectors, workspace: Path, check: Callable[[], None]) -> Vectors:
    """Write all vectors of two segments to one file of the workspace, without the segments."""
    whole = vectors.write(workspace / VECTORS, check)
    for name in SEGMENT_FILES:
        (workspace / name).unlink(missing_ok=True)
    return whole
