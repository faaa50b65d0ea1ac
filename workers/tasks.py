"""Celery's tasks: each hands the process's resources to the function that does the work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import shared_task
from celery.app.task import Task

from pipeline.access import explain, is_unavailable
from pipeline.errors import ImgrecError, ServerUnavailable
from workers import (
    duplicates,
    embed,
    fetch,
    index,
    plan_fetched,
    product_images,
    query,
    routes,
    webhooks,
)
from workers.resources import Resources, process_resources


@shared_task(name=routes.EMBED_SHARD, throws=(ImgrecError,))
def embed_shard(job_id: str, n: int) -> None:
    embed.embed(process_resources(), job_id, n)


@shared_task(name=routes.FETCH_SHARD, throws=(ImgrecError,))
def fetch_shard(job_id: str, n: int) -> None:
    fetch.fetch(process_resources(), job_id, n)


@shared_task(name=routes.PLAN_FETCHED, throws=(ImgrecError,))
def plan_images(job_id: str) -> None:
    plan_fetched.plan(process_resources(), job_id)


@shared_task(name=routes.MERGE_SHARDS, throws=(ImgrecError,))
def merge_shards(job_id: str) -> None:
    index.merge_shards(process_resources(), job_id)


@shared_task(name=routes.SEND_WEBHOOK, throws=(ImgrecError,))
def send_webhook(job_id: str) -> None:
    webhooks.send_webhook(process_resources(), job_id)


@shared_task(name=routes.FIND_DUPLICATES, throws=(ImgrecError,))
def find_duplicates(search_id: str) -> None:
    duplicates.find_duplicates(process_resources(), search_id)


@shared_task(name=routes.QUERY_IMAGE, bind=True, throws=(ImgrecError,))
def query_image(
    self: Task, data: bytes, top_k: int, options: dict[str, Any] | None = None
) -> dict[str, Any]:
    with _deadline(self) as resources, resources.metrics.query("total"):
        return query.query_image(resources, data, top_k, options, query_id=self.request.id)


@shared_task(name=routes.CLASSIFY_IMAGE, bind=True, throws=(ImgrecError,))
def classify_image(self: Task, data: bytes, use_trained: bool = False) -> dict[str, Any]:
    with _deadline(self) as resources:
        return query.classify_image(resources, data, use_trained, query_id=self.request.id)


@shared_task(name=routes.IMAGE_VECTOR, bind=True, throws=(ImgrecError,))
def image_vector(self: Task, data: bytes) -> dict[str, Any]:
    with _deadline(self) as resources:
        return query.image_vector(resources, data, query_id=self.request.id)


@shared_task(name=routes.THUMBNAILS, bind=True, throws=(ImgrecError,))
def thumbnails(self: Task, version: str, filenames: list[str]) -> dict[str, str]:
    with _deadline(self) as resources:
        return product_images.thumbnails(resources, version, filenames)


@shared_task(name=routes.PICTURES, bind=True, throws=(ImgrecError,))
def pictures(self: Task, version: str, filenames: list[str]) -> dict[str, str]:
    """Answer clients that know `thumbnails` by its old name."""
    with _deadline(self) as resources:
        return product_images.thumbnails(resources, version, filenames)


@shared_task(name=routes.PRODUCT, bind=True, throws=(ImgrecError,))
def product(self: Task, product_id: str) -> dict[str, Any]:
    with _deadline(self) as resources:
        return product_images.product(resources, product_id)


@shared_task(name=routes.PRODUCT_IMAGE, bind=True, throws=(ImgrecError,))
def product_image(self: Task, product_id: str, side: int) -> dict[str, Any]:
    with _deadline(self) as resources:
        return product_images.product_image(resources, product_id, side)


@shared_task(name=routes.FAILURE_IMAGE, bind=True, throws=(ImgrecError,))
def failure_image(self: Task, job_id: str, path: str, side: int) -> dict[str, str | None]:
    with _deadline(self) as resources:
        return product_images.failure_image(resources, job_id, path, side)


@contextmanager
def _deadline(task: Task) -> Iterator[Resources]:
    """Lend the process's resources to a query, watch it, and explain a folder it may not read.

    A shard has its lease, a merge no limit, and both the table of `error_policy`.
    """
    resources = process_resources()
    name = f"{task.name} {task.request.id}"
    with resources.watchdog.deadline(name, resources.settings.hung_after_s):
        try:
            yield resources
        except OSError as error:
            if not is_unavailable(error):
                raise
            # As its parent, which a client of the last release knows, too.
            raise ServerUnavailable(str(explain(error, resources.settings))) from error
