"""Images that are added to a published index and removed from it, over any kind of search."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_stand import clustered, publish, store_in

from pipeline.errors import NotFound
from pipeline.index.faiss_engine import FaissEngine
from pipeline.index.live_changes import (
    AddedImage,
    ChangedIndexes,
    Changes,
    RemovedImage,
    removed_images,
    with_changes,
)
from pipeline.search.catalogue_filter import IndexedCatalogue
from pipeline.search.product_catalogue import Catalogue, Condition
from pipeline.search.query import Query
from pipeline.search.query_vector import compose
from pipeline.search.rank import Answer, recommend

COUNT, DIM = 2000, 16
LATER = time.time() + 86_400  # than any rebuild of this run, which may last long


@pytest.fixture(params=["flat", "ivf"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    engine = FaissEngine(10**6 if request.param == "flat" else 100)
    return engine.open(publish(store_in(tmp_path), engine, clustered(COUNT, DIM)))


def added(path: str, vector: np.ndarray, changed_at: float = LATER, kind: str = "f") -> AddedImage:
    return AddedImage(path, Path(path).stem, 7, 8, "a" * 64, kind, vector, changed_at)


def removed(row: int, changed_at: float = LATER) -> RemovedImage:
    return RemovedImage(f"{row:06d}.jpg", f"{row:06d}", 0, 0, changed_at)


def ask(
    index: Any, vector: np.ndarray, catalogue: Catalogue | None = None, **options: Any
) -> Answer:
    indexed = IndexedCatalogue(index.version, catalogue or Catalogue())
    query = Query(**{"top_k": 5, **options})
    image = None if query.product else vector
    query_vector = compose(query, image, lambda text: 1 / 0, indexed)
    return recommend(query, index, indexed, query_vector)


def test_without_changes_the_index_itself_answers(opened: Any) -> None:
    assert with_changes(opened, Changes(3)) is opened
    before = Changes(3, (removed(1, changed_at=0.0),))
    assert with_changes(opened, before) is opened


def test_an_added_image_is_found_and_a_removed_one_is_not(opened: Any) -> None:
    vector = clustered(COUNT, DIM)[5]
    assert ask(opened, vector).matches[0]["filename"] == "000005.jpg"
    changed = with_changes(opened, Changes(1, (removed(5), added("new/a.jpg", vector))))
    matches = ask(changed, vector).matches
    assert (matches[0]["filename"], matches[0]["score"]) == ("new/a.jpg", 1)
    assert "000005.jpg" not in [match["filename"] for match in matches]
    assert changed.n_vectors == COUNT
    assert changed.version.has_path("new/a.jpg")
    assert changed.version.has_path("000009.jpg")
    assert not changed.version.has_path("new/b.jpg")
    assert changed.version.identity != opened.version.identity


@pytest.mark.parametrize("options", [{"product": "000009"}, {"diverse": 0.5}])
def test_products_are_found_and_varied_when_images_were_only_removed(
    opened: Any, options: dict[str, Any]
) -> None:
    changed = with_changes(opened, Changes(1, (removed(5),)))
    assert changed.version.vectors[[3, 9]].shape == (2, DIM)
    matches = ask(changed, clustered(COUNT, DIM)[9], **options).matches
    assert len(matches) == 5
    assert "000005.jpg" not in [match["filename"] for match in matches]


def test_every_row_is_listed_once_down_to_the_last(opened: Any) -> None:
    vectors = clustered(COUNT, DIM)
    changes = tuple(added(f"new/{n}.jpg", vectors[n * 100]) for n in range(10))
    changed = with_changes(opened, Changes(1, (*changes, removed(0), removed(1999))))
    lists = list(changed.search_deepening(vectors[3], 20))
    for hits in lists:
        scores = [score for _, score in hits]
        assert scores == sorted(scores, reverse=True)
    assert sorted(row for row, _ in lists[-1]) == list(range(1, COUNT + 10))[:-11] + list(
        range(COUNT, COUNT + 10)
    )
    truth = np.sort(np.concatenate([vectors[1:-1] @ vectors[3], vectors[::100][:10] @ vectors[3]]))
    assert np.allclose([score for _, score in lists[-1]], truth[::-1], atol=1e-5)


def test_the_first_list_is_what_one_index_of_all_rows_would_find(opened: Any) -> None:
    """What was added far away must not stand before nearer rows that a deeper list would have."""
    vectors = clustered(COUNT, DIM)
    far = int(np.argmin(vectors @ vectors[3]))
    changed = with_changes(opened, Changes(1, (added("far.jpg", vectors[far]),)))
    hits = next(changed.search_deepening(vectors[3], 10))
    assert COUNT not in [row for row, _ in hits]


def test_conditions_hold_for_what_was_added(opened: Any) -> None:
    vectors = clustered(COUNT, DIM)
    changed = with_changes(opened, Changes(1, (added("shoe.jpg", vectors[5]), removed(7))))
    facts = {name: json.dumps({"price": 5}) for name in ("shoe", "000007", "000009")}
    answer = ask(changed, vectors[5], Catalogue(1, facts), where=("price=5",), total=True)
    assert {match["product_id"] for match in answer.matches} == {"shoe", "000009"}
    assert answer.total == 2


def test_a_removed_product_is_no_subject_and_an_added_one_is(opened: Any) -> None:
    vectors = clustered(COUNT, DIM)
    changed = with_changes(opened, Changes(1, (added("shoe.jpg", vectors[5]), removed(7))))
    assert ask(changed, vectors[5], product="shoe").matches[0]["filename"] == "000005.jpg"
    with pytest.raises(NotFound):
        ask(changed, vectors[5], product="000007")


def test_diversity_compares_what_was_added_too(opened: Any) -> None:
    vectors = clustered(COUNT, DIM)
    changed = with_changes(opened, Changes(1, (added("twin.jpg", vectors[5]),)))
    plain = [match["product_id"] for match in ask(changed, vectors[5]).matches]
    assert set(plain[:2]) == {"000005", "twin"}
    diverse = ask(changed, vectors[5], diverse=0.9, explain=True)
    assert not {"000005", "twin"} <= {match["product_id"] for match in diverse.matches}
    assert "1 added, 0 removed" in str(diverse.search)


def test_an_image_that_is_added_under_an_indexed_path_replaces_it(opened: Any) -> None:
    vectors = clustered(COUNT, DIM)
    changed = with_changes(opened, Changes(1, (added("000005.jpg", vectors[900]),)))
    assert changed.n_vectors == COUNT
    matches = ask(changed, vectors[900], top_k=2).matches
    assert {match["filename"] for match in matches} == {"000005.jpg", "000900.jpg"}


def test_vectors_of_another_kind_are_never_compared(opened: Any) -> None:
    other = added("new.jpg", clustered(COUNT, DIM)[5], kind="another")
    assert with_changes(opened, Changes(1, (other,))) is opened


def test_many_queries_are_answered_at_once(opened: Any) -> None:
    vectors = clustered(COUNT, DIM)
    changed = with_changes(opened, Changes(1, (removed(0), added("new.jpg", vectors[0]))))
    scores, rows = changed.search(np.ascontiguousarray(vectors[:3]), 2)
    assert rows[:, 0].tolist() == [COUNT, 1, 2]
    assert np.allclose(scores[:, 0], 1, atol=1e-3)


def test_an_index_whose_every_row_was_removed_finds_what_was_added(tmp_path: Path) -> None:
    engine = FaissEngine(100)
    vectors = clustered(20, DIM)
    opened = engine.open(publish(store_in(tmp_path), engine, vectors))
    gone = tuple(removed(row) for row in range(20))
    changed = with_changes(opened, Changes(1, (*gone, added("new.jpg", vectors[3]))))
    assert [match["filename"] for match in ask(changed, vectors[0]).matches] == ["new.jpg"]
    assert ask(with_changes(opened, Changes(1, gone)), vectors[0]).matches == []


def test_the_files_of_what_is_removed_are_known(opened: Any) -> None:
    vector = clustered(COUNT, DIM)[5]
    changed = with_changes(opened, Changes(1, (added("new.jpg", vector),)))
    files = removed_images(changed.version, ["new.jpg", "000003.jpg"], "p")
    assert [(each.path, each.size, each.mtime_ns) for each in files] == [
        ("new.jpg", 7, 8),
        ("000003.jpg", 0, 0),
    ]
    assert Changes(1, tuple(files)).removed() == {"new.jpg": (7, 8), "000003.jpg": (0, 0)}


def test_a_changed_index_is_made_once_for_a_revision(opened: Any) -> None:
    current = [Changes(1, (removed(5),))]
    indexes = ChangedIndexes(lambda: current[0])
    first = indexes.of(opened)
    assert indexes.of(opened) is first
    current[0] = Changes(2, (removed(5), removed(6)))
    assert indexes.of(opened).n_vectors == COUNT - 2


def test_a_condition_on_a_removed_row_holds_no_longer(opened: Any) -> None:
    changed = with_changes(opened, Changes(1, (removed(7),)))
    catalogue = Catalogue(1, {"000007": json.dumps({"price": 5}), "000008": '{"price": 5}'})
    mask = IndexedCatalogue(changed.version, catalogue).allowed([Condition.parse("price=5")])
    assert mask is not None
    assert np.flatnonzero(mask).tolist() == [8]
