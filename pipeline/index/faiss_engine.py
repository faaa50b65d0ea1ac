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
from pipeline.index.versions import ADVICE, Version

log = logging.getLogger(__name__)

FILE = "index.bin"
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
        """Read the file once, so that the first searches find it in memory, not on the disk."""
        block = bytearray(READ_BYTES)
        with (self.version.file(FILE)).open("rb", buffering=0) as stream:
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
        """Build and check an index, and save it to the workspace; keep the lists of the base."""
        trained = None if base is None else _trained(base)
        built, kind = faiss_index.build(
            vectors, self._flat_max, self._threads, self._budget, check, trained
        )
        faiss_index.self_check(built, vectors, kind)
        failpoint("merge.before_save")
        faiss_index.save(built, workspace / FILE)
        return kind.parameters()

    def open(self, version: Version) -> FaissIndex:
        """Map the index of a version, and try whether it is that of its vectors."""
        spec = IndexSpec.of(version.manifest["index"])
        loaded = faiss_index.load(version.file(FILE), spec)
        exact = not spec.nlist and not spec.rerank
        try:
            faiss_index.self_check(
                loaded, version.vectors, spec, SMOKE_TEST_ROWS if exact else faiss_index.SAMPLE
            )
        except IndexBroken as error:
            raise IndexBroken(
                f"{version.folder / FILE} and vectors.npy do not belong together ({error}): "
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


def _trained(base: Base) -> faiss_index.Trained | None:
    """Return the lists of a version, where it has some that can be read."""
    version = base.version
    kind = IndexSpec.of(version.manifest["index"])
    if engine_of(version) != FAISS or not kind.nlist:
        return None
    # One of before this was noted was trained for all of its vectors.
    kind = replace(kind, trained=kind.trained or version.manifest["images"])
    try:
        opened = faiss_index.load(version.file(FILE), kind)
    except (IndexBroken, FileNotFoundError) as error:
        log.warning("The lists of index %s are trained anew: %s", version.name, error)
        return None
    return faiss_index.keep_lists(opened, kind, base.rows)
