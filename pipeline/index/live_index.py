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
from pipeline.index.versions import ADVICE, Stamp, Version, VersionStore

log = logging.getLogger(__name__)

LOAD_AT_ONCE = 64 << 20  # bytes of an index that a query can wait for: some 10 ms
# An exact index loses no row by chance, and a query may wait for this check, which passes over all
# vectors for each row: so a few, which tell an index of other images. One of nearly the same
# images they may miss; the digests of `_verify_digests` do not.
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
        known before, where several are images of one product.

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
            n_rows = int((rows[0] >= 0).sum())  # fewer where the inverted lists ran out
            if n_rows == depth or nprobe >= nlist:
                yield list(zip(rows[0, :n_rows].tolist(), scores[0, :n_rows].tolist(), strict=True))
            if depth >= total and (n_rows == total or nprobe >= nlist):
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


@dataclass(frozen=True)
class Serving:
    """This index answers; a large newer one that failed to load is tried again at `retry_at`."""

    index: OpenIndex
    retry_at: float = 0.0


@dataclass(frozen=True)
class Loading:
    """This index answers while a thread loads a large newer one."""

    index: OpenIndex


@dataclass(frozen=True)
class Broken:
    """This index does not match its digests, so that no query may see it.

    `stamp` is that of the pointer that named it.
    """

    index: OpenIndex
    stamp: Stamp
    reason: str


class PublishedIndex:
    """Follow the pointer file.

    The first query that sees a small new version loads it. A large one is loaded in the background:
    queries use the one before until it is ready, and none waits.
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
        self._earlier: OpenIndex | None = None  # asked for by its name
        self._earlier_lock = threading.Lock()
        # One value, replaced as a whole; None before the first index is loaded.
        self._state: Serving | Loading | Broken | None = None

    def current(self) -> OpenIndex:
        """Return the published index, or the one before while a large one is being loaded.

        A version that cannot be loaded is reported in the log and the one before goes on serving.

        Raises:
            IndexMissing: nothing was published. IndexBroken: nothing loadable was.
        """
        name, stamp = self._versions.followed()
        index = self._usable(stamp)
        if index and index.version.name == name and index.version.is_current:
            return index
        if index and name and self._is_large(name):
            self._start_loading(name, index, stamp)
            return index
        with self._lock:
            index = self._usable(stamp)  # another query may have loaded it meanwhile
            if index and index.version.name == name and index.version.is_current:
                return index
            try:
                return self._serve(self._load(name), stamp)
            except ImgrecError:
                if index is None or name is None:
                    raise
                log.exception(
                    "Index %s cannot be loaded; %s stays in use.", name, index.version.name
                )
                return index

    def version(self, name: str) -> OpenIndex:
        """Return the index of a version that is still kept; of older ones, the last is held.

        Raises:
            NotFound: there is no such version. IndexBroken: it cannot be loaded.
        """
        index = self.current()
        if not name or index.version.name == name:
            return index
        with self._earlier_lock:
            earlier = self._earlier
            if earlier is None or earlier.version.name != name or not earlier.version.is_current:
                earlier = self._load(name)
                self._versions.verify(earlier.version)
                self._earlier = earlier
            return earlier

    def _usable(self, stamp: Stamp) -> OpenIndex | None:
        """Return the index in memory, if it may answer.

        Raises:
            IndexBroken: it does not match its digests, and nothing was published since.
        """
        state = self._state
        if not isinstance(state, Broken):
            return state.index if state else None
        # A rollback verifies a version before it writes the pointer, even to the same name. So a
        # pointer that was written since names files that are worth loading.
        if state.index.version.is_current and stamp == state.stamp:
            raise IndexBroken(state.reason)  # no answer is better than a wrong one
        return None

    def _load(self, name: str | None) -> OpenIndex:
        version = self._versions.open(name) if name else self._versions.current()
        spec = IndexSpec.of(version.manifest["index"])
        faiss = faiss_index.load(version.file("index.bin"), spec)
        # Now, not within the first query: the version may be pruned while it serves.
        _ = version.paths, version.vectors, version.sha256, version.by_hash
        try:
            exact = not spec.nlist and not spec.rerank
            faiss_index.self_check(
                faiss, version.vectors, spec, SMOKE_TEST_ROWS if exact else faiss_index.SAMPLE
            )
        except IndexBroken as error:
            raise IndexBroken(
                f"{version.folder / 'index.bin'} and vectors.npy do not belong together ({error}): "
                f"{ADVICE}."
            ) from error
        return OpenIndex(version, faiss)

    def _serve(self, index: OpenIndex, stamp: Stamp) -> OpenIndex:
        """Answer from this index, and compare its large files with their digests meanwhile."""
        self._state = Serving(index)
        threading.Thread(
            target=self._verify_digests, args=(index, stamp), name="verify", daemon=True
        ).start()
        return index

    def _verify_digests(self, index: OpenIndex, stamp: Stamp) -> None:
        """Take 1 s a gigabyte, beside the queries."""
        try:
            self._versions.verify(index.version)
        except IndexBroken as error:
            log.critical("%s", error)
            with self._lock:
                if self._state is not None and self._state.index is index:
                    self._state = Broken(index, stamp, str(error))
        except OSError:
            log.info("Index %s was deleted while it was read.", index.version.name)

    def _is_large(self, name: str) -> bool:
        try:
            return self._versions.file_bytes(name, "index.bin") > LOAD_AT_ONCE
        except (OSError, ImgrecError):
            return False  # loading it says what is wrong

    def _start_loading(self, name: str, index: OpenIndex, stamp: Stamp) -> None:
        with self._lock:
            state = self._state
            if not isinstance(state, Serving) or state.index is not index:
                return  # it is being loaded, or another query has changed the state
            if time.monotonic() >= state.retry_at:
                self._state = Loading(index)
                threading.Thread(
                    target=self._load_in_background,
                    args=(name, index, stamp),
                    name="index",
                    daemon=True,
                ).start()

    def _load_in_background(self, name: str, index: OpenIndex, stamp: Stamp) -> None:
        start = time.monotonic()
        try:
            fresh = self._load(name)
            _read_ahead(fresh.version.file("index.bin"))
        except Exception:
            # Whatever it was: the state must not stay `Loading`, or no version is loaded again.
            log.exception("Index %s cannot be loaded; %s stays in use.", name, index.version.name)
            with self._lock:
                if isinstance(self._state, Loading):
                    self._state = Serving(index, time.monotonic() + RETRY_S)
            return
        try:
            self._warm(fresh.version)
        except ImgrecError as error:  # it can serve all the same
            log.warning("Index %s could not be prepared: %s", name, error)
        with self._lock:
            self._serve(fresh, stamp)
        log.info("Index %s is loaded (%.1f s).", name, time.monotonic() - start)


def _read_ahead(file: Path) -> None:
    """Read a file once, so that the first searches find it in memory and not on the disk."""
    block = bytearray(READ_BYTES)
    with file.open("rb", buffering=0) as stream:
        while stream.readinto(block):
            pass
