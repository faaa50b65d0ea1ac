"""The task of queue `index`: the shards of a job become the next published version.

Read downward: claim -> publish (lock, merge) -> record -> prune.
"""

from __future__ import annotations

import logging
import time
from functools import partial

from filelock import Timeout

from pipeline.errors import ObjectConflict, SetupError
from pipeline.failpoints import failpoint
from pipeline.rebuild.merge import Merged, merge
from pipeline.store.heartbeat import HOST, new_owner
from pipeline.store.job import Job, MergeClaim
from workers.after_error import carry_out
from workers.dispatch import require_names
from workers.error_policy import Attempt, Stage, Wait, decide, give_up
from workers.lease import Lease
from workers.prune import prune_after_publishing
from workers.reconcile import advance
from workers.refusal import outside_claim
from workers.resources import Resources
from workers.routes import INDEX

log = logging.getLogger(__name__)

# A merge that waits for somebody to mend a store or a disk builds the whole index each time: it
# pauses so many times as long as it took.
PAUSE = 4.0
MAX_PAUSE_S = 600.0
LOCK_WAIT_S = 600.0  # another merge or a rollback holds the index; then this one is tried again


def merge_shards(resources: Resources, job_id: str) -> None:
    """Publish a job whose shards are all done; harmless to send any number of times."""
    require_names(job_id)
    with outside_claim(resources, job_id, INDEX, f"The merge of job {job_id}"):
        claim = _claim(resources, job_id)
        if claim is not None:
            _merge(resources, claim)


def _claim(resources: Resources, job_id: str) -> MergeClaim | None:
    try:
        resources.jobs.get(job_id).require_known_form()
    except SetupError as error:  # a newer index worker takes it
        log.error("The merge of job %s is left alone: %s", job_id, error)
        resources.jobs.set_waiting_reason(job_id, str(error))
        return None
    return resources.jobs.claim_merge(job_id, new_owner(), resources.settings.lease_s)


def _merge(resources: Resources, claim: MergeClaim) -> None:
    given_up = give_up(_attempt(resources, claim))
    if given_up is not None:
        log.error("Job %s: %s", claim.job.id, given_up.reason)
        resources.jobs.fail(claim.job.id, given_up.reason)
        return
    began = time.monotonic()
    try:
        resources.watchdog.refusal = ""
        with resources.leases.hold(claim) as lease:
            merged = _publish(resources, claim.job, lease)
        _record(resources, claim, merged)
    except Exception as error:
        decision = decide(error, _attempt(resources, claim))
        # While another process held the lock, nothing was built.
        paused = isinstance(decision, Wait) and not isinstance(error, Timeout)
        pause_s = min(MAX_PAUSE_S, PAUSE * (time.monotonic() - began)) if paused else 0.0
        carry_out(
            resources,
            decision,
            error,
            claim.job.id,
            f"The merge of job {claim.job.id}",
            partial(resources.jobs.release_merge, claim, pause_s=pause_s),
        )
    else:  # outside of what counts as an attempt: the job is done
        if merged.version:
            prune_after_publishing(resources)


def _publish(resources: Resources, job: Job, lease: Lease) -> Merged:
    jobs, settings, versions = resources.jobs, resources.settings, resources.versions
    guard = resources.memory_guard
    with versions.lock().acquire(timeout=LOCK_WAIT_S), guard.expect_high_usage():
        while True:
            # Before the job table is asked: who publishes after this is noticed.
            seen = versions.pointer_stamp()
            try:
                return merge(
                    job,
                    jobs.shards.done(job.id),
                    settings,
                    versions,
                    lease.check,
                    engines=resources.engines,
                    later_jobs=jobs.created_after(job.id),
                    require_fit=guard.require_fit,
                    files=resources.shard_files,
                    seen=seen,
                )
            except ObjectConflict:
                log.info("Job %s: another host has published meanwhile; looking again.", job.id)
                lease.check()


def _record(resources: Resources, claim: MergeClaim, merged: Merged) -> None:
    job_id = claim.job.id
    if not merged.version:
        if resources.jobs.reopen_shards(claim, merged.broken):
            log.warning(
                "Job %s: the files of shards %s are gone or changed; doing them again.",
                job_id,
                merged.broken,
            )
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


def _attempt(resources: Resources, claim: MergeClaim) -> Attempt:
    return Attempt(
        stage=Stage.MERGE,
        description=f"Worker index@{HOST}: the merge",
        settings=resources.settings,
        number=claim.attempts,
        limit=resources.settings.shard_max_attempts,
    )
