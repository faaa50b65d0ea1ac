"""Pages of a query: whatever their sizes, together they are the whole list, each match once."""

from __future__ import annotations

import json
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.errors import NotFound, WrongUse
from pipeline.index import faiss_index
from pipeline.index.faiss_engine import FaissIndex
from pipeline.search.catalogue_filter import IndexedCatalogue
from pipeline.search.product_catalogue import Catalogue
from pipeline.search.query import Query
from pipeline.search.query_vector import compose
from pipeline.search.rank import Answer, recommend
from pipeline.search.relevance_feedback import Feedback, FeedbackIndex

COUNT, DIM = 700, 16
# Groups of duplicates: equal neighbors, and some that are far from each other; others have none.
GROUPS = np.full(COUNT, -1)
GROUPS[0::5] = GROUPS[1::5] = np.arange(COUNT // 5)
GROUPS[2::35] = GROUPS[3::35] = np.arange(COUNT // 35) + 1000
GROUPS[4::70] = 5000
PRODUCTS = [f"p/{number:03d}" for number in range(COUNT)]


def units(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def open_index(vectors: np.ndarray, flat_max: int, memory: int | None) -> FaissIndex:
    built, kind = faiss_index.build(vectors, flat_max, 1, memory)
    version: Any = SimpleNamespace(
        name="v0001",
        identity="v0001/job",
        kept=None,
        paths=[f"{product}.jpg" for product in PRODUCTS],
        vectors=vectors,
        manifest={"index": kind.parameters()},
        random_pairs=faiss_index.random_pairs(vectors),
    )
    return FaissIndex(version, built)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Every fifth product looks exactly like the one before."""
    rows = units(np.random.default_rng(0).normal(size=(COUNT, DIM)))
    rows[1::5] = rows[0::5]
    return rows


# Whether the search is exact, over inverted lists, or over codes that are scored again.
KINDS = {"Flat": (10**6, None), "IVF": (10, None), "SQ8": (10**6, 30_000), "IVF,SQ8": (10, 30_000)}


@pytest.fixture(scope="module", params=list(KINDS))
def opened(request: pytest.FixtureRequest, vectors: np.ndarray) -> FaissIndex:
    index = open_index(vectors, *KINDS[request.param])
    assert bool(index.kind.nlist) == ("IVF" in request.param)
    assert bool(index.kind.rerank) == ("SQ8" in request.param)
    return index


@pytest.fixture
def shelf(opened: FaissIndex) -> IndexedCatalogue:
    facts = {
        product: json.dumps({"price": number % 7, "color": ["red", "blue", "Green"][number % 3]})
        for number, product in enumerate(PRODUCTS)
        if number % 10
    }
    return IndexedCatalogue(opened.version, Catalogue(1, facts))


def ask(shelf: IndexedCatalogue, opened: FaissIndex, **options: Any) -> Answer:
    feedback = options.pop("feedback_index", None)
    query = Query(**{"top_k": 5, "total": True, **options})
    image = None if query.product or query.products else np.asarray(opened.version.vectors[3])
    query_vector = compose(query, image, lambda text: 1 / 0, shelf)
    groups = GROUPS if query.collapse else None
    return recommend(query, opened, shelf, query_vector, feedback, groups)


def ids(answer: Answer) -> list[str]:
    return [match["product_id"] for match in answer.matches]


DISLIKES = [
    Feedback(f"q{user}", product, user, "dislike", 1.0, 1, "v0001", "f", np.zeros(DIM, np.float32))
    for product in PRODUCTS[::9]
    for user in "abc"
]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"product": "p/010"},
        {"where": ("color=red",)},
        {"diverse": 0.6},
        {"sort": "price"},
        {"sort": "-color"},
        {"min_score": 0.1},
        {"feedback": True},
        {"collapse": "duplicates"},
        {"collapse": "duplicates", "diverse": 0.6},
        {"collapse": "duplicates", "where": ("color=red",)},
        {"collapse": "duplicates", "sort": "price"},
    ],
    ids=str,
)
def test_pages_of_any_sizes_are_the_long_list(
    opened: FaissIndex, shelf: IndexedCatalogue, vectors: np.ndarray, options: dict[str, Any]
) -> None:
    if "feedback" in options:
        mine = [Feedback(**{**vars(each), "vector": vectors[3]}) for each in DISLIKES]
        options = {**options, "feedback_index": FeedbackIndex(mine)}
    whole = ids(ask(shelf, opened, top_k=300, **options))
    assert len(whole) == len(set(whole)) > 60
    for sizes in ([7] * 20, [1, 50, 3, 100], [49, 1, 1, 49]):
        pages: list[str] = []
        for size in sizes:
            answer = ask(shelf, opened, top_k=size, offset=len(pages), **options)
            assert [match["rank"] for match in answer.matches] == [
                len(pages) + place for place in range(1, len(answer.matches) + 1)
            ]
            pages += ids(answer)
        assert pages == whole[: len(pages)]


def test_one_of_each_group_is_shown_on_all_pages_together_and_it_is_the_best(
    opened: FaissIndex, shelf: IndexedCatalogue
) -> None:
    everything = ids(ask(shelf, opened, top_k=1000))
    collapsed: list[str] = []
    while matches := ask(
        shelf, opened, top_k=90, offset=len(collapsed), collapse="duplicates"
    ).matches:
        collapsed += [match["product_id"] for match in matches]
    group_of = dict(zip(PRODUCTS, GROUPS.tolist(), strict=True))
    first: dict[int, str] = {}
    for product in everything:
        if group_of[product] >= 0:
            first.setdefault(group_of[product], product)
    expected = [
        product
        for product in everything
        if group_of[product] < 0 or first[group_of[product]] == product
    ]
    assert sorted(collapsed) == sorted(expected)
    if opened.kind.nlist == 0 and not opened.kind.rerank:
        assert collapsed == expected


def test_the_total_of_a_collapsed_list_is_known_where_the_list_is_complete(
    opened: FaissIndex, shelf: IndexedCatalogue
) -> None:
    whole = ask(shelf, opened, top_k=1000, collapse="duplicates")
    assert whole.total == len(whole.matches) < COUNT
    assert ask(shelf, opened, top_k=2, collapse="duplicates").total is None


def test_every_product_is_on_one_page_and_the_total_counts_them(
    opened: FaissIndex, shelf: IndexedCatalogue
) -> None:
    listed: list[str] = []
    while page := ask(shelf, opened, top_k=90, offset=len(listed)):
        assert page.total == COUNT
        if not page.matches:
            break
        listed += ids(page)
    assert sorted(listed) == PRODUCTS


@pytest.mark.parametrize("options", [{"where": ("color=red",)}, {"product": "p/010"}], ids=str)
def test_the_total_is_what_the_pages_hold(
    opened: FaissIndex, shelf: IndexedCatalogue, options: dict[str, Any]
) -> None:
    matches = ids(ask(shelf, opened, top_k=1000, **options))
    assert ask(shelf, opened, top_k=2, **options).total == len(matches)


def test_a_total_that_would_take_a_search_of_everything_is_not_known(
    opened: FaissIndex, shelf: IndexedCatalogue
) -> None:
    whole = ask(shelf, opened, top_k=1000, min_score=0.0)
    assert whole.total == len(whole.matches) < COUNT
    assert ask(shelf, opened, top_k=2, min_score=0.0).total is None


def test_a_total_is_not_known_where_feedback_moves_the_query(
    opened: FaissIndex, shelf: IndexedCatalogue
) -> None:
    """Behind a product of too low a score may come one that reaches it."""
    moved = [
        Feedback(
            f"q{n}", PRODUCTS[n], "ann", "like", 1.0, 1, "v0001", "f", opened.version.vectors[3]
        )
        for n in range(200, 210)
    ]

    def look(top_k: int) -> Answer:
        index = FeedbackIndex(moved)
        return ask(shelf, opened, top_k=top_k, min_score=0.1, user="ann", feedback_index=index)

    whole = look(1000)
    assert whole.total == len(whole.matches) < COUNT
    assert {look(top_k).total for top_k in (1, 5, 20, 60)} <= {None, whole.total}


def test_equal_scores_come_in_the_order_of_their_ids(
    opened: FaissIndex, shelf: IndexedCatalogue
) -> None:
    matches = ask(shelf, opened, top_k=400).matches
    twins = [
        (first["product_id"], second["product_id"])
        for first, second in pairwise(matches)
        if first["score"] == second["score"]
    ]
    assert len(twins) > 20
    assert all(first < second for first, second in twins)


def test_sorting_takes_numbers_as_numbers_and_puts_products_without_the_fact_last(
    opened: FaissIndex, shelf: IndexedCatalogue
) -> None:
    for sort, ascending in (("price", True), ("-price", False)):
        answer = ask(shelf, opened, top_k=1000, sort=sort)
        prices = [match.get("product", {}).get("price") for match in answer.matches]
        known = [price for price in prices if price is not None]
        assert known == sorted(known, reverse=not ascending)
        assert prices == known + [None] * (COUNT // 10)
        same = [
            match["score"]
            for match, price in zip(answer.matches, prices, strict=True)
            if price == 3
        ]
        assert same == sorted(same, reverse=True)
    colors = [m["product"]["color"] for m in ask(shelf, opened, sort="color", top_k=600).matches]
    assert list(dict.fromkeys(colors)) == ["blue", "Green", "red"]


def test_only_the_columns_that_are_asked_for_are_returned(
    opened: FaissIndex, shelf: IndexedCatalogue
) -> None:
    answer = ask(shelf, opened, fields=("price",))
    assert {tuple(match.get("product", ())) for match in answer.matches} <= {("price",), ()}
    assert not any("product" in match for match in ask(shelf, opened, fields=()).matches)


@pytest.mark.parametrize("options", [{"sort": "colour"}, {"fields": ("colour",)}], ids=str)
def test_an_unknown_column_is_a_sentence(
    opened: FaissIndex, shelf: IndexedCatalogue, options: dict[str, Any]
) -> None:
    with pytest.raises(WrongUse, match=r"Unknown column 'colour'\. Available columns: color"):
        ask(shelf, opened, **options)


def test_products_with_weights_are_one_question_and_no_matches_of_it(
    opened: FaissIndex, shelf: IndexedCatalogue
) -> None:
    weights = {"p/010": 1.0, "p/020": 0.5, "p/033": -0.25}
    matches = ids(ask(shelf, opened, products=weights, top_k=1000))
    assert sorted(matches) == sorted(set(PRODUCTS) - weights.keys())
    expected = sum(weight * shelf.vector_of(name) for name, weight in weights.items())
    best = max(matches, key=lambda name: float(expected @ shelf.vector_of(name)))
    assert matches[0] == best
    with pytest.raises(NotFound, match="has no product 'p/x'"):
        ask(shelf, opened, products={"p/x": 1.0})
    with pytest.raises(WrongUse, match="cancel each other out"):
        ask(shelf, opened, products={"p/010": 0.0})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"offset": -1}, "Invalid --offset -1: must be between 0 and 10000"),
        ({"box": [0.5, 0, 0.6, 1]}, "Invalid --box"),
        ({"box": [0, 0, float("nan"), 1]}, "Invalid --box"),
        ({"products": {"a": 2.0}}, "must be between -1 and 1"),
        ({"index_version": "v" * 30}, "Invalid --index-version"),
    ],
    ids=str,
)
def test_an_invalid_value_is_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(WrongUse, match=sentence):
        Query.from_message(5, options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"text": "shoe", "box": (0, 0, 1, 1)}, "--box is a part of an image"),
        ({"text": "shoe", "sort": "price", "diverse": 0.5}, "--sort orders by a column"),
    ],
    ids=str,
)
def test_what_contradicts_itself_is_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(WrongUse, match=sentence):
        Query(top_k=5, **options).require_subject(0)
