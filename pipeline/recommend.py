"""Search the published index and name its matches."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import index
from pipeline.errors import ImgrecError
from pipeline.versions import Version, VersionStore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Match:
    """One product: `score` is the cosine similarity, `distance` is 1 - score."""

    rank: int
    product_id: str
    filename: str
    score: float
    distance: float


@dataclass(frozen=True)
class OpenIndex:
    """A version with its FAISS index in memory or mapped."""

    version: Version
    faiss: Any

    def matches(self, vector: NDArray[np.float32], k: int) -> list[Match]:
        """Return the `k` products nearest to a (d,) unit vector, best first."""
        scores, rows = index.search(self.faiss, vector[None, :], k)
        found: list[Match] = []
        for score, row in zip(scores[0], rows[0], strict=True):
            if row < 0:
                break  # an inverted list ran out
            filename = self.version.paths[row]
            # Six digits: what float32 sums of some hundred products carry.
            cosine = round(float(score), 6)
            found.append(
                Match(
                    rank=len(found) + 1,
                    product_id=str(PurePosixPath(filename).with_suffix("")),
                    filename=filename,
                    score=cosine,
                    distance=round(1.0 - cosine, 6),
                )
            )
        return found


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
                nprobe = version.manifest["index"]["nprobe"]
                faiss = index.load(version.folder / "index.bin", nprobe)
                fresh = OpenIndex(version, faiss)
                _ = version.paths  # read now, not within the first query
            except ImgrecError:
                if held is None or name is None:
                    raise
                log.exception("Index %s cannot be loaded; %s goes on.", name, held.version.name)
                return held
            self._open = fresh
            return fresh
