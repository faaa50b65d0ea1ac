"""The task of queue `index` between fetching and embedding: what has come is planned."""

from __future__ import annotations

import logging
from functools import partial

from pipeline.errors import ServerUnavailable, UnknownJob
from pipeline.failpoints import failpoint
from pipeline.rebuild.plan import PLAN_LEASES
from pipeline.rebuild.plan_feed import plan_fetched
from pipeline.store.heartbeat import HOST, new_owner
from pipeline.store.job import PlanClaim
from pipeline.store.shards import PlanLost
from workers.after_error import carry_out
from workers.dispatch import require_names
from workers.error_policy import Attempt, Stage, decide, give_up
from workers.lease import Stopped
from workers.reconcile import advance, report_unknown_job
from workers.resources import Resources

log = logging.getLogger(__name__)


def plan(resources: Resources, job_id: str) -> None:
    """Plan the images that a job has fetched; harmless to send any number of times."""
    require_names(job_id)
    jobs = resources.jobs
    claim = None
    try:
        jobs.get(job_id).require_known_form()
        claim = jobs.claim_plan(job_id, new_owner(), PLAN_LEASES * resources.settings.lease_s)
        if claim is None:
            return
        given_up = give_up(_attempt(resources, claim))
        if given_up is not None:
            jobs.fail(job_id, given_up.reason)
            return
        failpoint("plan_fetched.after_claim")
        plan_fetched(
            claim,
            resources.settings,
            jobs,
            resources.versions,
            resources.feeds,
            lambda: _check(resources),
        )
    except UnknownJob:
        report_unknown_job(resources, job_id)
        raise
    except PlanLost as error:
        log.info("%s", error)
    except Exception as error:
        _after_error(resources, job_id, claim, error)
    else:
        log.info("The images of job %s are planned.", job_id)
        advance(resources, job_id)


def _attempt(resources: Resources, claim: PlanClaim) -> Attempt:
    return Attempt(
        stage=Stage.PLAN,
        description=f"Worker index@{HOST}: the plan of the fetched images",
        settings=resources.settings,
        number=claim.attempts,
        limit=resources.settings.shard_max_attempts,
    )


def _check(resources: Resources) -> None:
    if resources.stopping.is_set():
        raise Stopped


def _after_error(
    resources: Resources, job_id: str, claim: PlanClaim | None, error: Exception
) -> None:
    jobs = resources.jobs
    if claim is None:  # the reconciler sends it again
        log.error("The plan of job %s: %s", job_id, error)
        if not isinstance(error, ServerUnavailable):
            jobs.set_waiting_reason(job_id, str(error))
        return
    carry_out(
        resources,
        decide(error, _attempt(resources, claim)),
        error,
        job_id,
        f"The plan of job {job_id}",
        partial(jobs.release_plan, claim),
    )
