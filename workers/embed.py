"""The task of queue `embed`: one shard of images becomes one file of vectors.

Read downward: claim -> embed (read, preprocess, embed, collect) -> write -> record.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable

from PIL import Image

from pipeline.atomic_files import write_atomic
from pipeline.embed.embed_images import ShardResult, embed_isolated, embed_shard
from pipeline.errors import BadImage, FingerprintMismatch, WrongUse
from pipeline.failpoints import failpoint
from pipeline.images.decode import encode_jpeg
from pipeline.images.formats import SUFFIXES
from pipeline.images.roots import open_reader
from pipeline.store.heartbeat import new_owner
from pipeline.store.job import Job
from pipeline.store.shards import Claim, StageTimings
from workers.after_error import after_shard_error
from workers.dispatch import require_names
from workers.lease import Lease
from workers.outage import wait_out
from workers.reconcile import advance
from workers.refusal import outside_claim
from workers.resources import Resources
from workers.routes import EMBED, EMBED_SHARD

log = logging.getLogger(__name__)

MAX_CRASHES = 2  # an image that ran alone in so many dying workers is left out
PREPROCESSED = "preprocessed"  # below DATA_DIR, or in the store


def embed(resources: Resources, job_id: str, n: int) -> None:
    """Embed shard `n` of a job; do nothing when it is done, taken, or its job has ended."""
    require_names(job_id, n)
    with outside_claim(resources, job_id, EMBED, f"Shard {n} of job {job_id}"):
        job = resources.jobs.get(job_id)
        if job.open and not job.stage:  # its images are there
            _embed_shard(resources, job, n)


def _embed_shard(resources: Resources, job: Job, n: int) -> None:
    claim = None
    try:
        claim = _claim(resources, job, n)
        if claim is None:
            return
        with resources.leases.hold(claim) as lease:
            result = _embed(resources, job, claim, lease)
            file, digest = _write(resources, claim, result)
        _record(resources, claim, result, file, digest)
    except Exception as error:
        after_shard_error(resources, EMBED_SHARD, job.id, n, claim, error)
    else:
        advance(resources, job.id)


def _claim(resources: Resources, job: Job, n: int) -> Claim | None:
    """Load what the job needs, then take the shard; None when it is done or another's.

    Raises:
        ImgrecError: this worker cannot do the job. No shard is claimed before that is known: a
            missing model is one sentence, not ten thousand failures.
    """
    settings = resources.settings
    # A download or a lock may hang, and no lease watches yet.
    with resources.watchdog.deadline(
        f"the start of shard {n} of job {job.id}", settings.hung_after_s
    ):
        failpoint("embed.before_claim")
        _load(resources, job)
        claim = resources.jobs.shards.claim(job.id, n, new_owner(), settings.lease_s)
    if claim is not None:
        failpoint("embed.after_claim")
    return claim


def _load(resources: Resources, job: Job) -> None:
    job.require_known_form()
    open_reader(job.root, resources.settings).require()
    _ = resources.embedder
    resources.memory_guard.apply_limit(EMBED)
    mine = resources.fingerprint
    job = resources.jobs.set_fingerprint(job.id, mine)
    if job.fingerprint != mine.id:
        raise FingerprintMismatch(
            f"It would use {mine.summary}, but the job was planned for {job.fingerprint_summary}: "
            "give this worker and the command the same EMBEDDING_MODEL, USE_BG_REMOVAL, "
            "REMBG_MODEL and PREPROCESS settings."
        )
    resources.watchdog.refusal = ""


def _embed(resources: Resources, job: Job, claim: Claim, lease: Lease) -> ShardResult:
    vectors = resources.reusable_vectors(reuse=not job.full, verify=True)
    save = _saver(resources) if job.save_preprocessed else None
    embedder, source = resources.embedder, open_reader(job.root, resources.settings)
    if claim.attempts <= resources.settings.shard_max_attempts:
        return embed_shard(source, claim.images, embedder, vectors, check=lease.check, save=save)
    log.warning("Shard %d of job %s has crashed; trying its images alone.", claim.n, job.id)
    shards = resources.jobs.shards
    return embed_isolated(
        source,
        claim.images,
        embedder,
        vectors,
        check=lease.check,
        save=save,
        on_start=lambda position: shards.mark_started(claim, position) <= MAX_CRASHES,
        on_done=lambda position: _clear_suspect(resources, claim, position),
    )


def _write(resources: Resources, claim: Claim, result: ShardResult) -> tuple[str, str]:
    start = time.perf_counter()
    file, digest = resources.shard_files.write(claim.job_id, claim.n, result.vectors)
    result.stage_seconds["write"] += time.perf_counter() - start
    failpoint("embed.after_write")
    return file, digest


def _record(
    resources: Resources, claim: Claim, result: ShardResult, file: str, digest: str
) -> None:
    won = resources.jobs.shards.finish(
        claim,
        file=file,
        sha256=digest,
        embedded=result.embedded,
        reused=result.reused,
        failures=result.failures,
        timings=StageTimings(**{f"{stage}_s": s for stage, s in result.stage_seconds.items()}),
    )
    failpoint("embed.after_mark")
    skipped = sum(not failure.warning for failure in result.failures)
    if won:
        resources.metrics.images(embedded=result.embedded, reused=result.reused, failed=skipped)
    log.info(
        "Shard %d of job %s: %d embedded, %d reused, %d skipped%s",
        claim.n,
        claim.job_id,
        result.embedded,
        result.reused,
        skipped,
        "" if won else "; another worker was first",
    )


def _clear_suspect(resources: Resources, claim: Claim, position: int) -> None:
    """Clear an image of suspicion, however long the database is away: this process lives."""
    if resources.memory_guard.shutting_down.is_set():
        return  # this image may be why
    wait_out(resources.stopping, lambda: resources.jobs.shards.clear_suspect(claim, position))


def _preprocessed_name(path: str) -> str:
    """Return the name of an image that is saved as JPEG; no two images share one.

    shoe.jpg and shoe.png are two products, and so are shoe.png and shoe.png.jpg.
    """
    stem, suffix = os.path.splitext(path)
    is_kept = suffix == ".jpg" and os.path.splitext(stem)[1].lower() not in SUFFIXES
    return path if is_kept else f"{path}.jpg"


def _saver(resources: Resources) -> Callable[[str, Image.Image], None]:
    folder, store = resources.settings.data_dir / PREPROCESSED, resources.artifacts

    def save(path: str, image: Image.Image) -> None:
        name = _preprocessed_name(path)
        if store is not None:
            try:
                store.put(f"{PREPROCESSED}/{name}", encode_jpeg(image, quality=95))
            except WrongUse as error:  # a product's id may hold what no key does
                raise BadImage(str(error).rstrip("."), "save") from error
            return
        target = folder / name
        if not target.resolve().is_relative_to(folder.resolve()):
            raise BadImage("the path leads outside the folder of preprocessed images", "save")
        try:
            write_atomic(target, encode_jpeg(image, quality=95))
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise BadImage("the file name is too long for a preprocessed image", "save") from error

    return save
