"""The shared cache in Redis: vectors by content, query results by everything that decides them.

A cache may always be empty: when its server is away the work is done again, once with a warning in
the log. Every key has a life, so a `volatile-*` or `allkeys-*` eviction policy is safe here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import redis
from numpy.typing import NDArray

log = logging.getLogger(__name__)

PREFIX = "imgrec:cache"
PAUSE_S = 15  # after an error the server is left alone for so long
Answer = TypeVar("Answer")


class Cache:
    """A Redis that holds what can be computed again."""

    def __init__(self, url: str, vector_ttl_s: int, result_ttl_s: int) -> None:
        self._redis = redis.Redis.from_url(
            url, socket_timeout=2, socket_connect_timeout=2, health_check_interval=15
        )
        self._vector_ttl_s = vector_ttl_s
        self._result_ttl_s = result_ttl_s
        self._away_until = 0.0

    def get_vector(self, fingerprint: str, digest: str) -> NDArray[np.float32] | None:
        """Return the (d,) float32 vector of a content hash, or None."""
        data = self._ask(lambda: self._redis.get(_vector_key(fingerprint, digest)), None)
        if not isinstance(data, bytes) or not data or len(data) % 4:
            return None
        vector = np.frombuffer(data, "<f4").astype(np.float32)
        # A value that is no unit vector was not written by this page.
        return vector if abs(float(vector @ vector) - 1.0) < 1e-3 else None

    def put_vectors(self, fingerprint: str, vectors: dict[str, NDArray[np.float32]]) -> None:
        """Keep vectors by content hash."""

        def write() -> None:
            pipe = self._redis.pipeline(transaction=False)
            for digest, vector in vectors.items():
                data = np.asarray(vector, "<f4").tobytes()
                pipe.set(_vector_key(fingerprint, digest), data, ex=self._vector_ttl_s)
            pipe.execute()

        if vectors:
            self._ask(write, None)

    def get_result(self, key: str) -> Any | None:
        """Return a stored query result, or None."""
        data = self._ask(lambda: self._redis.get(f"{PREFIX}:result:{key}"), None)
        try:
            return json.loads(data) if isinstance(data, bytes) else None
        except ValueError:
            return None

    def put_result(self, key: str, result: Any) -> None:
        """Keep a query result."""
        data = json.dumps(result)
        self._ask(
            lambda: self._redis.set(f"{PREFIX}:result:{key}", data, ex=self._result_ttl_s), None
        )

    def _ask(self, question: Callable[[], Answer], otherwise: Answer) -> Answer:
        if time.monotonic() < self._away_until:
            return otherwise
        try:
            return question()
        except redis.RedisError as error:
            self._away_until = time.monotonic() + PAUSE_S
            log.warning("The cache does not answer (%s); working without it.", error)
            return otherwise


def result_key(version: str, fingerprint: str, digest: str, parameters: dict[str, Any]) -> str:
    """Name a query result by index version, fingerprint, content hash and parameters."""
    facts = json.dumps([version, fingerprint, digest, parameters], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()


def _vector_key(fingerprint: str, digest: str) -> str:
    return f"{PREFIX}:vector:{fingerprint}:{digest}"
