"""A worker that cannot do a job leaves it to others, and ends it where there are none."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import ServerUnavailable, UnknownJob
from pipeline.store.heartbeat import HOST
from workers.error_policy import describe
from workers.reconcile import report_unknown_job
from workers.resources import Resources

log = logging.getLogger(__name__)

REFUSAL_COUNTS_S = 60.0  # a worker that has refused a job and was silent since may be gone


def refuse(resources: Resources, job_id: str, queue: str, reason: str) -> bool:
    """Note that this worker cannot do a job; tell whether that has ended it.

    Raises:
        ServerUnavailable: the database or Redis does not answer.
    """
    resources.watchdog.refusal = reason
    dispatcher = resources.dispatcher
    refusals = resources.jobs.add_refusal(job_id, resources.worker_name, reason, REFUSAL_COUNTS_S)
    if refusals.since_s < dispatcher.join_s:
        return False
    # By their names: one that is started again and again refuses under a new name each time.
    present = {name for name, queues in dispatcher.worker_queues().items() if queue in queues}
    # A look that does not even find this worker, on a busy machine, does not show that no other is.
    if resources.worker_name not in present or not present <= refusals.workers:
        return False
    return resources.jobs.fail_refused(job_id, reason)


@contextmanager
def outside_claim(resources: Resources, job_id: str, queue: str, work: str) -> Iterator[None]:
    """End what is met before work was claimed, or while its error was recorded.

    Args:
        work: what is done, for the log, e.g. "Shard 3 of job J".

    Raises:
        UnknownJob: the database has no such job; whoever waits for it is told, too.
    """
    try:
        yield
    except UnknownJob:
        report_unknown_job(resources, job_id)
        raise
    except ServerUnavailable as error:
        # The lease or the reconciler brings the work back when the server answers again.
        log.error("%s: %s", work, error)
    except Exception as error:
        log.exception("%s", work)
        refuse(
            resources, job_id, queue, f"Worker {queue}@{HOST} cannot do this job: {describe(error)}"
        )
