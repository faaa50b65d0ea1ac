"""The task of queue `index`: the shards of a job become the next published version.

Read downward: claim -> publish (lock, merge, prune) -> record.
"""

from __future__ import annotations

import logging
import uuid

from pipeline.errors import ServerUnavailable
from pipeline.failpoints import failpoint
from pipeline.rebuild.merge import Merged, merge
from pipeline.store.jobs import Job, MergeClaim
from workers.dispatch import require_names
from workers.error_policy import Attempt, Drop, Fail, Release, Stage, Wait, decide
from workers.lease import Lease
from workers.reconcile import advance, remove_leftovers
from workers.resources import HOST, Resources

log = logging.getLogger(__name__)

LOCK_WAIT_S = 600.0  # another merge or a rollback holds the index; then this one is tried again


def merge_shards(resources: Resources, job_id: str) -> None:
    """Publish a job whose shards are all done; harmless to send any number of times."""
    require_names(job_id)
    try:
        claim = _claim(resources, job_id)
        if claim is not None:
            _merge(resources, claim)
    except ServerUnavailable as error:
        # The reconciler sends the merge again when the server answers again.
        log.error("The merge of job %s: %s", job_id, error)


def _claim(resources: Resources, job_id: str) -> MergeClaim | None:
    owner = f"{HOST}:{uuid.uuid4().hex[:8]}"
    claim = resources.jobs.claim_merge(job_id, owner, resources.settings.lease_s)
    if claim is None:
        resources.jobs.get(job_id)  # an unknown job is an error, not a merge that is done
    return claim


def _merge(resources: Resources, claim: MergeClaim) -> None:
    try:
        with resources.leases.hold(claim) as lease:
            merged = _publish(resources, claim.job, lease)
    except Exception as error:
        _after_error(resources, claim, error)
    else:
        _record(resources, claim.job.id, merged)


def _publish(resources: Resources, job: Job, lease: Lease) -> Merged:
    jobs, settings, versions = resources.jobs, resources.settings, resources.versions
    guard = resources.memory_guard
    with versions.lock().acquire(timeout=LOCK_WAIT_S), guard.expect_high_usage():
        merged = merge(
            job,
            jobs.shards.done(job.id),
            settings,
            versions,
            lease.check,
            later_jobs=jobs.created_after(job.id),
            require_fit=guard.require_fit,
        )
        if merged.version:
            versions.prune(settings.keep_versions, jobs.referenced_versions())
    return merged


def _record(resources: Resources, job_id: str, merged: Merged) -> None:
    for n in merged.broken:
        log.warning("Job %s: the file of shard %d is gone or changed; doing it again.", job_id, n)
        resources.jobs.shards.reopen(job_id, n)
    if not merged.version:
        advance(resources, job_id)
        return
    failpoint("index.before_record")
    if resources.jobs.publish(job_id, merged.version):
        log.info("Job %s published %s.", job_id, merged.version)
    else:
        log.warning(
            "Job %s was ended too late: it had already published %s, and is recorded as published.",
            job_id,
            merged.version,
        )
    remove_leftovers(resources)


def _after_error(resources: Resources, claim: MergeClaim, error: Exception) -> None:
    jobs, job_id = resources.jobs, claim.job.id
    attempt = Attempt(
        stage=Stage.MERGE,
        description=f"Worker index@{HOST}: the merge",
        settings=resources.settings,
        number=claim.attempts + 1,
        limit=resources.settings.shard_max_attempts,
    )
    decision = decide(error, attempt)
    match decision:
        case Drop():
            log.info("The merge of job %s is no longer ours.", job_id)
        case Release():
            if decision.at_once:
                log.info("The merge of job %s goes back to the queue: this worker ends.", job_id)
            else:
                log.error("The merge of job %s failed; it is sent again.", job_id, exc_info=error)
            jobs.release_merge(claim, count_attempt=decision.count_attempt)
            if decision.reason:
                jobs.set_waiting_reason(job_id, decision.reason)
        case Wait():
            log.error("The merge of job %s waits: %s", job_id, decision.reason)
            jobs.release_merge(claim, count_attempt=False)
            jobs.set_waiting_reason(job_id, decision.reason)
        case Fail():
            log.error("The merge of job %s failed.", job_id, exc_info=error)
            jobs.fail(job_id, decision.reason)
