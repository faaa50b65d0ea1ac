"""Plan the rebuild of a feed: first the addresses to fetch, then the images that have come."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing

from pipeline.embed.fingerprint import find_fingerprint
from pipeline.embed.shards import cut
from pipeline.errors import ImgrecError, JobFailed, WrongUse, quote
from pipeline.failpoints import failpoint
from pipeline.images.exclude import Exclude
from pipeline.images.failure import Failure
from pipeline.images.fetched import content_number, feed_name
from pipeline.images.find import ImageFile, LeftOut
from pipeline.index.versions import VersionStore
from pipeline.rebuild.plan import (
    PLAN_LEASES,
    SHARDS_AT_ONCE,
    ChangeDetector,
    PlanWriter,
    reusable_version,
)
from pipeline.settings import Settings
from pipeline.store.feeds import FeedImage, Feeds
from pipeline.store.job import FEED_FORM, JobRequest, PlanClaim
from pipeline.store.jobs import Jobs
from pipeline.store.live_changes import LiveChanges

CACHE_KIB = 32 * 1024  # of the sorted images in memory; the rest is in a temporary file


def check_feed(root: str, feeds: Feeds) -> str:
    """Return the name of a feed that can be fetched.

    Raises:
        NotFound: no feed was imported under this name.
        WrongUse: it lists no address of an image.
    """
    name = feed_name(root) or ""
    feeds.get(name)
    if next(feeds.urls(name), None) is None:
        raise WrongUse(
            f"The feed {quote(name)} lists no address of an image, or a later import lists them: "
            "import a feed with a column of addresses, e.g. image_link."
        )
    return name


def plan_fetch(
    root: str,
    settings: Settings,
    jobs: Jobs,
    feeds: Feeds,
    *,
    full: bool = False,
    save_preprocessed: bool = False,
    listed: Callable[[int], None] = lambda count: None,
    created: Callable[[str], None] = lambda job_id: None,
    request: JobRequest | None = None,
    webhook_url: str | None = None,
) -> str:
    """Open a job that fetches the images of feed:NAME and indexes them; return its id.

    Args:
        full: fetch and embed everything again.
        listed: called with the number of addresses listed so far.
        created, request, webhook_url: see `plan_rebuild`.

    Raises:
        WrongUse: see `check_feed`.
    """
    name = check_feed(root, feeds)
    lease_s = PLAN_LEASES * settings.lease_s
    job_id = jobs.create(
        root,
        full=full,
        save_preprocessed=save_preprocessed,
        fingerprint=find_fingerprint(settings),
        base_version=None,
        lease_s=lease_s,
        request=request,
        webhook_url=webhook_url,
        form=FEED_FORM,
    )
    created(job_id)
    pieces: list[tuple[int, str, list[str]]] = []
    count = 0
    try:
        for n, urls in enumerate(cut(feeds.urls(name), settings.shard_size)):
            pieces.append((n, "fetch", urls))
            count += len(urls)
            if len(pieces) >= SHARDS_AT_ONCE:
                jobs.shards.add(job_id, pieces, [], lease_s)
                pieces.clear()
                listed(count)
        jobs.shards.add(job_id, pieces, [], lease_s)
        listed(count)
        failpoint("plan.before_finish")
        jobs.start_fetching(job_id)
    except BaseException as error:
        with contextlib.suppress(ImgrecError):  # then its lease ends it
            jobs.fail(job_id, f"The feed could not be planned: {str(error) or 'interrupted'}")
        raise
    return job_id


def plan_fetched(
    claim: PlanClaim,
    settings: Settings,
    jobs: Jobs,
    versions: VersionStore,
    feeds: Feeds,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write the plan of the images that a job has fetched.

    Args:
        check: called between pieces; raises to stop.

    Raises:
        PlanLost: another process has taken it over, or the job has ended.
        JobFailed: nothing could be fetched.
    """
    job = claim.job
    embed_all = job.full or job.save_preprocessed
    base = None if embed_all else reusable_version(versions, job.fingerprint)
    if base is not None:
        jobs.set_base_version(claim, base.name)
    lease_s = PLAN_LEASES * settings.lease_s

    source = FetchedFeed(job.root, feeds)
    writer = PlanWriter(jobs, job.id, lease_s, claim.first, claim.owner, check)
    warnings = jobs.image_warnings(base.manifest["job_id"]) if base else {}
    removed = LiveChanges(jobs.database).all().removed()
    detector = ChangeDetector(source, base, None, warnings, removed)
    writer.write(detector, settings.shard_size, lambda count: check())
    if not source.n_images:
        raise JobFailed(
            "No image of the feed could be fetched, so nothing was published: 'imgrec failures "
            f"{job.id}' lists the reasons."
        )
    failpoint("plan_fetched.before_finish")
    jobs.finish_plan(job.id, detector.left_out.by_reason(), claim.owner)


class FetchedFeed:
    """Lists what was fetched of a feed: `PRODUCT/image-1.jpg`, ..."""

    def __init__(self, root: str, feeds: Feeds) -> None:
        self._root = root
        self._feeds = feeds
        self.n_images = 0

    @property
    def name(self) -> str:
        return self._root

    def find(
        self,
        exclude: Exclude | None = None,
        left_out: LeftOut | None = None,
        alive: Callable[[], None] = lambda: None,
    ) -> Iterator[ImageFile | Failure]:
        """Yield the images in ascending order of their paths, and the addresses that gave none.

        The database orders texts as its locale does, so the paths are sorted in a temporary file.
        """
        with closing(sqlite3.connect("")) as rows:
            rows.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            rows.execute(
                "CREATE TABLE images (path TEXT PRIMARY KEY, bytes INTEGER, sha256 TEXT,"
                " reason TEXT) WITHOUT ROWID"
            )
            rows.executemany(
                "INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?)",
                self._rows(alive),
            )
            for path, size, digest, reason in rows.execute("SELECT * FROM images ORDER BY path"):
                if reason:
                    yield Failure(path, "fetch", reason, warning=bool(digest))
                if digest:
                    self.n_images += 1
                    yield ImageFile(path, size, content_number(digest), digest)

    def _rows(self, alive: Callable[[], None]) -> Iterator[tuple[str, int, str, str]]:
        for image in self._feeds.images(feed_name(self._root) or ""):
            alive()
            yield _row(image)


def _row(image: FeedImage) -> tuple[str, int, str, str]:
    """Return path, bytes, hash and what is wrong."""
    path, fetched = f"{image.product_id}/image-{image.number}", image.fetched
    if fetched is None:
        reason = "the feed was imported again while it was fetched: the next rebuild fetches this"
        return path, 0, "", f"{image.url}: {reason}"
    reason = f"{image.url}: {fetched.reason}" if fetched.reason else ""
    if fetched.sha256 and reason:
        reason += "; the image that was fetched before is used"
    return path + fetched.suffix, fetched.bytes, fetched.sha256, reason
