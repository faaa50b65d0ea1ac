"""Vectors that need no model: those of an index version and of the shared cache."""

from __future__ import annotations

from collections.abc import Container

import numpy as np
from numpy.typing import NDArray

from pipeline.embed.embed_images import usable
from pipeline.index.versions import Version
from pipeline.store.cache import Cache, NoCache


class KnownVectors:
    """Image vectors by content hash: from an index version, then from the shared cache."""

    def __init__(
        self,
        cache: Cache | NoCache,
        fingerprint_id: str,
        version: Version | None,
        *,
        reuse: bool = True,
        warned: Container[str] = (),
    ) -> None:
        """Know the vectors of one fingerprint.

        Args:
            reuse: false for vectors that are only kept, never looked up.
            warned: paths of images of the version that have a warning. Their vectors are computed
                again where the file is new: else nobody would be warned of its copy.
        """
        self._cache = cache
        self._fingerprint = fingerprint_id
        self._reuse = reuse
        self._warned = warned
        self._version = version if version and version.fingerprint == fingerprint_id else None

    def get(self, digest: str) -> NDArray[np.float32] | None:
        vector = self._get(digest) if self._reuse else None
        # Earlier releases kept what the model gave, whatever it was.
        return vector if vector is not None and usable(vector) else None

    def _get(self, digest: str) -> NDArray[np.float32] | None:
        if self._version is not None:
            row = self._version.row_of_hash(digest)
            if row is not None and self._version.paths[row] in self._warned:
                return None
            if row is not None:
                return np.array(self._version.vectors[row])
        return self._cache.get_vector(self._fingerprint, digest)

    def put(self, vectors: dict[str, NDArray[np.float32]]) -> None:
        self._cache.put_vectors(self._fingerprint, vectors)


class KnownTexts:
    """Text vectors by the digest of their prompts, from the shared cache."""

    def __init__(self, cache: Cache | NoCache, fingerprint_id: str) -> None:
        self._cache = cache
        self._fingerprint = fingerprint_id

    def get(self, digest: str) -> NDArray[np.float32] | None:
        return self._cache.get_text(self._fingerprint, digest)

    def put(self, vectors: dict[str, NDArray[np.float32]]) -> None:
        self._cache.put_texts(self._fingerprint, vectors)
