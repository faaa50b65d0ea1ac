"""The task of queue `embed`: one shard of images becomes one file of vectors."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from pipeline.atomic_files import DISK_FULL, disk_trouble, write_atomic
from pipeline.embed.embed_images import ShardResult, embed_isolated, embed_shard
from pipeline.embed.shards import write_shard
from pipeline.errors import BadImage, ImgrecError, ServerUnavailable, SetupError
from pipeline.failpoints import failpoint
from pipeline.images.decode import encode_jpeg
from pipeline.images.find import require_allowed
from pipeline.store.jobs import Claim, Job
from workers.dispatch import require_names
from workers.lease import Lease, LeaseLost, Stopped
from workers.reconcile import advance
from workers.resources import HOST, Resources
from workers.routes import EMBED

log = logging.getLogger(__name__)

MAX_CRASHES = 2  # an image that ran alone in so many dying workers is left out
PATIENCE_S = 1.0  # between two tries to reach the database


def embed(resources: Resources, job_id: str, n: int) -> None:
    """Embed shard `n` of a job; do nothing when it is done, taken, or its job has ended."""
    require_names(job_id, n)
    try:
        _embed(resources, job_id, n)
    except ServerUnavailable as error:
        # The lease or the reconciler brings the shard back when the server is there again.
        log.error("Shard %d of job %s: %s", n, job_id, error)


def _embed(resources: Resources, job_id: str, n: int) -> None:
    failpoint("embed.before_claim")
    jobs, settings = resources.jobs, resources.settings
    job = jobs.get(job_id)
    if not job.open or not _ready(resources, job):
        return
    claim = jobs.claim_shard(job_id, n, f"{HOST}:{uuid.uuid4().hex[:8]}", settings.lease_s)
    if claim is None:
        return
    failpoint("embed.after_claim")
    try:
        with Lease(
            lambda progress: jobs.renew_lease(claim, progress, settings.lease_s),
            settings.lease_s,
            settings.hung_after_s,
            f"shard {n} of job {job_id}",
            stopping=resources.stopping,
            watchdog=resources.watchdog,
        ) as lease:
            result = _work(resources, job, claim, lease)
            name, digest = write_shard(settings.jobs_dir / job_id, n, result.vectors)
    except Stopped:
        # What ends a worker by its memory again and again must come to be tried alone.
        jobs.release_shard(claim, count_attempt=resources.memory_guard.shutting_down.is_set())
        log.info("Shard %d of job %s goes back to the queue: this worker ends.", n, job_id)
    except LeaseLost:
        log.info("Shard %d of job %s is no longer ours.", n, job_id)
        return
    except ServerUnavailable:
        raise
    except Exception as error:
        if resources.memory_guard.budget.over_limit():
            log.error("Shard %d of job %s lacks memory; the next worker has more.", n, job_id)
            # Counted: what takes it from one worker after the other is found when tried alone.
            jobs.release_shard(claim, count_attempt=True)
            resources.memory_guard.end_worker()
            return
        _failed(resources, claim, error)
        return
    else:
        failpoint("embed.after_write")
        won = jobs.finish_shard(
            claim,
            file=name,
            sha256=digest,
            embedded=result.embedded,
            reused=result.reused,
            failures=result.failures,
        )
        failpoint("embed.after_mark")
        log.info("Shard %d of job %s: %s", n, job_id, _account(result, won))
    advance(resources, job_id)


def _ready(resources: Resources, job: Job) -> bool:
    """Load what the job needs; where this worker cannot serve it, end the job with the reason.

    Before any shard is claimed: a missing model is one sentence, not ten thousand failures.
    """
    jobs = resources.jobs
    try:
        require_allowed(job.root, resources.settings)
        if not job.root.is_dir():
            raise SetupError(
                f"The folder {job.root} is not there: every embed worker must see the products "
                "folder under the same path."
            )
        _ = resources.embedder
        resources.memory_guard.apply_limit(EMBED)
        mine = resources.fingerprint
    except ImgrecError as error:
        if isinstance(error, ServerUnavailable):
            raise
        jobs.fail(job.id, f"Worker embed@{HOST}: {error}")
        return False
    held = jobs.set_fingerprint(job.id, mine)
    if held.fingerprint != mine.id:
        jobs.fail(
            job.id,
            f"Worker embed@{HOST} would use {mine.summary}, but the job was planned for "
            f"{held.fingerprint_summary}: give this worker and the command the same "
            "EMBEDDING_MODEL, USE_BG_REMOVAL, REMBG_MODEL and PREPROCESS settings.",
        )
        return False
    return held.open


def _work(resources: Resources, job: Job, claim: Claim, lease: Lease) -> ShardResult:
    known = resources.reusable_vectors(reuse=not job.full, verify=True)
    save = _saver(resources.settings.data_dir / "preprocessed") if job.save_preprocessed else None
    if claim.attempts <= resources.settings.shard_max_attempts:
        return embed_shard(
            job.root, claim.images, resources.embedder, known, check=lease.check, save=save
        )
    log.warning("Shard %d of job %s has crashed; trying its images alone.", claim.n, job.id)
    jobs = resources.jobs

    def end(position: int) -> None:
        if not resources.memory_guard.shutting_down.is_set():  # else this image may be why
            _survived(resources, claim, position)

    return embed_isolated(
        job.root,
        claim.images,
        resources.embedder,
        known,
        check=lease.check,
        save=save,
        on_start=lambda position: jobs.mark_started(claim, position) <= MAX_CRASHES,
        on_done=end,
    )


def _survived(resources: Resources, claim: Claim, position: int) -> None:
    """Clear an image of suspicion, however long the database is away: this process lives."""
    while True:
        try:
            resources.jobs.clear_suspect(claim, position)
            return
        except ServerUnavailable:
            if resources.stopping.wait(PATIENCE_S):
                raise


def _failed(resources: Resources, claim: Claim, error: Exception) -> None:
    """Give a shard back after an error that no image explains; end the job when it persists."""
    jobs = resources.jobs
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        # No fault of the shard's, and it may last: the reconciler sends it until there is budget.
        trouble = disk_trouble(error, resources.settings.data_dir)
        log.error("Shard %d of job %s: %s", claim.n, claim.job_id, trouble)
        jobs.release_shard(claim, count_attempt=False)
        jobs.set_waiting_reason(claim.job_id, trouble)
        return
    log.error("Shard %d of job %s failed.", claim.n, claim.job_id, exc_info=error)
    if claim.attempts > resources.settings.shard_max_attempts:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        jobs.fail(
            claim.job_id,
            f"Worker embed@{HOST} could not finish shard {claim.n} in {claim.attempts} "
            f"attempts: {reason}",
        )
    else:
        jobs.release_shard(claim, count_attempt=True)  # the reconciler sends it after a pause


def _saver(folder: Path) -> Callable[[str, Image.Image], None]:
    def save(path: str, image: Image.Image) -> None:
        # Added, not put in place of another: shoe.jpg and shoe.png are two products.
        target = folder / (path if path.endswith(".jpg") else f"{path}.jpg")
        if not target.resolve().is_relative_to(folder.resolve()):
            raise BadImage("the path leads out of the folder of preprocessed images", "save")
        write_atomic(target, encode_jpeg(image, quality=95))

    return save


def _account(result: ShardResult, won: bool) -> str:
    skipped = sum(not failure.warning for failure in result.failures)
    text = f"{result.embedded} embedded, {result.reused} reused, {skipped} skipped"
    return text if won else f"{text}; another worker was first"
