"""The interface of an engine: what searches the vectors of index versions.

A version is a folder, whatever the engine: paths, hashes, vectors, manifest (`versions.py`), and so
are publishing, rollback and the list of versions. Only the structure that finds nearest neighbours
is the engine's: a file of the folder (FAISS), or a table of a server (pgvector). The manifest of
a version names its engine, so versions of several engines lie side by side.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SetupError
from pipeline.index.versions import Version, VersionStore

FAISS = "faiss"
PREFIX = "imgrec_index_"  # of tables and collections; then the time and a random number, in hex
ABANDONED_S = 86_400.0  # after which what no version names was left by a killed build
Vectors = NDArray[np.float32]
Hits = list[tuple[int, float]]  # (row, cosine), the best first


def as_arrays(hits_of_queries: Collection[Hits], k: int) -> tuple[Vectors, NDArray[np.int64]]:
    """Return (scores, rows), each (n, k), of n queries; score -inf and row -1 where none is."""
    scores = np.full((len(hits_of_queries), k), -np.inf, np.float32)
    rows = np.full((len(hits_of_queries), k), -1, np.int64)
    for place, hits in enumerate(hits_of_queries):
        rows[place, : len(hits)] = [row for row, _ in hits]
        scores[place, : len(hits)] = [score for _, score in hits]
    return scores, rows


class OpenIndex(Protocol):
    """A version that is ready to be searched."""

    @property
    def version(self) -> Version: ...

    @property
    def n_vectors(self) -> int: ...

    @property
    def exact(self) -> bool:
        """Whether a deeper search never ranks the first rows anew."""

    def search(
        self, queries: Vectors, k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """Return (scores, rows), each (n, min(k, n_vectors)), best first; row -1 where none is.

        Args:
            allowed: (n,) rows that may be found; None allows all.
        """

    def search_deepening(
        self, vector: Vectors, first: int, allowed: NDArray[np.bool_] | None = None
    ) -> Iterator[Hits]:
        """Yield ever deeper lists of (row, score), each best first; the last holds all rows.

        The first list has `first` rows where there are so many. How many rows a caller needs is not
        known before, where several images are of one product.

        Args:
            vector: (d,) float32 unit vector.
            allowed: (n,) rows that may be found; None allows all. Conditions on products arrive as
                such a mask, so that they mean the same in every engine.
        """

    def plan(self, first: int, allowed: NDArray[np.bool_] | None) -> str:
        """Tell how `search_deepening` finds its first list, for `--explain`."""

    def warm(self) -> None:
        """Make ready what the first searches need."""


class QueryByQuery:
    """Search and warm an index that has no quicker way for several queries."""

    def search(
        self: OpenIndex, queries: Vectors, k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """Return (scores, rows), see `OpenIndex`."""
        k = min(k, self.n_vectors)
        return as_arrays(
            [next(self.search_deepening(query, k, allowed), [])[:k] for query in queries], k
        )

    def warm(self: OpenIndex) -> None:
        """Search once, which e.g. reads the upper layers of a graph."""
        self.search(np.asarray(self.version.vectors[:1]), 10)


@dataclass(frozen=True)
class EngineState:
    """What `Engine.check` saw; `warning` is about what works, but may not later."""

    found: str
    warning: str = ""


@dataclass(frozen=True)
class Base:
    """A version that the next one is like.

    rows: (n,) for the rows of the next version: the same row in this one, or -1.
    """

    version: Version
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Migration:
    """A move of a version's vectors, which goes on where a killed one has stopped.

    key: of the vectors, their digest. versions: those that are kept, whose tables are finished.
    report: called with the step, how many rows are done, and of how many.
    """

    key: str
    versions: Collection[Version] = ()
    report: Callable[[str, int, int], None] = lambda step, done, total: None


class Engine(Protocol):
    """One way to build, keep and search the vectors of versions."""

    @property
    def name(self) -> str:
        """The engine's name in manifests."""

    @property
    def builds_in_memory(self) -> bool:
        """Whether a build holds all vectors in this process."""

    def build(
        self,
        vectors: Vectors,
        workspace: Path,
        check: Callable[[], None],
        base: Base | None = None,
        migration: Migration | None = None,
    ) -> dict[str, Any]:
        """Index (n, d) unit vectors and check the result; return its facts for the manifest.

        Args:
            workspace: folder of the version to be.
            check: called between steps; raises to stop.
            base: a version that most rows are of; what was computed for it may be kept.
            migration: keep what is done when it is stopped, and go on there.

        Raises:
            IndexBroken: the index does not find its own vectors.
        """

    def open(self, version: Version) -> OpenIndex:
        """Open a version of this engine.

        Raises:
            IndexBroken: the index is gone, or is not that of these vectors.
        """

    def verify(self, version: Version) -> None:
        """Check that a version of this engine can be published again.

        Raises:
            IndexBroken: it cannot.
        """

    def keep_only(self, versions: Collection[Version], min_age_s: float = 0.0) -> list[str]:
        """Delete what no version uses: of pruned versions, of builds that ended in a crash.

        The caller holds the lock of the versions. Returns the names of what was deleted.

        Args:
            min_age_s: what is younger stays: another host may be building it.
        """

    def check(self) -> EngineState:
        """Prove what rebuilds and queries need.

        Raises:
            SetupError: a library or an extension is missing or too old.
            ServerUnavailable, DatabaseFailed: a server does not answer, or refuses something.
        """


