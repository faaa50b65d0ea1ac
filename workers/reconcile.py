"""What comes next in a job: send shards, send the merge, send again what got lost.

Each function may run anywhere, any number of times and at once: the job table decides, messages are
hints.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

import redis

from pipeline.errors import ServerUnavailable, quote
from pipeline.failpoints import failpoint
from pipeline.images.fetched import feed_name
from pipeline.store.job import FETCHING, Job
from workers.routes import (
    EMBED,
    EMBED_SHARD,
    FETCH,
    FETCH_SHARD,
    INDEX,
    MERGE_SHARDS,
    PLAN_FETCHED,
    QUEUE_OF,
    SEND_WEBHOOK,
)

if TYPE_CHECKING:
    from workers.resources import Resources

log = logging.getLogger(__name__)

MAX_FAILED_LOOKS = 10  # one after the other, by one process
WEBHOOK_LEASE_S = 60.0  # a webhook whose worker recorded no attempt is sent again
# A queued shard that was not taken for so long has lost its message: where the queue is empty, and
# where it has fewer messages than shards wait for one. Which of them are lost cannot be told then,
# so all are sent again: a second message of a shard does nothing.
LOST_AFTER_S = 5.0
LOST_BESIDE_OTHERS_AFTER_S = 60.0


def advance(resources: Resources, job_id: str) -> None:
    """Send the next shards of a job, or its merge when no shard is left.

    Raises:
        ServerUnavailable: Redis does not take messages; the shards stay marked and are sent again.
    """
    jobs = resources.jobs
    task = _task_of(jobs.get(job_id))  # before the window, which then has shards of this stage
    window = jobs.shards.next_window(job_id, resources.settings.max_shards_in_flight)
    failpoint("flow.before_send")
    _send_shards(resources, task, job_id, window)
    if task == FETCH_SHARD and jobs.ready_to_plan(job_id):
        resources.dispatcher.send(PLAN_FETCHED, job_id)
    elif jobs.ready_to_merge(job_id):
        resources.dispatcher.send(MERGE_SHARDS, job_id)


def reconcile(resources: Resources) -> None:
    """Look at every open job once and set going what stands still."""
    jobs = resources.jobs
    jobs.fail_abandoned_plans()
    for job_id in resources.webhooks.take_due(WEBHOOK_LEASE_S):
        resources.dispatcher.send(SEND_WEBHOOK, job_id)
    for job in jobs.open_jobs():
        if not job.plan_done and not job.stage:
            continue
        try:
            _look_after(resources, job)
            resources.failed_looks.pop(job.id, None)
        except ServerUnavailable:
            raise
        except Exception as error:  # one job's trouble must not stop the others for ever
            _count_failed_look(resources, job.id, error)


def _look_after(resources: Resources, job: Job) -> None:
    shards, job_id, task = resources.jobs.shards, job.id, _task_of(job)
    freed = shards.free_expired(job_id)
    if freed:
        log.warning("Job %s: the workers of shards %s are gone; sending again.", job_id, freed)
    n_messages = resources.dispatcher.queue_length(QUEUE_OF[task])
    if n_messages == 0:
        _send_shards(resources, task, job_id, shards.requeue_lost(job_id, LOST_AFTER_S))
    elif n_messages < shards.count_queued("fetch" if task == FETCH_SHARD else "embed"):
        lost = shards.requeue_lost(job_id, LOST_BESIDE_OTHERS_AFTER_S)
        _send_shards(resources, task, job_id, lost)
    advance(resources, job_id)


def queues_of_rebuild(root: str) -> tuple[str, ...]:
    """Return the queues whose workers a rebuild of a folder, a store or a feed needs."""
    return (EMBED, INDEX) if feed_name(root) is None else (FETCH, EMBED, INDEX)


def _task_of(job: Job) -> str:
    """Return the task of the shards that a job has now."""
    return FETCH_SHARD if job.stage == FETCHING else EMBED_SHARD


def _count_failed_look(resources: Resources, job_id: str, error: Exception) -> None:
    log.exception("Job %s cannot be looked after.", job_id)
    resources.failed_looks[job_id] += 1
    if resources.failed_looks[job_id] > MAX_FAILED_LOOKS:
        line = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
        resources.jobs.fail(job_id, f"The job could not be continued: {line}")


def report_unknown_job(resources: Resources, job_id: str) -> None:
    """Say at once, in the log and to whoever waits, that a message names a job of elsewhere."""
    identity = resources.identifier.read("database")
    sentence = (
        f"A worker on {identity.host} was sent job {quote(job_id)}, which its database "
        f"{identity.database.where} does not have: the command that planned it has another "
        "DATABASE_URL (a relative path is another file in each folder), or the database was "
        "replaced since."
    )
    log.error("%s The message is dropped.", sentence)
    if resources.dispatcher.registry is not None:
        try:
            resources.dispatcher.registry.report_unknown_job(job_id, sentence)
        except redis.RedisError as error:
            log.warning("This could not be reported over Redis: %s", error)


def _send_shards(resources: Resources, task: str, job_id: str, numbers: Sequence[int]) -> None:
    """Send one message a shard."""
    for n in numbers:
        resources.dispatcher.send(task, job_id, n)
