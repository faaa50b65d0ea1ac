"""Follow the published version, and search it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import index
from pipeline.errors import ImgrecError
from pipeline.index_kind import IndexKind
from pipeline.versions import Version, VersionStore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenIndex:
    """A version with its FAISS index in memory or mapped."""

    version: Version
    faiss: Any

    def searches(
        self, vector: NDArray[np.float32], first: int, allowed: NDArray[np.bool_] | None = None
    ) -> Iterator[list[tuple[int, float]]]:
        """Yield ever deeper lists of (row, score), each best first; the last holds all rows.

        The first list has `first` rows where there are so many. How many rows a caller needs is not
        known before, where several are pictures of one product.

        Args:
            vector: (d,) float32 unit vector.
            allowed: (n,) rows that may be found; None allows all.
        """
        kind, total = self.kind, self.faiss.ntotal
        nlist, nprobe = kind.nlist, kind.nprobe
        if allowed is not None:
            total = int(allowed.sum())
            # What is allowed lies as thin in the lists as in the whole: look at more of them.
            nprobe = min(nlist, nprobe * self.faiss.ntotal // max(1, total))
        depth = min(first, total)
        while total:
            scores, rows = self.search(vector[None, :], depth, allowed, nprobe)
            found = int((rows[0] >= 0).sum())  # fewer where the inverted lists ran out
            if found == depth or nprobe >= nlist:
                yield list(zip(rows[0, :found].tolist(), scores[0, :found].tolist(), strict=True))
            if depth >= total and (found == total or nprobe >= nlist):
                return
            nprobe, depth = min(nlist, 4 * nprobe), min(total, 4 * depth)

    @cached_property
    def kind(self) -> IndexKind:
        return IndexKind.of(self.version.manifest["index"])

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        allowed: NDArray[np.bool_] | None = None,
        nprobe: int = 0,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return (scores, rows), see `index.search`; `nprobe` 0 keeps the tuned one."""
        kind = replace(self.kind, nprobe=nprobe) if nprobe else self.kind
        return index.search(
            self.faiss, queries, k, allowed, kind=kind, vectors=self.version.vectors
        )


class PublishedIndex:
    """Follow the pointer file: each query sees the version that is published when it starts."""

    def __init__(self, versions: VersionStore) -> None:
        self._versions = versions
        self._lock = threading.Lock()
        self._open: OpenIndex | None = None

    def current(self) -> OpenIndex:
        """Return the published index, loading it if the pointer has moved.

        A version that cannot be loaded is reported in the log and the one before goes on serving.

        Raises:
            IndexMissing: nothing was published. IndexBroken: nothing loadable was.
        """
        name = self._versions.current_name()
        held = self._open
        if held and held.version.name == name and held.version.still_there:
            return held
        with self._lock:
            held = self._open
            if held and held.version.name == name and held.version.still_there:
                return held
            try:
                version = self._versions.open(name) if name else self._versions.current()
                kind = IndexKind.of(version.manifest["index"])
                faiss = index.load(version.folder / "index.bin", kind)
                fresh = OpenIndex(version, faiss)
                # Now, not within the first query: the version may be pruned while it serves.
                _ = version.paths, version.vectors
            except ImgrecError:
                if held is None or name is None:
                    raise
                log.exception("Index %s cannot be loaded; %s goes on.", name, held.version.name)
                return held
            self._open = fresh
            return fresh