class Engines:
    """The engine that new versions are built in, and those of the versions that are kept."""

    def __init__(self, engines: Mapping[str, Engine], current: str = FAISS) -> None:
        """Choose among `engines`, by name; `current` builds new versions."""
        self._engines = engines
        self.current = engines[current]

    def named(self, name: str) -> Engine:
        """Return an engine by its name.

        Raises:
            SetupError: the settings do not name its server.
        """
        if name not in self._engines:
            raise SetupError(
                f"The settings name no {name}: set VECTOR_URL, see docs/operations.md."
            )
        return self._engines[name]

    def of(self, version: Version) -> Engine:
        """Return the engine of a version.

        Raises:
            SetupError: this process does not know where it is.
        """
        name = engine_of(version.manifest)
        if name not in self._engines:
            raise SetupError(
                f"Index {version.name} is in {name}, and VECTOR_URL does not name one: set it, or "
                "roll back with 'imgrec index rollback'."
            )
        return self._engines[name]

    def open(self, version: Version) -> OpenIndex:
        return self.of(version).open(version)

    def verify(self, version: Version) -> None:
        self.of(version).verify(version)

    def keep_only(self, versions: Collection[Version], min_age_s: float = 0.0) -> list[str]:
        """Delete what no version uses, see `Engine.keep_only`."""
        dropped = []
        for engine in self._engines.values():
            own = [version for version in versions if engine_of(version.manifest) == engine.name]
            dropped += engine.keep_only(own, min_age_s)
        return dropped


def engine_of(manifest: Mapping[str, Any]) -> str:
    """Return the name of the engine that a version was built in."""
    return str(manifest["index"].get("engine", FAISS))


def new_name() -> str:
    """Return a name of a table or a collection that nothing has yet."""
    return f"{PREFIX}{int(time.time()):08x}{uuid.uuid4().hex[:8]}"


def is_own_name(name: str) -> bool:
    """Tell whether a table or collection can be one of ours, not somebody's copy of it."""
    return re.fullmatch(f"{PREFIX}[0-9a-f]{{16}}", name) is not None


def age_s(name: str) -> float:
    """Return how long ago a name was given."""
    return time.time() - int(name.removeprefix(PREFIX)[:8], 16)


def drop_unused(engines: Engines, versions: VersionStore) -> list[str]:
    """Delete from the engines what no version uses; the caller holds the lock of the versions.

    Nothing while a version cannot be read: it may be mended, and nobody knows what it uses.
    """
    readable = versions.versions()
    if len(readable) < versions.count():
        return []
    return engines.keep_only(readable, 0.0 if versions.locks_all_hosts else ABANDONED_S)
