"""Follow the published version, and search it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.errors import ImgrecError, IndexBroken
from pipeline.index.engine import FAISS, Engines, OpenIndex, engine_of
from pipeline.index.faiss_engine import FaissEngine
from pipeline.index.version_copies import CopiedVersion
from pipeline.index.versions import Stamp, Version, VersionStore

log = logging.getLogger(__name__)

LOAD_AT_ONCE = 4 << 20  # bytes of vectors; a query waits 10 ms for it, 45 for 61 MB
RETRY_S = 10.0  # after a version could not be loaded or compared with its digests


@dataclass(frozen=True)
class Serving:
    """This index answers; a newer one that failed to load is tried again at `retry_at`.

    `failed` is the stamp of the pointer that named it: another one is tried at once.
    """

    index: OpenIndex
    retry_at: float = 0.0
    failed: Stamp | None = None

    def waits(self, stamp: Stamp) -> bool:
        return self.failed == stamp and time.monotonic() < self.retry_at


@dataclass(frozen=True)
class Loading:
    """This index answers while a thread loads a newer one."""

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

    The first query that sees a small new version of FAISS loads it. A large one, and one of a
    server, which a connection has to be made for, is loaded in the background: queries use the one
    before until it is ready, and none waits.
    """

    def __init__(
        self,
        versions: VersionStore,
        warm: Callable[[Version], None] = lambda version: None,
        engines: Engines | None = None,
    ) -> None:
        """Follow `versions`.

        Args:
            warm: called with a version that is loaded in the background before it serves, to make
                ready what else belongs to it.
            engines: open the versions; None: FAISS alone.
        """
        self._versions = versions
        self._engines = engines or Engines({FAISS: FaissEngine()})
        self._warm = warm
        self._lock = threading.Lock()
        self._earlier: OpenIndex | None = None  # asked for by its name
        self._earlier_lock = threading.Lock()
        # One value, replaced as a whole; None before the first index is loaded.
        self._state: Serving | Loading | Broken | None = None

    def current(self) -> OpenIndex:
        """Return the published index, or the one before while it is being loaded.

        A version that cannot be loaded is reported in the log and the one before goes on serving.

        Raises:
            IndexMissing: nothing was published. IndexBroken: nothing loadable was.
        """
        name, stamp = self._versions.followed()
        index = self._usable(stamp)
        if index and index.version.name == name and index.version.is_current:
            return index
        if index and name and self._takes_long(name):
            self._start_loading(name, index, stamp)
            return index
        with self._lock:
            index = self._usable(stamp)  # another query may have loaded it meanwhile
            if index and index.version.name == name and index.version.is_current:
                return index
            state = self._state
            if index and isinstance(state, Serving) and state.waits(stamp):
                return index
            try:
                return self._serve(self._load(name), stamp)
            except ImgrecError as error:
                if index is None or name is None:
                    raise
                log.error("%s", _stays(name, index, error))
                self._state = Serving(index, time.monotonic() + RETRY_S, stamp)
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
        # Now, not within the first query: the version may be pruned while it serves.
        _ = version.paths, version.vectors, version.sha256, version.by_hash
        return self._engines.open(version)

    def _serve(self, index: OpenIndex, stamp: Stamp) -> OpenIndex:
        """Answer from this index, and compare its large files with their digests meanwhile."""
        self._state = Serving(index)
        threading.Thread(
            target=self._verify_digests, args=(index, stamp), name="verify", daemon=True
        ).start()
        return index

    def _verify_digests(self, index: OpenIndex, stamp: Stamp) -> None:
        """Take 1 s a gigabyte, beside the queries; wait for a store that is away."""
        try:
            while not self._compared(index):
                time.sleep(RETRY_S)
        except IndexBroken as error:
            log.critical("%s", error)
            with self._lock:
                if self._state is not None and self._state.index is index:
                    # The next query opens a copy again, which fetches the file anew.
                    is_copy = isinstance(index.version, CopiedVersion)
                    self._state = None if is_copy else Broken(index, stamp, str(error))
        except OSError:
            log.info("Index %s was deleted while it was read.", index.version.name)

    def _compared(self, index: OpenIndex) -> bool:
        """Compare an index with its digests; False where that has to be tried again.

        Raises:
            IndexBroken: it does not match. OSError: its files are gone.
        """
        try:
            self._versions.verify(index.version)
        except IndexBroken:
            raise
        except ImgrecError as error:
            name, state = index.version.name, self._state
            log.warning("%s Index %s is compared with its digests later.", error, name)
            return state is None or state.index is not index  # then it serves no more
        return True

    def _takes_long(self, name: str) -> bool:
        try:
            manifest = self._versions.manifest(name)
        except (OSError, ValueError, ImgrecError):
            return False  # loading it says what is wrong
        n_bytes = 4 * int(manifest["images"]) * int(manifest["dimension"])
        return n_bytes > LOAD_AT_ONCE or engine_of(manifest) != FAISS

    def _start_loading(self, name: str, index: OpenIndex, stamp: Stamp) -> None:
        with self._lock:
            state = self._state
            if not isinstance(state, Serving) or state.index is not index:
                return  # it is being loaded, or another query has changed the state
            if not state.waits(stamp):
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
            fresh.warm()
        except Exception as error:
            # Whatever it was: the state must not stay `Loading`, or no version is loaded again.
            log.error("%s", _stays(name, index, error), exc_info=not isinstance(error, ImgrecError))
            with self._lock:
                if isinstance(self._state, Loading):
                    self._state = Serving(index, time.monotonic() + RETRY_S, stamp)
            return
        try:
            self._warm(fresh.version)
        except Exception as error:  # it can serve all the same
            unexpected = not isinstance(error, ImgrecError)
            log.warning("Index %s could not be prepared: %s", name, error, exc_info=unexpected)
        with self._lock:
            self._serve(fresh, stamp)
        log.info("Index %s is loaded (%.1f s).", name, time.monotonic() - start)


def _stays(name: str, index: OpenIndex, error: Exception) -> str:
    return f"Index {name} cannot be loaded; {index.version.name} stays in use: {error}"
