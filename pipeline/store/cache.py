"""The shared cache in Redis: vectors by content, texts by their words, query results by everything
that decides them.

A cache may always be empty: when its server is away the work is done again, once with a warning in
the log. Every key has a life, so a `volatile-*` or `allkeys-*` eviction policy is safe here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import redis

from pipeline.images.decode import DECODING
from pipeline.store.redis_client import PREFIX, explained, trouble
from pipeline.vector_bytes import Vector, from_bytes, to_bytes

log = logging.getLogger(__name__)

CACHE = f"{PREFIX}cache"
STATS = f"{CACHE}:stats"
SETTING = "CACHE_URL (if it is empty: REDIS_URL)"
KINDS = ("vectors", "results", "texts")
PAUSE_S = 15  # after an error the server is left alone for so long
KEYS_AT_ONCE = 1000
FLUSH_S = 2.0  # hits and misses are counted in the process, and added up in Redis this often
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class KindFacts:
    """What the cache holds of a kind; ages in seconds, None where there is nothing."""

    kind: str
    keys: int
    bytes: int
    oldest_s: float | None
    newest_s: float | None
    hits: int
    misses: int

    @property
    def hit_rate(self) -> float | None:
        """The share of lookups that were answered; None where there were none."""
        return self.hits / lookups if (lookups := self.hits + self.misses) else None


class Cache:
    """A Redis that holds what can be computed again."""

    def __init__(self, url: str, vector_ttl_s: int, result_ttl_s: int) -> None:
        self._url = url
        self._redis = redis.Redis.from_url(
            url, socket_timeout=2, socket_connect_timeout=2, health_check_interval=15
        )
        self._ttl_s = {"vectors": vector_ttl_s, "texts": vector_ttl_s, "results": result_ttl_s}
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._flush_timer: threading.Timer | None = None
        self._mine = threading.local()
        self._away_until = 0.0

    def get_vector(self, fingerprint: str, digest: str) -> Vector | None:
        """Return the (d,) float32 vector of a content hash, or None."""
        return _vector(self._get("vectors", _vector_key(fingerprint, digest)))

    def put_vectors(self, fingerprint: str, vectors: Mapping[str, Vector]) -> None:
        """Keep vectors by content hash."""
        rows = {_vector_key(fingerprint, key): to_bytes(row) for key, row in vectors.items()}
        self._put("vectors", rows)

    def get_text(self, fingerprint: str, digest: str) -> Vector | None:
        """Return the (d,) float32 vector of a text's digest, or None."""
        return _vector(self._get("texts", f"{fingerprint}:{digest}"))

    def put_texts(self, fingerprint: str, vectors: Mapping[str, Vector]) -> None:
        """Keep vectors by the digest of their text."""
        self._put("texts", {f"{fingerprint}:{key}": to_bytes(v) for key, v in vectors.items()})

    def get_result(self, key: str) -> Any | None:
        """Return a stored query result, or None."""
        data = self._get("results", key)
        try:
            return None if data is None else json.loads(data)
        except ValueError:
            return None

    def put_result(self, key: str, result: Any) -> None:
        """Keep a query result."""
        self._put("results", {key: json.dumps(result).encode()})

    @contextmanager
    def pipelined(self) -> Iterator[None]:
        """Send what this thread keeps within the block at its end, all at once."""
        self._mine.waiting = waiting = dict[str, tuple[bytes, int]]()
        try:
            yield
        finally:
            self._mine.waiting = None
            self._write(waiting)

    def describe(self) -> tuple[float | None, list[KindFacts]]:
        """Return since when hits are counted (seconds since the epoch), and each kind's facts.

        Raises:
            ServerUnavailable: the cache's server does not answer.
        """
        self.flush()
        with explained(self._url, SETTING):
            stats: Any = self._redis.hgetall(STATS)
            since = float(stats[b"since"]) if b"since" in stats else None
            return since, [self._describe(kind, stats) for kind in KINDS]

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return the hits and misses of each kind.

        Raises:
            ServerUnavailable: the cache's server does not answer.
        """
        with explained(self._url, SETTING):
            stats: Any = self._redis.hgetall(STATS)
        return {kind: _hits_and_misses(stats, kind) for kind in KINDS}

    def clear(self, kind: str | None = None) -> int:
        """Delete what is kept, of a kind or of all; return the number of keys.

        Only keys of this cache: Celery's queues and results may lie in the same Redis.

        Raises:
            ServerUnavailable: the cache's server does not answer.
        """
        gone = 0
        with explained(self._url, SETTING):
            for each in KINDS if kind is None else (kind,):
                for keys in self._keys(each):
                    gone += int(self._redis.unlink(*keys))
                self._redis.hdel(STATS, f"{each}.hits", f"{each}.misses")
            if kind is None:
                self._redis.delete(STATS)
        return gone

    def _describe(self, kind: str, stats: Any) -> KindFacts:
        count, size, ages = 0, 0, list[float]()
        for keys in self._keys(kind):
            pipe = self._redis.pipeline(transaction=False)
            for key in keys:
                pipe.memory_usage(key)
                pipe.pttl(key)
            answers = pipe.execute()
            for n_bytes, left_ms in zip(answers[::2], answers[1::2], strict=True):
                if n_bytes is None:
                    continue  # gone meanwhile
                count, size = count + 1, size + int(n_bytes)
                ages.append(max(0.0, self._ttl_s[kind] - max(0, left_ms) / 1000))
        oldest, newest = max(ages, default=None), min(ages, default=None)
        return KindFacts(kind, count, size, oldest, newest, *_hits_and_misses(stats, kind))

    def _keys(self, kind: str) -> Iterator[list[bytes]]:
        keys = self._redis.scan_iter(match=f"{CACHE}:{kind}:*", count=KEYS_AT_ONCE)
        while batch := list(islice(keys, KEYS_AT_ONCE)):
            yield batch

    def _get(self, kind: str, name: str) -> bytes | None:
        def read() -> bytes | None:
            data = self._redis.get(f"{CACHE}:{kind}:{name}")
            self._count(f"{kind}.{'misses' if data is None else 'hits'}")
            return data if isinstance(data, bytes) else None

        return self._guarded(read, None)

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1
            if self._flush_timer is None:
                self._flush_timer = threading.Timer(FLUSH_S, self.flush)
                self._flush_timer.daemon = True
                self._flush_timer.start()

    def flush(self) -> None:
        """Add this process's hits and misses to those in Redis."""
        with self._lock:
            counts, self._counts, self._flush_timer = self._counts, Counter(), None

        def write() -> bool:
            pipe = self._redis.pipeline()
            for name, times in counts.items():
                pipe.hincrby(STATS, name, times)
            pipe.hsetnx(STATS, "since", str(time.time()))
            pipe.expire(STATS, self._ttl_s["vectors"])
            pipe.execute()
            return True

        if counts and not self._guarded(write, False):
            with self._lock:
                self._counts += counts  # they go with the next ones

    def _put(self, kind: str, values: Mapping[str, bytes]) -> None:
        life = self._ttl_s[kind]
        entries = {f"{CACHE}:{kind}:{name}": (data, life) for name, data in values.items()}
        waiting: dict[str, tuple[bytes, int]] | None = getattr(self._mine, "waiting", None)
        if waiting is None:
            self._write(entries)
        else:
            waiting.update(entries)

    def _write(self, values: Mapping[str, tuple[bytes, int]]) -> None:
        def write() -> None:
            pipe = self._redis.pipeline(transaction=False)
            for key, (data, life) in values.items():
                pipe.set(key, data, ex=life)
            pipe.execute()

        if values:
            self._guarded(write, None)

    def _guarded(self, question: Callable[[], Answer], otherwise: Answer) -> Answer:
        if time.monotonic() < self._away_until:
            return otherwise
        try:
            return question()
        except redis.RedisError as error:
            self._away_until = time.monotonic() + PAUSE_S
            log.warning("Working without the cache. %s", trouble(self._url, error, SETTING))
            return otherwise


