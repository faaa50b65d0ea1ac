"""Searches for duplicates in both databases: one worker at a time, and decisions that stay."""

from __future__ import annotations

import time

import pytest

from pipeline.duplicates.pairs import Facts, Kind, Pair
from pipeline.duplicates.result import SearchResult
from pipeline.errors import NotFound
from pipeline.store.database import Database
from pipeline.store.duplicates import KEEP, Duplicates

RESULT = SearchResult([Pair("a.jpg", "b.jpg", Kind.CROPPED, 0.9)], {"a.jpg": Facts(8, 8, 100, 2.5)})


@pytest.fixture
def duplicates(database: Database) -> Duplicates:
    return Duplicates(database)


def test_a_search_is_done_once_and_its_result_is_kept(duplicates: Duplicates) -> None:
    search = duplicates.plan("v0001/job", None)
    assert search.open
    assert search.is_stale
    assert duplicates.plan("v0001/job", None).id == search.id
    claimed = duplicates.claim(search.id, "one", 60)
    assert claimed is not None
    assert not claimed.is_stale
    assert duplicates.claim(search.id, "two", 60) is None
    assert duplicates.renew(search.id, "one", 60, 3, 10)
    assert (duplicates.get(search.id).looked_at, duplicates.get(search.id).images) == (3, 10)
    assert not duplicates.finish(search.id, "two", SearchResult())
    assert duplicates.published().index_version == ""
    assert duplicates.finish(search.id, "one", RESULT)
    published = duplicates.published()
    assert (published.index_version, published.version_name) == ("v0001/job", "v0001")
    assert published.result == RESULT
    assert duplicates.plan("v0001/job", None).state == "done"
    assert duplicates.claim(search.id, "three", 60) is None


def test_a_search_of_a_dead_worker_is_taken_over(duplicates: Duplicates) -> None:
    search = duplicates.plan("v0001/job", 0.9)
    assert duplicates.claim(search.id, "dead", -1) is not None
    assert duplicates.get(search.id).is_stale
    assert duplicates.claim(search.id, "alive", 60) is not None
    assert not duplicates.renew(search.id, "dead", 60, 1, 2)
    assert not duplicates.finish(search.id, "dead", RESULT)
    duplicates.fail(search.id, "dead", "of no concern")
    assert duplicates.get(search.id).state == "running"
    duplicates.release(search.id, "alive")
    assert duplicates.get(search.id).state == "planned"


def test_thresholds_and_versions_have_searches_of_their_own(duplicates: Duplicates) -> None:
    ids = {
        duplicates.plan(version, threshold).id
        for version in ("v0001/job", "v0002/job")
        for threshold in (None, 0.9, 0.95)
    }
    assert len(ids) == 6


def test_the_search_that_was_shown_last_is_the_one_that_counts(duplicates: Duplicates) -> None:
    for threshold, result in ((None, RESULT), (0.5, SearchResult())):
        search = duplicates.plan("v0001/job", threshold)
        duplicates.claim(search.id, "one", 60)
        duplicates.finish(search.id, "one", result)
        time.sleep(0.01)  # or both ended at once
    assert duplicates.published().threshold == 0.5
    before = duplicates.revision()
    duplicates.plan("v0001/job", None)
    assert duplicates.revision() > before
    published = duplicates.published()
    assert (published.threshold, published.result) == (None, RESULT)


def test_a_search_that_failed_says_why_and_is_begun_anew(duplicates: Duplicates) -> None:
    search = duplicates.plan("v0001/job", None)
    duplicates.claim(search.id, "one", 60)
    duplicates.fail(search.id, "one", "The disk is gone.")
    assert duplicates.get(search.id).error == "The disk is gone."
    newest = duplicates.newest()
    assert newest is not None
    assert not newest.open
    assert duplicates.plan("v0001/job", None).id != search.id


def test_decisions_are_remembered_in_either_order_and_forgotten(duplicates: Duplicates) -> None:
    before = duplicates.revision()
    duplicates.decide("b.jpg", "a.jpg", same=False)
    duplicates.decide("a.jpg", "b.jpg", same=False)
    assert duplicates.published().not_same == {("a.jpg", "b.jpg")}
    assert duplicates.revision() > before
    duplicates.decide("b.jpg", "a.jpg", same=True)
    assert duplicates.published().not_same == frozenset()


def test_old_results_are_deleted(duplicates: Duplicates) -> None:
    ids = []
    for number in range(KEEP + 3):
        search = duplicates.plan(f"v{number:04d}/job", None)
        duplicates.claim(search.id, "one", 60)
        duplicates.finish(search.id, "one", RESULT)
        ids.append(search.id)
    with pytest.raises(NotFound, match="There is no search"):
        duplicates.get(ids[0])
    assert duplicates.get(ids[-1]).state == "done"
    assert duplicates.published().index_version == f"v{KEEP + 2:04d}/job"
