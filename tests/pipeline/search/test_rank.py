"""Ranking on vectors that are known: filters, products, texts, diversity, feedback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.errors import WrongUse
from pipeline.index import faiss_index
from pipeline.index.faiss_engine import FaissIndex
from pipeline.search import rank
from pipeline.search.catalogue_filter import IndexedCatalogue, IndexedCatalogues
from pipeline.search.product_catalogue import Catalogue, Condition
from pipeline.search.query import Query
from pipeline.search.query_vector import compose
from pipeline.search.rank import Answer, diversify, recommend, rerank
from pipeline.search.relevance_feedback import Feedback, FeedbackIndex, LoggedQuery

COUNT, DIM = 400, 16


def units(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def open_index(vectors: np.ndarray, paths: list[str], flat_max: int = 10**6) -> FaissIndex:
    """An index in memory with the parts of a version that ranking looks at."""
    built, kind = faiss_index.build(vectors, flat_max)
    version: Any = SimpleNamespace(
        name="v0001",
        identity="v0001/job",
        kept=None,
        paths=paths,
        vectors=vectors,
        manifest={"index": kind.parameters()},
        random_pairs=faiss_index.random_pairs(vectors),
    )
    return FaissIndex(version, built)


@pytest.fixture(params=["Flat", "IVF"])
def opened(request: pytest.FixtureRequest) -> FaissIndex:
    rows = np.random.default_rng(0).normal(size=(COUNT, DIM))
    flat_max = 10**6 if request.param == "Flat" else 10
    return open_index(units(rows), [f"p/{n:03d}.jpg" for n in range(COUNT)], flat_max)


def catalogue(**facts: dict[str, Any]) -> Catalogue:
    return Catalogue(1, {name: json.dumps(known) for name, known in facts.items()})


def ask(
    opened: FaissIndex,
    shelf: IndexedCatalogue,
    vector: np.ndarray | None = None,
    embed: Callable[[str], np.ndarray] | None = None,
    opinions: FeedbackIndex | None = None,
    **options: Any,
) -> Answer:
    query = Query(**{"top_k": 5, **options})
    query_vector = compose(query, vector, embed or (lambda words: 1 / 0), shelf)
    return recommend(query, opened, shelf, query_vector, opinions)


def ids(answer: Answer) -> list[str]:
    return [match["product_id"] for match in answer.matches]


def test_without_options_the_order_is_exact_search(opened: FaissIndex) -> None:
    vectors, shelf = opened.version.vectors, IndexedCatalogue(opened.version, Catalogue())
    answer = ask(opened, shelf, vectors[7], top_k=COUNT)
    assert len(set(ids(answer))) == COUNT  # an inverted file gives all, too, when all are wanted
    scores = vectors @ vectors[7]
    order = np.argsort(-scores, kind="stable")
    assert ids(answer)[:10] == [f"p/{n:03d}" for n in order[:10]]
    assert answer.matches[0]["score"] == pytest.approx(1, abs=1e-6)
    assert "explain" not in answer.matches[0]
    assert "product" not in answer.matches[0]


@pytest.mark.parametrize("every", [2, 40, 399])
def test_a_filter_works_inside_the_search_and_k_come_whenever_k_exist(
    opened: FaissIndex, every: int
) -> None:
    facts = {
        f"p/{n:03d}": {"price": n, "half": "yes" if n % every == 0 else "no"} for n in range(COUNT)
    }
    shelf = IndexedCatalogue(opened.version, catalogue(**facts))
    wanted = [n for n in range(COUNT) if n % every == 0]
    answer = ask(opened, shelf, opened.version.vectors[1], where=("half=yes",), top_k=len(wanted))
    assert sorted(ids(answer)) == [f"p/{n:03d}" for n in wanted]
    exact = sorted(
        wanted, key=lambda n: -float(opened.version.vectors[n] @ opened.version.vectors[1])
    )
    assert ids(answer) == [f"p/{n:03d}" for n in exact]
    assert answer.matches[0]["product"]["half"] == "yes"
    assert (
        len(ids(ask(opened, shelf, opened.version.vectors[1], where=("half=yes", "price<1")))) == 1
    )
    assert ids(ask(opened, shelf, opened.version.vectors[1], where=("price<0",))) == []


def test_a_column_that_no_product_has_is_a_sentence_with_those_there_are(
    opened: FaissIndex,
) -> None:
    shelf = IndexedCatalogue(opened.version, catalogue(**{"p/001": {"price": 5}}))
    with pytest.raises(WrongUse, match="Available columns: price"):
        ask(opened, shelf, opened.version.vectors[0], where=("cost<5",))
    with pytest.raises(WrongUse, match="import-catalogue"):
        ask(
            opened,
            IndexedCatalogue(opened.version, Catalogue()),
            opened.version.vectors[0],
            where=("a=b",),
        )


def test_a_product_is_one_match_however_many_images_it_has() -> None:
    rows = units(np.random.default_rng(1).normal(size=(60, DIM)))
    rows[:50] = units(rows[0] + 0.01 * rows[:50])  # fifty views of one shoe
    paths = [f"shoe/view-{n:02d}.jpg" for n in range(50)] + [f"{n}.jpg" for n in range(10)]
    opened = open_index(rows, paths)
    shelf = IndexedCatalogue(opened.version, catalogue(shoe={"title": "Shoe"}))
    answer = ask(opened, shelf, rows[0])
    assert ids(answer)[0] == "shoe"
    assert len(set(ids(answer))) == 5
    assert (
        ask(opened, IndexedCatalogue(opened.version, Catalogue()), rows[0])
        .matches[1]["filename"]
        .startswith("shoe/")
    )


def test_a_product_asks_with_all_its_images_and_is_no_match_of_its_own() -> None:
    rows = units(np.eye(DIM)[[0, 1, 2, 3]] + 0.0)
    mean = units(rows[0] + rows[1])
    opened = open_index(np.vstack([rows, mean]), ["a/1.jpg", "a/2.jpg", "b.jpg", "c.jpg", "d.jpg"])
    shelf = IndexedCatalogue(opened.version, catalogue(a={}))
    answer = ask(opened, shelf, product="a")
    assert ids(answer)[0] == "d"
    assert answer.matches[0]["score"] == pytest.approx(1, abs=1e-6)
    assert "a" not in ids(answer)
    with pytest.raises(WrongUse, match="no product 'nobody'"):
        ask(opened, shelf, product="nobody")


def test_texts_move_the_query_by_their_weight_and_the_parts_add_up() -> None:
    rows = units(np.vstack([np.eye(DIM)[:3], np.eye(DIM)[0] + np.eye(DIM)[1]]))
    opened = open_index(rows, ["shoe.jpg", "red.jpg", "blue.jpg", "redshoe.jpg"])
    shelf = IndexedCatalogue(opened.version, Catalogue())
    words = {"red": rows[1], "blue": rows[2]}
    answer = ask(opened, shelf, rows[0], words.__getitem__, text="red", weight=0.5, explain=True)
    assert ids(answer)[0] == "redshoe"
    for match in answer.matches:
        parts = {**match["explain"]}
        total = parts.pop("total")
        assert set(parts) == {"image", "text"}
        assert sum(parts.values()) == pytest.approx(total, abs=1e-5)
        assert total == pytest.approx(match["score"], abs=1e-5)
    assert ids(ask(opened, shelf, rows[0], words.__getitem__, text="red", weight=0.1))[0] == "shoe"
    assert ids(ask(opened, shelf, None, words.__getitem__, text="blue"))[0] == "blue"
    away = ask(opened, shelf, rows[3], words.__getitem__, without="red", weight=0.4)
    assert ids(away)[0] == "shoe"
    with pytest.raises(WrongUse, match="cancel each other out"):
        ask(opened, shelf, rows[1], words.__getitem__, without="red", weight=0.5)


@pytest.mark.parametrize(
    ("options", "picture", "words"),
    [
        ({}, False, "Name an image"),
        ({"without": "red"}, False, "Name an image"),
        ({"product": "a"}, True, "not with both"),
        ({"text": "red", "min_score": "auto"}, True, "give a number"),
    ],
)
def test_a_query_without_one_subject_is_a_sentence(
    options: dict[str, Any], picture: bool, words: str
) -> None:
    with pytest.raises(WrongUse, match=words):
        Query(top_k=5, **options).require_subject(picture)


@pytest.mark.parametrize(
    "options",
    [
        {"weight": 1.5},
        {"weight": float("nan")},
        {"diverse": -0.1},
        {"min_score": 2},
        {"min_score": "high"},
        {"text": "x" * 1001},
        {"text": 5},
        {"where": ["no condition"]},
        {"where": "a=b"},
        {"where": ["a=b"] * 21},
        {"feedback": "yes"},
        {"user": ["x"]},
        {"unheard": 1},
    ],
)
def test_a_message_with_nonsense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(WrongUse):
        Query.from_message(5, options)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"weight": 3}, "Invalid --weight 3: must be between 0 and 1."),
        ({"top_k": 0}, "Invalid --top-k 0: must be between 1 and 1000."),
        ({"without": "a\0b"}, "Invalid --exclude-text 'a\0b': must not contain a NUL character."),
        ({"min_score": "high"}, "Invalid --min-score 'high': must be between -1 and 1, or auto."),
        ({"text": "x" * 10_000}, f"Invalid --text '{'x' * 80}...': must have at most 1000 char"),
    ],
)
def test_an_invalid_value_is_a_sentence_with_its_option(
    fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(WrongUse) as caught:
        Query(**{"top_k": 5, **fields})
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(("top_k", "options"), [(5.0, None), (True, None), (5, ["text"])])
def test_a_message_of_another_shape_is_refused(top_k: Any, options: Any) -> None:
    with pytest.raises(WrongUse):
        Query.from_message(top_k, options)


def test_options_survive_the_message() -> None:
    question = Query(top_k=7, text="red", where=("a=b",), min_score="auto", diverse=0.25)
    sent = json.loads(json.dumps(question.options))
    assert Query.from_message(7, sent) == question
    assert Query(top_k=7).options == {}


def test_a_cut_off_leaves_out_what_is_no_better_than_chance() -> None:
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(8, 64))
    rows = units(np.repeat(centres, 12, axis=0) + 0.3 * rng.normal(size=(96, 64)))
    opened = open_index(rows, [f"{n:02d}.jpg" for n in range(96)])
    shelf = IndexedCatalogue(opened.version, Catalogue())
    alike = ask(opened, shelf, units(centres[2]), min_score="auto", top_k=50)
    assert set(ids(alike)) <= {f"{n:02d}" for n in range(24, 36)}
    assert len(alike.matches) >= 8
    assert alike.min_score == pytest.approx(opened.version.random_pairs["quantiles"]["0.95"])
    nothing = ask(opened, shelf, units(rng.normal(size=64)), min_score="auto")
    assert nothing.matches == []
    assert ask(opened, shelf, units(centres[2]), min_score=0.999).matches == []


def test_diversity_takes_the_best_first_and_then_what_is_unlike_it() -> None:
    base = np.eye(DIM)
    rows = units(
        np.array([base[0], base[0] + 0.01 * base[1], base[0] + 0.02 * base[1], base[0] + base[2]])
    )
    opened = open_index(rows, ["a.jpg", "twin.jpg", "triplet.jpg", "other.jpg"])
    shelf = IndexedCatalogue(opened.version, Catalogue())
    assert ids(ask(opened, shelf, rows[0], top_k=2)) == ["a", "twin"]
    answer = ask(opened, shelf, rows[0], top_k=2, diverse=0.8, explain=True)
    assert ids(answer) == ["a", "other"]
    for match in answer.matches:
        parts = dict(match["explain"])
        assert parts.pop("total") == pytest.approx(sum(parts.values()), abs=1e-5)
        assert match["score"] == pytest.approx(parts["image"], abs=1e-5)  # still the cosine


def test_only_the_places_up_to_the_page_are_ordered_for_diversity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A page behind match 6,250 ordered 25,000 candidates, which took minutes."""
    rows = units(np.random.default_rng(7).normal(size=(400, DIM)))
    opened = open_index(rows, [f"{n:03d}.jpg" for n in range(400)])
    shelf = IndexedCatalogue(opened.version, Catalogue())
    steps: list[tuple[int, int]] = []

    def counted(candidates: Any, vectors: Any, strength: float, count: int) -> Any:
        steps.append((len(candidates), count))
        return diversify(candidates, vectors, strength, count)

    monkeypatch.setattr(rank, "diversify", counted)
    monkeypatch.setattr(rank, "DIVERSIFIED", 60)
    page = ids(ask(opened, shelf, rows[0], top_k=10, offset=120, diverse=0.5))
    assert steps == [(50, 130), (60, 80), (60, 20)]
    pages = [ids(ask(opened, shelf, rows[0], top_k=65, offset=o, diverse=0.5)) for o in (0, 65)]
    assert [*pages[0], *pages[1]][120:] == page
    assert len({*pages[0], *pages[1]}) == 130