def _vector_key(fingerprint: str, digest: str) -> str:
    """Name a vector by what it was made with: older releases decoded some images otherwise."""
    return f"{fingerprint}:decoding{DECODING}:{digest}"


class NoCache:
    """The cache of a process that works alone: always empty."""

    def get_vector(self, fingerprint: str, digest: str) -> Vector | None:
        return None

    def put_vectors(self, fingerprint: str, vectors: Mapping[str, Vector]) -> None:
        pass

    get_text, put_texts = get_vector, put_vectors

    def get_result(self, key: str) -> Any | None:
        return None

    def put_result(self, key: str, result: Any) -> None:
        pass

    def pipelined(self) -> AbstractContextManager[None]:
        return nullcontext()


def _hits_and_misses(stats: Any, kind: str) -> tuple[int, int]:
    hits, misses = (int(stats.get(f"{kind}.{name}".encode(), 0)) for name in ("hits", "misses"))
    return hits, misses


def result_key(version: str, fingerprint: str, digest: str, parameters: dict[str, Any]) -> str:
    """Name a query result by index version, fingerprint, content hash and parameters."""
    facts = json.dumps([version, fingerprint, digest, parameters], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()


def _vector(data: bytes | None) -> Vector | None:
    if not data or len(data) % 4:
        return None
    vector = from_bytes(data)
    # A value that is not a unit vector was not written by this module.
    return vector if abs(float(vector @ vector) - 1.0) < 1e-3 else None
