"""Workers and a planner that do everything but look at pictures: what is left is the queue's cost.

`celery worker -Q embed --include noop_worker` serves shards without a model and without files;
`python noop_worker.py N FOLDER` plans N images that exist in name only, and sends the first shards.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from pipeline.embed.embed_images import ShardResult
from pipeline.embed.shards import ShardVectors
from pipeline.images.find import ImageFile

DIM = 512
MIDDLES = np.random.default_rng(0).standard_normal((300, DIM), np.float32)


def embed_nothing(
    root: Path, images: Sequence[ImageFile], tools: Any, cache: Any, *, check: Any, save: Any
) -> ShardResult:
    """Return unit vectors and hashes that follow from the paths, at next to no cost."""
    first = int(images[0].path.rpartition("-")[2].partition(".")[0])
    rng = np.random.default_rng(first)
    # About a few hundred middles, as products lie: of noise alone an index would have no lists.
    vectors = 0.3 * rng.standard_normal((len(images), DIM), np.float32)
    vectors += MIDDLES[rng.integers(len(MIDDLES), size=len(images))]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    check(len(images))
    hashes = [hashlib.sha256(image.path.encode()).hexdigest() for image in images]
    positions = np.arange(len(images), dtype=np.int32)
    shard = ShardVectors(positions, np.array(hashes, "S64"), vectors)
    return ShardResult(vectors=shard, embedded=len(images))


def names(count: int) -> Iterator[ImageFile]:
    for number in range(count):
        yield ImageFile(f"kind{number // 10_000:04d}/product-{number:08d}.jpg", 5000, number)


def plan(count: int, folder: Path) -> None:
    import harness
    from celery import current_app

    import pipeline.images.source
    import pipeline.rebuild.plan
    from cli.wiring import Wiring
    from workers.reconcile import advance

    pipeline.images.source.find_images = lambda root, *more: names(count)
    current_app.loader.import_default_modules()
    resources = Wiring().resources
    start, cpu = time.perf_counter(), time.process_time()
    base = harness.anonymous_bytes()
    most = 0

    def listed(_: int) -> None:
        nonlocal most
        most = max(most, harness.anonymous_bytes())

    job_id = pipeline.rebuild.plan.plan_rebuild(
        folder, resources.settings, resources.jobs, resources.versions, full=True, listed=listed
    )
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    advance(resources, job_id)
    report = {"job": job_id, "seconds": seconds, "cpu": cpu, "bytes": max(0, most - base)}
    print(json.dumps(report))


if __name__ == "__main__":
    plan(int(sys.argv[1]), Path(sys.argv[2]))
else:
    import workers.embed
    from workers.resources import process_resources

    process_resources().clip = SimpleNamespace(dim=DIM)
    process_resources().embedder = None
    workers.embed.embed_shard = embed_nothing
