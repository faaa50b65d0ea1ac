"""The task of queue `index`: the shards of a job become the next published version."""

from __future__ import annotations

import logging

from filelock import Timeout

from pipeline.atomic_files import disk_trouble
from pipeline.errors import ImgrecError, ServerUnavailable
from pipeline.failpoints import failpoint
from pipeline.rebuild.merge import Merged, merge
from pipeline.store.jobs import Job
from workers.dispatch import require_names
from workers.lease import Lease, LeaseLost, Stopped
from workers.reconcile import advance, remove_leftovers
from workers.resources import Resources

log = logging.getLogger(__name__)

LOCK_WAIT_S = 600.0  # another merge or a rollback holds the index; then this one is tried again


def merge_shards(resources: Resources, job_id: str) -> None:
    """Publish a job whose shards are all done; harmless to send any number of times."""
    require_names(job_id)
    try:
        _merge(resources, job_id)
    except ServerUnavailable as error:
        log.error("The merge of job %s: %s", job_id, error)


def _merge(resources: Resources, job_id: str) -> None:
    jobs, settings = resources.jobs, resources.settings
    job = jobs.claim_merge(job_id, settings.lease_s)
    if job is None:
        jobs.get(job_id)  # one that is not there is an error, not a merge that is done
        return
    try:
        # A merge has no natural progress to watch, so only the process's death ends its lease.
        with Lease(
            lambda _: jobs.renew_merge_lease(job_id, settings.lease_s),
            settings.lease_s,
            float("inf"),
            stopping=resources.stopping,
            watchdog=resources.watchdog,
        ) as lease:
            merged = _publish(resources, job, lease)
    except (Stopped, LeaseLost):
        log.info("The merge of job %s stops; the reconciler resumes it if it is wanted.", job_id)
        return
    except ServerUnavailable:
        raise
    except ImgrecError as error:
        jobs.fail(job_id, str(error))
        return
    except MemoryError:
        jobs.fail(
            job_id,
            "The index does not fit into memory: raise WORKER_MAX_MEMORY for the worker on queue "
            "'index' and run the rebuild again.",
        )
        return
    except Timeout as error:  # an OSError, too
        _wait(
            resources,
            job_id,
            f"Another process, a merge or a rollback, has held the lock {error.lock_file} for "
            f"{LOCK_WAIT_S:g} s. The merge is tried again by itself.",
        )
        return
    except OSError as error:
        log.error("The merge of job %s failed.", job_id, exc_info=error)
        _wait(resources, job_id, disk_trouble(error, settings.data_dir))
        return
    except Exception as error:
        log.error("The merge of job %s failed.", job_id, exc_info=error)
        jobs.fail(job_id, f"The index could not be built: {type(error).__name__}: {error}")
        return
    for n in merged.broken:
        log.warning("Job %s: the file of shard %d is gone or changed; doing it again.", job_id, n)
        jobs.reopen_shard(job_id, n)
    if merged.version:
        failpoint("index.before_record")
        if jobs.publish(job_id, merged.version):
            log.info("Job %s published %s.", job_id, merged.version)
        else:
            log.warning(
                "Job %s was ended too late: it had already published %s, and is recorded as "
                "published.",
                job_id,
                merged.version,
            )
        remove_leftovers(resources)
    else:
        advance(resources, job_id)


def _wait(resources: Resources, job_id: str, reason: str) -> None:
    """Leave the merge to the reconciler, which sends it again when the lease has ended.

    The job's note tells those who watch why nothing moves; they may mend it or cancel the job.
    """
    log.error("The merge of job %s waits: %s", job_id, reason)
    resources.jobs.set_waiting_reason(job_id, reason)


def _publish(resources: Resources, job: Job, lease: Lease) -> Merged:
    jobs, settings, versions = resources.jobs, resources.settings, resources.versions
    guard = resources.memory_guard
    with versions.lock().acquire(timeout=LOCK_WAIT_S), guard.expect_high_usage():
        merged = merge(
            job,
            jobs.done_shards(job.id),
            settings,
            versions,
            lease.check,
            require_fit=guard.require_fit,
        )
        if merged.version:
            versions.prune(settings.keep_versions, jobs.referenced_versions())
    return merged
