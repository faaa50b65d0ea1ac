"""The task of queue `index` that finds images which show the same thing.

Read downward: claim -> candidates (by vectors) -> look (read their files) -> compare -> record.
"""

from __future__ import annotations

import logging
import uuid
from bisect import bisect_left
from functools import partial

import numpy as np

from pipeline.duplicates.candidates import find_candidates, first_rows
from pipeline.duplicates.result import SearchResult
from pipeline.errors import ImgrecError, NotFound, ServerUnavailable
from pipeline.images.roots import open_reader
from pipeline.store.duplicates import Search
from pipeline.store.heartbeat import HOST
from workers.dispatch import require_names
from workers.error_policy import describe
from workers.lease import LeaseLost, Stopped
from workers.resources import Resources

log = logging.getLogger(__name__)

LEASE_S = 60.0  # a block of candidates or of images takes seconds


def find_duplicates(resources: Resources, search_id: str) -> None:
    """Do a search that nobody works at; harmless to send any number of times."""
    require_names(search_id)
    owner = f"{HOST}:{uuid.uuid4().hex[:8]}"
    search = resources.duplicates.claim(search_id, owner, LEASE_S)
    if search is None:
        return
    try:
        result = _search(resources, search, owner)
        resources.duplicates.finish(search_id, owner, result)
        log.info("Search %s found %d pairs.", search_id, len(result.pairs))
    except LeaseLost:
        log.info("Search %s is no longer ours.", search_id)
    except (Stopped, ServerUnavailable) as error:
        log.warning("Search %s goes back to the queue: %s", search_id, describe(error))
        resources.duplicates.release(search_id, owner)
    except ImgrecError as error:
        resources.duplicates.fail(search_id, owner, str(error))
        raise
    except Exception as error:
        reason = f"Worker index@{HOST} failed unexpectedly: {describe(error)}"
        resources.duplicates.fail(search_id, owner, reason)
        raise


def _search(resources: Resources, search: Search, owner: str) -> SearchResult:
    from pipeline.duplicates.looks import Looks  # brings libraries that no other task needs

    name, _, _ = search.index_version.partition("/")
    index, settings = resources.live_index.version(name), resources.settings
    version = index.version
    if version.identity != search.index_version:
        raise NotFound(f"Index {name} was deleted: run 'imgrec duplicates' again.")
    check = partial(_check, resources, search.id, owner)
    rows, first_of = first_rows(version.sha256)
    candidates = find_candidates(index, rows, search.threshold, lambda done: check(done, len(rows)))
    looks = Looks(
        version,
        open_reader(version.manifest["root"], settings),
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


def _check(resources: Resources, search_id: str, owner: str, done: int, total: int) -> None:
    """Note progress; end the work where it must end."""
    if resources.stopping.is_set():
        raise Stopped
    if not resources.duplicates.renew(search_id, owner, LEASE_S, done, total):
        raise LeaseLost
