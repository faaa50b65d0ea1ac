"""Plan a job that tries again what another one left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pipeline.embed.fingerprint import find_fingerprint
from pipeline.embed.shards import cut
from pipeline.errors import Conflict
from pipeline.images.failure import Failure
from pipeline.images.fetched import feed_name
from pipeline.images.find import ImageFile
from pipeline.images.path_length import without_long_paths
from pipeline.index.live_changes import AddedImage, Changes
from pipeline.index.versions import Version, VersionStore
from pipeline.rebuild.plan import (
    PLAN_LEASES,
    REUSE_ROWS,
    PlanWriter,
    check_source,
    plan_rebuild,
)
from pipeline.rebuild.plan_feed import plan_fetch
from pipeline.settings import Settings
from pipeline.store.feeds import Feeds
from pipeline.store.job import Job
from pipeline.store.jobs import Jobs
from pipeline.store.live_changes import LiveChanges


def plan_retry(
    job_id: str,
    settings: Settings,
    jobs: Jobs,
    versions: VersionStore,
    feeds: Feeds,
    *,
    created: Callable[[str], None] = lambda job_id: None,
) -> str:
    """Write the plan of a job that tries another one's failures again; return its id.

    What a published job has indexed stays as it is. One that failed or was cancelled has indexed
    nothing: its folder is planned anew. So is a feed, of which only what has changed is fetched.

    Raises:
        NotFound: there is no such job.
        Conflict: it has not ended, has left out nothing, or is no longer the published one; or
            an older job is open, which may index what the retry does not know.
        WrongUse: its folder cannot be used any more.
    """
    job = jobs.get(job_id)
    if job.open:
        raise Conflict(f"Job {job.id} has not ended yet ({job.state}).")
    if feed_name(job.root) is not None:
        return plan_fetch(
            job.root,
            settings,
            jobs,
            feeds,
            full=job.full,
            save_preprocessed=job.save_preprocessed,
            created=created,
        )
    if job.state != "published":
        return plan_rebuild(
            job.root,
            settings,
            jobs,
            versions,
            full=job.full,
            save_preprocessed=job.save_preprocessed,
            created=created,
        )
    failures = [failure for failure in jobs.failures(job.id) if not failure.warning]
    if not failures:
        raise Conflict(f"Job {job.id} left out no images: there is nothing to try again.")
    _require_alone(jobs)
    base = _base(job, settings, versions)
    lease_s = PLAN_LEASES * settings.lease_s
    retry_id = jobs.create(
        job.root,
        full=False,
        save_preprocessed=False,
        fingerprint=find_fingerprint(settings),
        base_version=base.name,
        lease_s=lease_s,
    )
    created(retry_id)
    missing = {failure.path for failure in failures if not base.has_path(failure.path)}
    changes = LiveChanges(jobs.database).all().since(base)
    try:
        # Again: from here on, what an older job publishes replaces the base of this one.
        _require_alone(jobs, retry_id)
        _base(job, settings, versions)
        alive = PlanWriter(jobs, retry_id, lease_s).renew
        images, unusable = _list_again(job, settings, missing, alive)
        images += _added(changes, images)
        pieces = list(_pieces(base, changes, images, settings.shard_size))
        for start in range(0, max(1, len(pieces)), 64):
            jobs.shards.add(
                retry_id, pieces[start : start + 64], [] if start else unusable, lease_s
            )
        jobs.finish_plan(retry_id)
    except BaseException as error:
        jobs.fail(retry_id, f"The retry could not be planned: {str(error) or 'interrupted'}")
        raise
    return retry_id


def _list_again(
    job: Job, settings: Settings, paths: set[str], alive: Callable[[], None]
) -> tuple[list[ImageFile], list[Failure]]:
    """List the job's folder anew; return the images of `paths`, and why the others are none."""
    images: list[ImageFile] = []
    unusable: list[Failure] = []
    missing = set(paths)
    for item in without_long_paths(check_source(job.root, settings).find(alive=alive)):
        alive()
        if item.path not in missing:
            continue
        if isinstance(item, ImageFile):
            images.append(item)
        elif not item.warning:
            unusable.append(item)
        else:
            continue
        missing.remove(item.path)
    gone = "the file is not there any more"
    return images, unusable + [Failure(path, "find", gone) for path in sorted(missing)]


def _require_alone(jobs: Jobs, retry_id: str = "") -> None:
    """Refuse a retry while an older job is open: the retry would replace what that publishes.

    Raises:
        Conflict: there is one.
    """
    for job in jobs.open_jobs():  # oldest first
        if job.id == retry_id:
            return
        raise Conflict(
            f"Job {job.id} is open and may publish other images: wait for its end or cancel it, "
            "then try again."
        )


def _base(job: Job, settings: Settings, versions: VersionStore) -> Version:
    base = versions.current()
    if base.name != job.index_version:
        raise Conflict(
            f"Job {job.id} published {job.index_version}, and now {base.name} is published: start "
            "a rebuild, which tries all images that are not indexed."
        )
    fingerprint = find_fingerprint(settings)
    if fingerprint is not None and fingerprint.id != base.fingerprint:
        raise Conflict(
            f"Index {base.name} was made with other models or settings: start a rebuild."
        )
    return base


def _added(changes: Changes, images: list[ImageFile]) -> list[ImageFile]:
    """Return what 'imgrec add' has added since the base was rebuilt, unless it is there already."""
    paths = {image.path for image in images}
    return [
        ImageFile(each.path, each.size, each.mtime_ns)
        for each in changes.images
        if isinstance(each, AddedImage) and each.path not in paths
    ]


def _pieces(
    base: Version, changes: Changes, images: list[ImageFile], shard_size: int
) -> Iterator[tuple[int, str, list[Any]]]:
    """Yield the images to embed, then the rows of the base that were neither removed nor replaced.

    `images` is sorted here.
    """
    images = sorted(images, key=lambda image: image.path)
    number = 0
    for shard in cut(images, shard_size):
        yield number, "embed", [[each.path, each.size, each.mtime_ns] for each in shard]
        number += 1
    gone = {base.row_of_path(each.path) for each in changes.images}
    for start in range(0, len(base.paths), REUSE_ROWS):
        rows = range(start, min(start + REUSE_ROWS, len(base.paths)))
        if kept := [row for row in rows if row not in gone]:
            yield number, "reuse", kept
            number += 1