def given(query: np.ndarray, product: str, action: str, who: str = "", at: float = 1.0) -> Feedback:
    return Feedback(f"q{at}{who}", product, who, action, at, 1, "v0001", "kind", query)


def test_a_person_s_likes_move_their_own_queries_and_nobody_else_s() -> None:
    rows = units(np.random.default_rng(5).normal(size=(100, DIM)) + 2 * np.eye(DIM)[0])
    opened = open_index(rows, [f"{n:02d}.jpg" for n in range(100)])
    shelf = IndexedCatalogue(opened.version, Catalogue())
    query = units(rows.mean(axis=0))
    plain = ask(opened, shelf, query)
    last = ids(ask(opened, shelf, query, top_k=40))[-1]
    opinions = FeedbackIndex([given(query, last, "like", "ann")])
    moved = ask(opened, shelf, query, opinions=opinions, user="ann", explain=True)
    (match,) = (match for match in moved.matches if match["product_id"] == last)
    assert match["explain"]["personal"] > 0  # from rank 40 into the first five
    assert match["score"] == pytest.approx(float(query @ rows[int(last)]), abs=1e-5)
    assert ask(opened, shelf, query, opinions=opinions, user="bob").matches == plain.matches
    # A query for something else is not moved by it.
    other = units(-np.eye(DIM)[0] + 0.1 * rows[0])
    assert (
        ask(opened, shelf, other, opinions=opinions, user="ann").matches
        == ask(opened, shelf, other).matches
    )


