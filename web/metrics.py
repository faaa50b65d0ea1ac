"""Metrics for Prometheus: of this process, and of the whole at the time of a scrape."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import redis
from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric

from pipeline.errors import ImgrecError
from pipeline.index.version_object import version_object
from pipeline.store.heartbeat import read_heartbeats
from pipeline.store.redis_client import PREFIX, connect
from pipeline.store.shards import LEASE_EXPIRIES
from web.access import Searcher
from web.context import Web, web_of
from web.responses import problems
from workers.routes import QUEUES

router = APIRouter()
STATES = ("planned", "running", "merging", "published", "failed", "cancelled")
REDIS_S = 2.0


@router.get("/metrics", responses={200: {"content": {"text/plain": {}}}, **problems(503)})
async def metrics(request: Request, client: Searcher) -> Response:
    """Return all metrics in the text format of Prometheus."""
    web = web_of(request)
    try:
        workers = dict(await web.answers.workers())
    except ImgrecError:
        workers = None
    text = await asyncio.to_thread(_scrape, web, workers)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})


def _scrape(web: Web, workers: dict[str, int] | None) -> bytes:
    registry = CollectorRegistry()
    registry.register(Scrape(web, workers))
    return generate_latest(web.metrics.registry) + generate_latest(registry)


class Scrape:
    """Reads the job table, Redis, the cache, the index and the heartbeats, once.

    A source that cannot be read has `imgrec_source_up` 0; the others are there all the same.
    """

    def __init__(self, web: Web, workers: dict[str, int] | None) -> None:
        self._web = web
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("imgrec_source_up", "Whether a source was read.", labels=["source"])
        sources: dict[str, Callable[[], list[Metric]]] = {
            "database": self._database,
            "redis": self._redis,
            "cache": self._cache,
            "index": self._index,
            "heartbeats": self._heartbeats,
        }
        for name, read in sources.items():
            try:
                metrics = read()
            except (ImgrecError, redis.RedisError, OSError):
                up.add_metric([name], 0)
                continue
            up.add_metric([name], 1)
            yield from metrics
        waiting = GaugeMetricFamily("imgrec_queries_waiting", "Queries that wait for an answer.")
        waiting.add_metric([], self._web.answers.waiting)
        yield waiting
        yield up

    def _database(self) -> list[Metric]:
        statistics = self._web.resources.jobs.statistics()
        jobs = GaugeMetricFamily("imgrec_jobs", "Jobs by state.", labels=["state"])
        for state in STATES:
            jobs.add_metric([state], statistics["jobs"].get(state, 0))
        images = CounterMetricFamily(
            "imgrec_images", "Images of all jobs by outcome.", labels=["outcome"]
        )
        for outcome, count in statistics["images"].items():
            images.add_metric([outcome], count)
        failures = CounterMetricFamily(
            "imgrec_failures", "Images that were left out, by stage.", labels=["stage"]
        )
        for stage, count in statistics["failures"].items():
            failures.add_metric([stage], count)
        leases = CounterMetricFamily(
            "imgrec_lease_expiries", "Shards that were taken from a worker without a heartbeat."
        )
        leases.add_metric([], self._web.resources.database.revision(LEASE_EXPIRIES))
        return [jobs, images, failures, leases]

    def _redis(self) -> list[Metric]:
        length = GaugeMetricFamily(
            "imgrec_queue_messages", "Messages that no worker has taken.", labels=["queue"]
        )
        age = GaugeMetricFamily(
            "imgrec_queue_oldest_seconds", "Age of the oldest message.", labels=["queue"]
        )
        workers = GaugeMetricFamily("imgrec_workers", "Workers that answer.", labels=["queue"])
        client = connect(self._web.settings.redis_url, REDIS_S)
        try:
            for queue in QUEUES:
                length.add_metric([queue], float(client.llen(f"{PREFIX}{queue}")))
                oldest = client.lindex(f"{PREFIX}{queue}", -1)
                age.add_metric([queue], _age_s(oldest))
        finally:
            client.close()
        if self._workers is not None:
            for queue in QUEUES:
                workers.add_metric([queue], self._workers.get(queue, 0))
        return [length, age, workers]

    def _cache(self) -> list[Metric]:
        hits = CounterMetricFamily("imgrec_cache_hits", "Hits of the cache.", labels=["kind"])
        misses = CounterMetricFamily("imgrec_cache_misses", "Misses of the cache.", labels=["kind"])
        for kind, (n_hits, n_misses) in self._web.resources.shared_cache.counts().items():
            hits.add_metric([kind], n_hits)
            misses.add_metric([kind], n_misses)
        return [hits, misses]

    def _index(self) -> list[Metric]:
        version = self._web.resources.versions.current()
        facts = version_object(version, version.name)
        info = GaugeMetricFamily(
            "imgrec_index_info", "The published index version.", labels=["version", "index"]
        )
        info.add_metric([version.name, facts["index"]], 1)
        values = {
            "imgrec_index_images": ("Images in the published index.", facts["images"]),
            "imgrec_index_bytes": ("Size of its files.", facts["bytes"]),
            "imgrec_index_age_seconds": ("Its age.", time.time() - facts["created_at"]),
        }
        gauges: list[Metric] = [info]
        for name, (text, value) in values.items():
            gauge = GaugeMetricFamily(name, text)
            gauge.add_metric([], value)
            gauges.append(gauge)
        return gauges

    def _heartbeats(self) -> list[Metric]:
        age = GaugeMetricFamily(
            "imgrec_heartbeat_age_seconds",
            "Since the last heartbeat of a worker on this machine.",
            labels=["worker"],
        )
        healthy = GaugeMetricFamily(
            "imgrec_worker_healthy", "Whether a worker on this machine is well.", labels=["worker"]
        )
        for worker in read_heartbeats(self._web.settings.run_dir):
            age.add_metric([worker.name], worker.age_s)
            healthy.add_metric([worker.name], 0 if worker.problem else 1)
        return [age, healthy]


def _age_s(message: Any) -> float:
    """Return the age of a message; 0 without one, or of a release that wrote no time."""
    if message is None:
        return 0.0
    try:
        sent_at = float(json.loads(message)["headers"]["sent_at"])
    except (ValueError, KeyError, TypeError):
        return 0.0
    return max(0.0, time.time() - sent_at)
