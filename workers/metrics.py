"""What one worker process counts and times, served for Prometheus on METRICS_PORT."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

STAGES = {"decode": "preprocess", "cut_out": "preprocess"}  # others keep their name
SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class NoMetrics:
    """Counts nothing: METRICS_PORT is 0."""

    def start(self) -> None:
        """Serve from here on, if a port is set: asking for this object has begun it."""

    def stage(self, stage: str, seconds: float) -> None:
        """Time a stage of a shard: of `read` and `preprocess` an image, of `embed` a batch."""

    def images(self, *, embedded: int, reused: int, failed: int) -> None:
        """Count the images of a shard by outcome."""

    def fetched(self, outcome: str, n_bytes: int) -> None:
        """Count an image of a feed: fetched, unchanged, failed or delayed."""

    @contextmanager
    def query(self, stage: str) -> Iterator[None]:
        """Time a stage of a query."""
        yield


class Metrics(NoMetrics):
    """Counts in this process; names begin with `imgrec_worker_`."""

    def __init__(self, host: str, port: int) -> None:
        """Serve on a port.

        Raises:
            OSError: the port cannot be used. ImportError: the extra `web` is not installed.
        """
        from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server

        registry = CollectorRegistry()
        self._images = Counter(
            "imgrec_worker_images", "Images of shards by outcome.", ["outcome"], registry=registry
        )
        self._stages = Histogram(
            "imgrec_worker_batch_seconds",
            "Seconds by stage: read and preprocess an image, embed a batch.",
            ["stage"],
            registry=registry,
            buckets=SECONDS,
        )
        self._queries = Histogram(
            "imgrec_worker_query_seconds",
            "Seconds of a query by stage: vector, search, total.",
            ["stage"],
            registry=registry,
            buckets=SECONDS,
        )
        self._fetched = Counter(
            "imgrec_worker_fetched",
            "Images of feeds by outcome: fetched, unchanged, failed, delayed.",
            ["outcome"],
            registry=registry,
        )
        self._fetched_bytes = Counter(
            "imgrec_worker_fetched_bytes", "Bytes of fetched images.", registry=registry
        )
        start_http_server(port, host, registry)

    def stage(self, stage: str, seconds: float) -> None:
        self._stages.labels(STAGES.get(stage, stage)).observe(seconds)

    def images(self, *, embedded: int, reused: int, failed: int) -> None:
        for outcome, count in (("embedded", embedded), ("reused", reused), ("failed", failed)):
            self._images.labels(outcome).inc(count)

    def fetched(self, outcome: str, n_bytes: int) -> None:
        self._fetched.labels(outcome).inc()
        if outcome == "fetched":
            self._fetched_bytes.inc(n_bytes)

    @contextmanager
    def query(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._queries.labels(stage).observe(time.perf_counter() - start)


def serve_metrics(host: str, port: int) -> NoMetrics:
    """Return what counts; a worker whose port cannot be used works without, and says so."""
    if not port:
        return NoMetrics()
    try:
        return Metrics(host, port)
    except OSError as error:
        reason = error.strerror or str(error)
        log.error("METRICS_PORT: no metrics are served on %s:%d: %s.", host, port, reason)
    except ImportError as error:
        log.error("METRICS_PORT: %s is not installed, see the extra 'web'.", error.name)
    return NoMetrics()
