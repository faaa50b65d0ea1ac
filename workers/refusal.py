"""A worker that cannot do a job leaves it to others, and ends it where there are none."""

from __future__ import annotations

import logging
import os

from workers.resources import HOST, Resources

log = logging.getLogger(__name__)

REFUSAL_COUNTS_S = 60.0  # a worker that has refused a job and was silent since may be gone


def refuse(resources: Resources, job_id: str, queue: str, reason: str) -> bool:
    """Note that this worker cannot do a job; tell whether that has ended it.

    Raises:
        ServerUnavailable: the database or Redis does not answer.
    """
    resources.watchdog.refusal = reason
    worker = f"{HOST}:{os.getpid()}"
    refusals = resources.jobs.add_refusal(job_id, worker, reason, REFUSAL_COUNTS_S)
    if refusals.since_s < resources.dispatcher.join_s:
        return False
    nobody_left = refusals.workers >= resources.dispatcher.workers()[queue]
    return nobody_left and resources.jobs.fail_refused(job_id, reason)
