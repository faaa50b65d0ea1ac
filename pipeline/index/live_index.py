"""Follow the published version, and search it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImgrecError, IndexBroken
from pipeline.index import faiss_index
from pipeline.index.choose import IndexSpec
from pipeline.index.versions import WAY_OUT, Version, VersionStore

log = logging.getLogger(__name__)

LOAD_AT_ONCE = 64 << 20  # bytes of an index that a query can wait for: some 10 ms
# An exact index loses no row by chance, and a query may wait for this check, which passes over all
# vectors for each row: so a few, which tell an index of other pictures. One of nearly the same
# pictures they may miss; the digests of `_verify_digests` do not.
SMOKE_TEST_ROWS = 8
READ_BYTES = 1 << 20
RETRY_S = 10.0  # after a large version could not be loaded


@dataclass(frozen=True)
class OpenIndex:
    """A version with its FAISS index in memory or mapped."""

    version: Version
    faiss: Any

    def search_deepening(
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
    def kind(self) -> IndexSpec:
        return IndexSpec.of(self.version.manifest["index"])

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        allowed: NDArray[np.bool_] | None = None,
        nprobe: int = 0,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return (scores, rows), see `index.search`; `nprobe` 0 keeps the tuned one."""
        kind = replace(self.kind, nprobe=nprobe) if nprobe else self.kind
        return faiss_index.search(
            self.faiss, queries, k, allowed, kind=kind, vectors=self.version.vectors
        )


class PublishedIndex:
    """Follow the pointer file.

    A small new version is loaded by the first query that sees it. A large one is loaded beside the
    queries: they go on with the one before until it is ready, and none waits.
    """

    def __init__(
        self, versions: VersionStore, warm: Callable[[Version], None] = lambda version: None
    ) -> None:
        """Follow `versions`.

        Args:
            warm: called with a large version before it serves, to make ready what else belongs to
                it.
        """
        self._versions = versions
        self._warm = warm
        self._lock = threading.Lock()
        self._open: OpenIndex | None = None
        self._loader: threading.Thread | None = None
        self._retry_at = 0.0
        # The index that does not match its digests, the pointer's time when it was read, and why.
        self._broken: tuple[OpenIndex, int, str] | None = None

    def current(self) -> OpenIndex:
        """Return the published index, or the one before while a large one is being loaded.

        A version that cannot be loaded is reported in the log and the one before goes on serving.

        Raises:
            IndexMissing: nothing was published. IndexBroken: nothing loadable was.
        """
        name = self._versions.current_name()
        held = self._usable()
        if held and held.version.name == name and held.version.is_current:
            return held
        if held and name and self._is_large(name):
            self._load_in_background(name, held)
            return held
        with self._lock:
            held = self._usable()
            if held and held.version.name == name and held.version.is_current:
                return held
            try:
                fresh = self._load(name)
            except ImgrecError:
                if held is None or name is None:
                    raise
                log.exception("Index %s cannot be loaded; %s goes on.", name, held.version.name)
                return held
            self._open = fresh
            return fresh

    def _usable(self) -> OpenIndex | None:
        """Return the index in memory; None before the first, and where a broken one was replaced.

        Raises:
            IndexBroken: it does not match its digests, and nothing was published since.
        """
        held, broken = self._open, self._broken
        if held is None or broken is None or broken[0] is not held:
            return held
        # A rollback proves a version before it writes the pointer, even to the same name. So a
        # pointer that was written since names files that are worth loading.
        if held.version.is_current and self._versions.pointer_ns() == broken[1]:
            raise IndexBroken(broken[2])  # no answer is better than a wrong one
        return None

    def _load(self, name: str | None) -> OpenIndex:
        pointer_ns = self._versions.pointer_ns()
        version = self._versions.open(name) if name else self._versions.current()
        kind = IndexSpec.of(version.manifest["index"])
        faiss = faiss_index.load(version.folder / "index.bin", kind)
        # Now, not within the first query: the version may be pruned while it serves.
        _ = version.paths, version.vectors, version.sha256, version.by_hash
        try:
            exact = not kind.nlist and not kind.rerank
            faiss_index.self_check(
                faiss, version.vectors, kind, SMOKE_TEST_ROWS if exact else faiss_index.SAMPLE
            )
        except IndexBroken as error:
            raise IndexBroken(
                f"{version.folder / 'index.bin'} and vectors.npy do not belong together ({error}): "
                f"{WAY_OUT}."
            ) from error
        opened = OpenIndex(version, faiss)
        threading.Thread(
            target=self._verify_digests, args=(opened, pointer_ns), name="prove", daemon=True
        ).start()
        return opened

    def _verify_digests(self, opened: OpenIndex, pointer_ns: int) -> None:
        """Compare the large files with their digests, beside the queries; 1 s a gigabyte."""
        try:
            self._versions.verify(opened.version)
        except IndexBroken as error:
            log.critical("%s", error)
            self._broken = (opened, pointer_ns, str(error))
        except OSError:
            log.info("Index %s was deleted while it was read.", opened.version.name)

    def _is_large(self, name: str) -> bool:
        try:
            return (self._versions.folder / name / "index.bin").stat().st_size > LOAD_AT_ONCE
        except OSError:
            return False  # loading it says what is wrong

    def _load_in_background(self, name: str, held: OpenIndex) -> None:
        with self._lock:
            busy = self._loader is not None and self._loader.is_alive()
            if busy or self._open is not held or time.monotonic() < self._retry_at:
                return
            self._loader = threading.Thread(
                target=self._activate, args=(name, held), name="index", daemon=True
            )
            self._loader.start()

    def _activate(self, name: str, held: OpenIndex) -> None:
        start = time.monotonic()
        try:
            fresh = self._load(name)
            _read_ahead(fresh.version.folder / "index.bin")
        except (ImgrecError, OSError):
            self._retry_at = time.monotonic() + RETRY_S
            log.exception("Index %s cannot be loaded; %s goes on.", name, held.version.name)
            return
        try:
            self._warm(fresh.version)
        except ImgrecError as error:  # it can serve all the same
            log.warning("Index %s was not made ready: %s", name, error)
        self._open = fresh
        log.info("Index %s is loaded (%.1f s).", name, time.monotonic() - start)


def _read_ahead(file: Path) -> None:
    """Read a file once, so that the first searches find it in memory and not on the disk."""
    block = bytearray(READ_BYTES)
    with file.open("rb", buffering=0) as stream:
        while stream.readinto(block):
            pass
