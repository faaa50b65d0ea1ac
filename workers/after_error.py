"""Do with work what the error policy says: give it back, leave it to others, or end its job."""

from __future__ import annotations

import logging
from collections.abc import Callable

from pipeline.store.heartbeat import HOST
from pipeline.store.shards import Claim
from workers.error_policy import (
    Attempt,
    Decision,
    Drop,
    Fail,
    Refuse,
    Release,
    Stage,
    Wait,
    decide,
    unforeseen,
)
from workers.outage import wait_out
from workers.reconcile import advance
from workers.refusal import refuse
from workers.resources import Resources
from workers.routes import QUEUE_OF

log = logging.getLogger(__name__)


def after_shard_error(
    resources: Resources, task: str, job_id: str, n: int, claim: Claim | None, error: Exception
) -> None:
    """Do with a shard what follows from an error.

    Args:
        task: the one that embeds or fetches the shard.
        claim: None where the error came before the shard was claimed.
    """
    queue, shard = QUEUE_OF[task], f"Shard {n} of job {job_id}"
    guard, settings = resources.memory_guard, resources.settings
    attempt = Attempt(
        stage=Stage.LOAD if claim is None else Stage.SHARD,
        description=f"Worker {queue}@{HOST}: shard {n}",
        settings=settings,
        number=claim.attempts if claim else 0,
        limit=settings.shard_max_attempts,
        lacks_memory=guard.shutting_down.is_set() or guard.budget.over_limit(),
    )
    decision = decide(error, attempt)
    if isinstance(decision, Refuse):
        reason = f"Worker {queue}@{HOST} cannot do this job: {decision.reason}"
        log.error("%s is refused: %s", shard, reason)
        if not refuse(resources, job_id, queue, reason):
            resources.dispatcher.send(task, job_id, n)
            resources.dispatcher.pause_for_others(resources.stopping)
        return

    def release(*, count_attempt: bool) -> bool:
        if claim is None:
            return True
        return resources.jobs.shards.release(claim, count_attempt=count_attempt)

    carry_out(resources, decision, error, job_id, shard, release)


def carry_out(
    resources: Resources,
    decision: Decision,
    error: Exception,
    job_id: str,
    work: str,
    release: Callable[..., bool],
) -> None:
    """Do with claimed work what was decided.

    Args:
        work: its name in the log, e.g. "Shard 3 of job J".
        release: gives the claim back; has the argument `count_attempt`, and returns whether the
            work was still this process's. It is called until the database is there: this process
            has not died of the work.
    """
    jobs = resources.jobs

    def give_back(*, count_attempt: bool) -> bool:
        return wait_out(resources.stopping, lambda: release(count_attempt=count_attempt))

    match decision:
        case Drop():
            log.info("%s is no longer ours.", work)
        case Release():
            give_back(count_attempt=decision.count_attempt)
            if decision.at_once:
                log.info("%s goes back to the queue: this worker ends.", work)
                advance(resources, job_id)
            elif decision.end_worker:
                log.error("%s lacks memory; the next worker has more.", work)
                resources.memory_guard.end_worker()
            else:  # the reconciler sends it after a pause
                log.error("%s failed and is tried again.", work, exc_info=error)
            if decision.reason:
                jobs.set_waiting_reason(job_id, decision.reason)
        case Wait():
            log.error("%s waits: %s", work, decision.reason)
            give_back(count_attempt=False)
            jobs.set_waiting_reason(job_id, decision.reason)
        case Fail() | Refuse():
            log.error("%s failed: %s", work, decision.reason, exc_info=unforeseen(error))
            if give_back(count_attempt=True):
                jobs.fail(job_id, decision.reason)
            else:  # the lease ended, and another worker may be doing it well
                log.info("%s is no longer ours.", work)
