"""The names in messages: tasks, and the queue of each. Clients import them without Celery."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.store.job import Job, Progress

EMBED, INDEX, QUERY, FETCH = "embed", "index", "query", "fetch"
QUEUES = (EMBED, INDEX, QUERY, FETCH)

EMBED_SHARD = "imgrec.embed_shard"
FETCH_SHARD = "imgrec.fetch_shard"
PLAN_FETCHED = "imgrec.plan_fetched"
MERGE_SHARDS = "imgrec.merge_shards"
SEND_WEBHOOK = "imgrec.send_webhook"
QUERY_IMAGE = "imgrec.query_image"
CLASSIFY_IMAGE = "imgrec.classify_image"
THUMBNAILS = "imgrec.thumbnails"
# The name of THUMBNAILS up to 0.1. Workers answer to both. Clients go on sending this one for a
# release: a worker of 0.1 on the same queue refuses the new name, and the query fails.
PICTURES = "imgrec.pictures"
PRODUCT = "imgrec.product"
PRODUCT_IMAGE = "imgrec.product_image"
FAILURE_IMAGE = "imgrec.failure_image"
IMAGE_VECTOR = "imgrec.image_vector"
FIND_DUPLICATES = "imgrec.find_duplicates"

# Of the messages. Raise it with a change that a worker of the last release would read wrongly; an
# addition that it may ignore needs none.
FORM = 1
FORM_HEADER = "imgrec_form"

QUEUE_OF = {
    EMBED_SHARD: EMBED,
    FETCH_SHARD: FETCH,
    PLAN_FETCHED: INDEX,
    MERGE_SHARDS: INDEX,
    SEND_WEBHOOK: INDEX,
    QUERY_IMAGE: QUERY,
    CLASSIFY_IMAGE: QUERY,
    IMAGE_VECTOR: QUERY,
    THUMBNAILS: QUERY,
    PICTURES: QUERY,
    PRODUCT: QUERY,
    PRODUCT_IMAGE: QUERY,
    FAILURE_IMAGE: QUERY,
    FIND_DUPLICATES: INDEX,
}


def queue_of_job(job: Job, progress: Progress) -> str:
    """Return the queue whose workers a job needs next."""
    if progress.shards_done == progress.shards:
        return INDEX
    return FETCH if job.stage else EMBED


def queues_of_worker(name: str) -> list[str]:
    """Read the queues from a worker's name: embed2@host, embed-index-query-4711@host."""
    parts = {part.rstrip("0123456789") for part in name.partition("@")[0].split("-")}
    return [queue for queue in QUEUES if queue in parts]


def nobody_listens(queue: str) -> str:
    """Say that no worker listens on a queue, and what to do."""
    return (
        f"No worker listens on queue '{queue}': start one with 'celery worker -Q {queue}', or all "
        "with 'imgrec up'."
    )
