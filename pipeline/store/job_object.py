"""The JSON object of a job, for the command line and the HTTP API."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.store.job import Job, Progress
    from pipeline.store.jobs import Jobs

MEASURABLE_S = 1.0  # of worker time: of less, no stage can be told from the others


def job_object(jobs: Jobs, job_id: str) -> dict[str, Any]:
    """Return the contract's object of a job, and where its workers' time went."""
    job = to_object(jobs.get(job_id), jobs.progress(job_id))
    seconds = {
        name.removesuffix("_s"): value for name, value in asdict(jobs.timings(job_id)).items()
    }
    total = sum(seconds.values())
    slowest = max(seconds, key=lambda stage: seconds[stage])
    return {
        **job,
        "stage_seconds": {stage: round(value, 1) for stage, value in seconds.items()},
        "bottleneck": {"stage": slowest, "share": round(seconds[slowest] / total, 2)}
        if total >= MEASURABLE_S
        else None,
    }


def to_object(job: Job, progress: Progress) -> dict[str, Any]:
    """Return the contract's object of a job with its counts."""
    return {
        "job_id": job.id,
        "state": job.state,
        "stage": job.stage or None,
        "images": progress.images,
        "embedded": progress.embedded,
        "reused": progress.reused,
        "skipped": progress.skipped,
        "warnings": progress.warnings,
        "fetched": progress.fetched,
        "unchanged": progress.unchanged,
        "left_out": job.left_out,
        "index_version": job.index_version,
        "seconds": round(job.seconds, 1),
        "error": job.error,
    }