def test_what_many_disliked_sinks_and_one_person_sinks_nothing() -> None:
    rows = units(np.random.default_rng(6).normal(size=(100, DIM)))
    opened = open_index(rows, [f"{n:02d}.jpg" for n in range(100)])
    shelf = IndexedCatalogue(opened.version, Catalogue())
    query = units(rows[3] + 0.2 * rows[4])
    plain = ask(opened, shelf, query)
    first = ids(plain)[0]
    one = FeedbackIndex([given(query, first, "dislike", "ann", at) for at in (1.0, 2.0, 3.0)])
    assert ask(opened, shelf, query, opinions=one, feedback=True).matches == plain.matches
    many = FeedbackIndex([given(query, first, "dislike", f"user{n}", float(n)) for n in range(20)])
    sunk = ask(opened, shelf, query, opinions=many, feedback=True, explain=True, top_k=100)
    assert ids(sunk)[0] != first
    (match,) = [m for m in sunk.matches if m["product_id"] == first]
    assert match["explain"]["disliked"] < 0
    assert match["score"] == plain.matches[0]["score"]


def test_the_report_gives_each_match_the_value_that_the_ranking_gave_it() -> None:
    rows = units(np.random.default_rng(6).normal(size=(100, DIM)))
    opened = open_index(rows, [f"{n:02d}.jpg" for n in range(100)])
    shelf = IndexedCatalogue(opened.version, Catalogue())
    query = units(rows[3] + 0.2 * rows[4])
    plain = ask(opened, shelf, query, top_k=20)
    opinions = FeedbackIndex(
        [given(query, ids(plain)[5], "like", "ann")]
        + [given(query, ids(plain)[0], "dislike", f"user{n}", float(n)) for n in range(20)]
    )
    served = ask(
        opened, shelf, query, opinions=opinions, user="ann", feedback=True, explain=True, top_k=100
    )
    totals = {match["product_id"]: match["explain"]["total"] for match in served.matches}
    matches = tuple((match["product_id"], match["score"]) for match in plain.matches)
    logged = LoggedQuery("q", 100.0, "ann", "v0001", "kind", matches, query)
    values = rerank(logged, opinions, shelf, opened.version.random_pairs["quantiles"])
    assert values == pytest.approx([totals[product_id] for product_id, _ in matches], abs=2e-6)
    before_any = LoggedQuery("q", -1.0, "ann", "v0001", "kind", matches, query)
    assert rerank(before_any, opinions, shelf, opened.version.random_pairs["quantiles"]) == [
        score for _, score in matches
    ]


