"""Keep what rebuilds leave behind within the bounds of the settings.

Done at each publication, and by `imgrec prune`. What a running job, the published version or a
rollback needs is never deleted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from filelock import Timeout

from pipeline.access import explain, is_unavailable
from pipeline.atomic_files import remove_abandoned
from pipeline.errors import ImgrecError, WrongUse
from pipeline.images.fetched import feed_name, fetched_store, prune_fetched
from pipeline.index.engine import drop_unused
from pipeline.index.remote_versions import RemoteVersions
from pipeline.preprocess.cutout_cache import shrink_cache
from pipeline.store.identity import shown_database

if TYPE_CHECKING:
    from workers.resources import Resources

log = logging.getLogger(__name__)

# For so long, files of jobs that the database does not know are kept: they may be of jobs of
# another one that run now.
UNKNOWN_JOB_S = 7 * 86_400.0


@dataclass(frozen=True)
class Pruned:
    """What was deleted, or would be: names of versions, ids of jobs, rows and bytes."""

    versions: list[str]
    jobs: list[str]
    rows: int
    folders: list[str]  # of the files of ended jobs
    cutout_bytes: int
    fetched_files: int = 0  # that no feed leads to any more
    fetched_bytes: int = 0


def prune(resources: Resources, *, dry_run: bool = False) -> Pruned:
    """Delete what is beyond the settings' bounds.

    What another database's jobs need is not known here: while one of its versions is kept, no
    files are deleted but those of this database's jobs.

    Raises:
        WrongUse: an index is being published, which prunes by itself; or another database has
            published.
    """
    jobs, settings = resources.jobs, resources.settings
    _require_own_index(resources)
    versions = prune_versions(resources, dry_run=dry_run)
    # An open job learns from these rows which of the versions on disk are newer than itself.
    on_disk = {version.manifest["job_id"] for version in resources.versions.versions()}
    shared = jobs.known(on_disk) != on_disk
    if not dry_run:
        _forget_added(resources)
    ended = jobs.prunable(settings.keep_jobs, settings.keep_job_rows, on_disk)
    # The folders first: a job that is created meanwhile is then open, or its folder is not listed.
    files = resources.shard_files.jobs()
    open_jobs = {job.id for job in jobs.open_jobs()}
    known, long_ago = jobs.known(files), _job_id_of(time.time() - UNKNOWN_JOB_S)
    folders = [
        job_id
        for job_id in files
        if job_id not in open_jobs and (job_id in known or (job_id < long_ago and not shared))
    ]
    if not dry_run:
        jobs.drop_items()
        for job_id in ended:
            jobs.delete(job_id)
        for job_id in folders:
            resources.shard_files.delete(job_id)
        if not shared:
            _delete_abandoned_builds(resources)
        for folder in (settings.index_dir, *settings.fetched_dir.glob("??/??")):
            remove_abandoned(folder)
    n_bytes = shrink_cache(settings.cutout_dir, settings.cutout_cache_bytes, dry_run=dry_run)
    fetched = (0, 0) if shared else _prune_fetched(resources, dry_run=dry_run)
    return Pruned(versions, list(ended), sum(ended.values()), folders, n_bytes, *fetched)


def _require_own_index(resources: Resources) -> None:
    """Refuse to delete anything beside an index whose job is unknown here.

    Raises:
        WrongUse: another database has published it.
    """
    name = resources.versions.current_name()
    if name is None:
        return
    job_id = resources.versions.open(name).manifest["job_id"]
    if not resources.jobs.known([job_id]):
        raise WrongUse(
            f"Nothing was deleted: the database {shown_database(resources.settings.database_url)} "
            f"does not have job {job_id}, which published {name}. Name the database of the "
            "rebuilds in DATABASE_URL; if it is lost, run a rebuild first."
        )


def _job_id_of(seconds: float) -> str:
    """Return what the id of a job created at a time since the epoch begins with."""
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime(seconds))


def _prune_fetched(resources: Resources, *, dry_run: bool) -> tuple[int, int]:
    """Delete fetched files that no feed and no index version leads to."""
    if resources.jobs.any_open_feed():
        return 0, 0  # it may be about to read one
    if not dry_run:
        resources.feeds.forget_unlisted()
    versions = [
        version
        for version in resources.versions.versions()
        if feed_name(version.manifest["root"]) is not None
    ]

    def needed(digests: Sequence[str]) -> set[str]:
        if resources.jobs.any_open_feed():  # one that began meanwhile may store them again
            return set(digests)
        indexed = {
            digest
            for digest in digests
            if any(version.row_of_hash(digest) is not None for version in versions)
        }
        return indexed | resources.feeds.needed(digests)

    return prune_fetched(fetched_store(resources.settings), needed, dry_run=dry_run)


def prune_versions(resources: Resources, *, dry_run: bool = False) -> list[str]:
    """Delete the oldest index versions beyond KEEP_VERSIONS; return their names."""
    store, keep = resources.versions, resources.settings.keep_versions
    if not store.versions():
        return []
    try:
        with store.lock():
            protect = resources.jobs.referenced_versions()
            if dry_run:
                return [version.name for version in store.prunable(keep, protect)]
            pruned = store.prune(keep, protect)
            if pruned:
                drop_unused(resources.engines, store)
            return pruned
    except Timeout as error:
        raise WrongUse("An index is being published right now; try again shortly.") from error


def _forget_added(resources: Resources) -> None:
    """Forget the images that were added before the published version's rebuild."""
    if resources.versions.current_name() is not None:
        resources.live_changes.forget_added(resources.versions.current())


def prune_after_publishing(resources: Resources) -> None:
    """Prune; what goes wrong is logged, because the job is done and the next one prunes again."""
    try:
        pruned = prune(resources)
    except ImgrecError as error:
        log.warning("Nothing was pruned: %s", error)
    except OSError as error:
        if not is_unavailable(error):
            raise
        log.warning("Not all could be pruned: %s", explain(error, resources.settings))
    else:
        if pruned.jobs:
            log.info("Deleted %d old jobs with %d rows.", len(pruned.jobs), pruned.rows)


def _delete_abandoned_builds(resources: Resources) -> None:
    versions, jobs = resources.versions, resources.jobs
    if isinstance(versions, RemoteVersions):
        for build in versions.abandoned_builds(lambda: {job.id for job in jobs.open_jobs()}):
            versions.delete_build(build)
