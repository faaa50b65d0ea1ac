"""What comes next in a job: send shards, send the merge, send again what got lost.

Each function may run anywhere, any number of times and at once: the job table decides, messages are
hints.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.failpoints import failpoint
from workers.routes import EMBED, EMBED_SHARD, MERGE_SHARDS, SEND_WEBHOOK

if TYPE_CHECKING:
    from workers.resources import Resources

log = logging.getLogger(__name__)

WEBHOOK_LEASE_S = 60.0  # a webhook whose worker recorded no attempt is sent again
LOST_AFTER_S = 5.0  # a queued shard without a message: the queue is empty and it was not taken


def advance(resources: Resources, job_id: str) -> None:
    """Send the next shards of a job, or its merge when no shard is left.

    Raises:
        ServerUnavailable: Redis does not take messages; the shards stay marked and are sent again.
    """
    jobs = resources.jobs
    window = jobs.shards.next_window(job_id, resources.settings.max_shards_in_flight)
    failpoint("flow.before_send")
    _send_shards(resources, job_id, window)
    if jobs.ready_to_merge(job_id):
        resources.dispatcher.send(MERGE_SHARDS, job_id)


def reconcile(resources: Resources) -> None:
    """Look at every open job once and set going what stands still."""
    jobs = resources.jobs
    jobs.fail_abandoned_plans()
    for job_id in resources.webhooks.take_due(WEBHOOK_LEASE_S):
        resources.dispatcher.send(SEND_WEBHOOK, job_id)
    for job in jobs.open_jobs():
        if not job.plan_done:
            continue
        freed = jobs.shards.free_expired(job.id)
        if freed:
            log.warning("Job %s: the workers of shards %s are gone; sending again.", job.id, freed)
        if resources.dispatcher.queue_length(EMBED) == 0:
            _send_shards(resources, job.id, jobs.shards.requeue_lost(job.id, LOST_AFTER_S))
        advance(resources, job.id)


def remove_leftovers(resources: Resources) -> None:
    """Delete the plans and shard files of jobs that have ended."""
    jobs, folder = resources.jobs, resources.settings.jobs_dir
    jobs.drop_items()
    if not folder.is_dir():
        return
    # The folders first: a job that is created meanwhile is then open, or its folder is not listed.
    children = list(folder.iterdir())
    still_open = {job.id for job in jobs.open_jobs()}
    for child in children:
        if child.name not in still_open:
            shutil.rmtree(child, ignore_errors=True)


def _send_shards(resources: Resources, job_id: str, numbers: Sequence[int]) -> None:
    """Send one message a shard."""
    for n in numbers:
        resources.dispatcher.send(EMBED_SHARD, job_id, n)
