"""The task of queue `fetch`: the addresses of one shard become files, and rows about them.

Read downward: claim -> fetch (skip what this job has, ask, store, record) -> finish. Each address
is recorded when its file is stored, so whoever continues a shard begins where the last one ended.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace

from pipeline.failpoints import failpoint
from pipeline.fetch.feed_file import fetch_client
from pipeline.fetch.fetch_images import Attempts, fetch_images
from pipeline.fetch.image import download
from pipeline.fetch.turns import HostLimits
from pipeline.images.fetched import fetched_store
from pipeline.store.feeds import FetchedUrl
from pipeline.store.heartbeat import new_owner
from pipeline.store.job import Job
from pipeline.store.shards import Claim
from workers.after_error import after_shard_error
from workers.dispatch import require_names
from workers.lease import Lease
from workers.reconcile import advance
from workers.refusal import outside_claim
from workers.registry import serving
from workers.resources import Resources
from workers.routes import FETCH, FETCH_SHARD

log = logging.getLogger(__name__)

MAX_STARTS = 20  # of one shard whose workers died; each had recorded what it fetched


def fetch(resources: Resources, job_id: str, n: int) -> None:
    """Fetch shard `n` of a job; do nothing when it is done, taken, or its job has ended."""
    require_names(job_id, n)
    with outside_claim(resources, job_id, FETCH, f"Shard {n} of job {job_id}"):
        job = resources.jobs.get(job_id)
        if job.open and job.stage:
            _fetch_shard(resources, job, n)


def _fetch_shard(resources: Resources, job: Job, n: int) -> None:
    claim = None
    try:
        job.require_known_form()
        owner = new_owner()
        claim = resources.jobs.shards.claim(job.id, n, owner, resources.settings.lease_s, "fetch")
        if claim is None:
            return
        if claim.attempts > MAX_STARTS:
            resources.jobs.fail(
                job.id, f"Shard {n} ended {claim.attempts - 1} fetch workers: see their logs."
            )
            return
        resources.watchdog.refusal = ""
        failpoint("fetch.after_claim")
        with resources.leases.hold(claim) as lease:
            _Fetcher(resources, job, claim, lease).run()
        _finish(resources, claim)
    except Exception as error:
        after_shard_error(resources, FETCH_SHARD, job.id, n, claim, error)
    else:
        advance(resources, job.id)


class _Fetcher:
    """Fetches what a shard lists and its job does not have yet."""

    def __init__(self, resources: Resources, job: Job, claim: Claim, lease: Lease) -> None:
        self._resources = resources
        self._settings = settings = resources.settings
        self._job = job
        self._claim = claim
        self._lease = lease
        self._files = fetched_store(settings)
        self._client = fetch_client(
            settings, int(settings.max_image_bytes), settings.fetch_timeout_s
        )
        self._known: dict[str, FetchedUrl] = {}

    def run(self) -> None:
        urls, settings = self._claim.urls, self._settings
        self._known = self._resources.feeds.known(urls)
        left = [url for url in urls if not self._is_done(url)]
        done = len(urls) - len(left)
        share = max(1, self._n_workers())
        fetch_images(
            left,
            self._fetch,
            self._give_up,
            HostLimits(max(1, settings.fetch_connections // share), settings.fetch_rate / share),
            Attempts(settings.fetch_attempts),
            check=lambda n: self._lease.check(done + n),
        )

    def _n_workers(self) -> int:
        """Count the workers that share the limits of each host."""
        registry = self._resources.dispatcher.registry
        return len(serving(registry.present(), (FETCH,))) if registry is not None else 1

    def _is_done(self, url: str) -> bool:
        known = self._known.get(url)
        if known is None:
            return False
        if known.job_id == self._job.id:  # by whoever had this shard before
            return not known.sha256 or self._files.has(known.sha256)
        if (
            self._job.full
            or known.outcome not in ("fetched", "unchanged")
            or not 0 <= known.age_s < self._settings.fetch_recheck_s  # a clock may be set back
            or not self._files.has(known.sha256)
        ):
            return False
        self._resources.feeds.record(replace(known, outcome="unchanged", job_id=self._job.id))
        return True

    def _fetch(self, url: str) -> None:
        """Fetch an address, store its file and record it; in a thread.

        Raises:
            ImageRefused, TryAgain.
        """
        known = self._known.get(url)
        if known is not None and (self._job.full or not self._files.has(known.sha256)):
            known = None  # asked without a condition
        image = download(
            self._client,
            url,
            etag=known.etag if known else "",
            last_modified=known.last_modified if known else "",
            max_pixels=self._settings.max_image_pixels,
            robots=self._settings.robots_directives,
        )
        if image.data is None and known is not None:
            self._record(replace(known, outcome="unchanged", reason=""))
            return
        data = image.data or b""
        digest = self._files.put(data)
        failpoint("fetch.after_store", url)
        same = known is not None and known.sha256 == digest
        self._record(
            FetchedUrl(
                url,
                "unchanged" if same else "fetched",
                sha256=digest,
                bytes=len(data),
                suffix=image.suffix,
                etag=image.etag,
                last_modified=image.last_modified,
            )
        )
        failpoint("fetch.after_record", url)

    def _give_up(self, url: str, reason: str, later: bool) -> None:
        """Record an address that gives no image; one that may do later keeps the one it has."""
        known = self._known.get(url)
        if later and known is not None and self._files.has(known.sha256):
            self._record(replace(known, outcome="delayed", reason=reason))
        else:
            self._record(FetchedUrl(url, "failed", reason=reason))

    def _record(self, fetched: FetchedUrl) -> None:
        self._resources.feeds.record(replace(fetched, job_id=self._job.id))
        self._resources.metrics.fetched(fetched.outcome, fetched.bytes)


def _finish(resources: Resources, claim: Claim) -> None:
    known = resources.feeds.known(claim.urls)
    counts = Counter(fetched.outcome for fetched in known.values())
    won = resources.jobs.shards.finish(
        claim,
        file="",
        sha256="",
        embedded=counts["fetched"],
        reused=counts["unchanged"],
        failures=[],  # those of the images, which the plan names
    )
    failpoint("fetch.after_mark")
    log.info(
        "Shard %d of job %s: %d fetched, %d unchanged, %d failed%s",
        claim.n,
        claim.job_id,
        counts["fetched"],
        counts["unchanged"],
        counts["failed"] + counts["delayed"],
        "" if won else "; another worker was first",
    )