def test_feedback_that_is_off_changes_no_byte(opened: FaissIndex) -> None:
    shelf = IndexedCatalogue(opened.version, Catalogue())
    query = opened.version.vectors[9]
    empty = ask(
        opened, shelf, query, opinions=FeedbackIndex([]), feedback=True, user="ann", top_k=20
    )
    assert json.dumps(empty.matches) == json.dumps(ask(opened, shelf, query, top_k=20).matches)


def test_random_pairs_are_pairs_of_different_rows() -> None:
    same = units(np.eye(4))
    assert faiss_index.random_pairs(same)["quantiles"]["0.999"] == 0
    assert faiss_index.random_pairs(same[:1])["quantiles"]["0.5"] == 1  # there is but one


def test_masks_are_kept_and_a_new_catalogue_forgets_them(
    opened: FaissIndex, tmp_path: Path
) -> None:
    shelf = IndexedCatalogue(opened.version, catalogue(**{"p/001": {"price": 5}}))
    conditions = Query(top_k=1, where=("price=5",)).conditions
    assert shelf.allowed(conditions) is shelf.allowed(conditions)
    later = IndexedCatalogue(opened.version, catalogue(**{"p/002": {"price": 5}}))
    mask = later.allowed(conditions)
    assert mask is not None
    assert np.flatnonzero(mask).tolist() == [2]


def test_a_shelf_that_was_prepared_has_the_filters_that_are_in_use(opened: FaissIndex) -> None:
    """Else the first filtered query of a new version works them out for a million rows."""
    known = catalogue(**{f"p/{n:03d}": {"color": "red"} for n in range(0, COUNT, 2)})
    shelves = IndexedCatalogues(lambda at_once: known)
    conditions = (Condition.parse("color=red"),)
    old = shelves.of(opened.version)
    assert old.allowed(conditions) is not None
    newer: Any = SimpleNamespace(**{**vars(opened.version), "identity": "v0002/job"})
    shelves.prepare(newer)
    assert shelves.of(opened.version) is old  # queries go on
    fresh = shelves.of(newer)
    assert (fresh.version, list(fresh._masks)) == (newer, [conditions])
    assert np.array_equal(fresh.allowed(conditions), old.allowed(conditions))
    assert shelves.of(newer) is fresh
