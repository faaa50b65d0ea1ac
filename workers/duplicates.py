"""The task of queue `index` that finds images which show the same thing.

Read downward: claim -> candidates (by vectors) -> look (read their files) -> compare -> record.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np

from pipeline.duplicates.candidates import find_candidates, first_rows
from pipeline.duplicates.result import SearchResult
from pipeline.errors import ImgrecError, JobFailed, NotFound, ServerUnavailable
from pipeline.images.roots import open_reader
from pipeline.store.duplicates import Search
from pipeline.store.heartbeat import HOST, new_owner
from workers.dispatch import require_names
from workers.error_policy import describe
from workers.lease import LeaseLost, Stopped
from workers.outage import wait_out
from workers.resources import Resources

log = logging.getLogger(__name__)

Check = Callable[[int, int], None]  # (done, total)

LEASE_S = 60.0
RENEW_S = LEASE_S / 5  # a block of images of a slow store may take longer than a lease


def find_duplicates(resources: Resources, search_id: str) -> None:
    """Do a search that nobody works at; harmless to send any number of times."""
    require_names(search_id)
    owner = new_owner()
    search = resources.duplicates.claim(search_id, owner, LEASE_S)
    if search is None:
        return
    try:
        _require_few_attempts(search, resources.settings.shard_max_attempts)
        with _renewing(resources, search_id, owner) as check:
            result = _search(resources, search, check)
            finish = partial(resources.duplicates.finish, search_id, owner, result)
            wait_out(resources.stopping, finish)
        log.info("Search %s found %d pairs.", search_id, len(result.pairs))
    except LeaseLost:
        log.info("Search %s is no longer ours.", search_id)
    except (Stopped, ServerUnavailable) as error:
        log.warning("Search %s goes back to the queue: %s", search_id, describe(error))
        release = partial(resources.duplicates.release, search_id, owner)
        wait_out(resources.stopping, release)
    except ImgrecError as error:
        resources.duplicates.fail(search_id, owner, str(error))
        raise
    except Exception as error:
        reason = f"Worker index@{HOST} failed unexpectedly: {describe(error)}"
        resources.duplicates.fail(search_id, owner, reason)
        raise


def _require_few_attempts(search: Search, limit: int) -> None:
    """Give up a search whose worker dies of it each time.

    Raises:
        JobFailed: it was begun too often.
    """
    if search.attempts > limit + 1:
        raise JobFailed(
            f"The search was begun {search.attempts - 1} times and never ended: its worker died "
            "each time. See the log of the index worker; it may need more memory."
        )


def _search(resources: Resources, search: Search, check: Check) -> SearchResult:
    from pipeline.duplicates.looks import Looks  # brings libraries that no other task needs

    name, _, _ = search.index_version.partition("/")
    index, settings = resources.live_index.version(name), resources.settings
    version = index.version
    if version.identity != search.index_version:
        raise NotFound(f"Index {name} was deleted: run 'imgrec duplicates' again.")
    rows, first_of = first_rows(version.sha256)
    candidates = find_candidates(index, rows, search.threshold, lambda done: check(done, len(rows)))
    reader = open_reader(version.manifest["root"], settings)
    reader.require()  # without the files, copies would be told as merely similar
    looks = Looks(
        version,
        reader,
        resources.limits,
        settings.preprocess_bg_color,
        settings.threads,
    )
    repeated = first_of[first_of != np.arange(len(first_of))]
    looks.read(np.union1d(candidates.rows, repeated), check)
    pairs = looks.copies(first_of) + looks.compare(candidates, check)
    paths = {path for pair in pairs for path in pair.key}
    places = {path: bisect_left(version.paths, path) for path in paths}
    pairs += looks.around_the_best(pairs, places)
    return SearchResult(pairs, {path: looks.facts[path] for path in paths if path in looks.facts})


@contextmanager
def _renewing(resources: Resources, search_id: str, owner: str) -> Iterator[Check]:
    """Renew the lease while the block runs; yield what notes progress and ends the work."""
    ended = threading.Event()
    progress = (0, 0)

    def renew() -> bool:
        try:
            return resources.duplicates.renew(search_id, owner, LEASE_S, *progress)
        except ServerUnavailable as error:  # a short outage, which the lease may outlive
            log.warning("The lease of search %s could not be renewed: %s", search_id, error)
            return True

    def check(done: int, total: int) -> None:
        nonlocal progress
        progress = done, total
        if resources.stopping.is_set():
            raise Stopped
        if not renew():
            raise LeaseLost

    def run() -> None:
        while not ended.wait(RENEW_S):
            renew()

    thread = threading.Thread(target=run, name="duplicates", daemon=True)
    thread.start()
    try:
        yield check
    finally:
        ended.set()
        thread.join()
