"""Exact while it is small, IVF above with measured recall, mapped from disk, checked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from index_stand import clustered

from pipeline.errors import IndexBroken
from pipeline.index import faiss_index
from pipeline.index.choose import IndexSpec, choose_spec
from pipeline.index.faiss_engine import FaissIndex


def vectors(count: int, dim: int = 24, seed: int = 0) -> np.ndarray:
    """Unit vectors in clusters whose order is the row order: early rows tell nothing of late."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, dim))
    rows = centres[np.arange(count) * 20 // count] + 0.35 * rng.normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


GIB = 2**30


def test_up_to_the_limit_the_index_is_flat_and_above_it_is_ivf() -> None:
    assert choose_spec(50_000, 512, 50_000).factory == "Flat"
    kind = choose_spec(50_001, 512, 50_000)
    assert kind.factory == f"IVF{kind.nlist},Flat"
    assert "50,001 vectors, more than FLAT_MAX_VECTORS (50,000)" in kind.reason
    # FAISS asks for 39 training points a list at least.
    for count in (60_000, 1_000_000, 10_000_000):
        kind = choose_spec(count, 512, 50_000)
        assert kind.nlist == round(count**0.5)
        assert count >= 39 * kind.nlist


@pytest.mark.parametrize(
    ("budget", "factory", "words"),
    [
        (None, "IVF1000,Flat", "INDEX_MEMORY sets no limit"),
        (2 * GIB, "IVF1000,Flat", "it takes 1.9 GiB of INDEX_MEMORY (2 GiB)"),
        (GIB, "IVF1000,SQ8", "IVF1000,Flat would take 1.9 GiB, more than INDEX_MEMORY (1 GiB)"),
        (GIB // 4, "IVF1000,PQ128x8np", "it takes 132.2 MiB"),
        (GIB // 10, "IVF1000,PQ64x8np", "it takes 71.1 MiB"),
        (GIB // 20, "IVF1000,PQ32x8np", "it takes 40.6 MiB"),
        (1, "IVF1000,PQ32x8np", "no smaller kind exists"),
    ],
)
def test_the_budget_chooses_the_most_exact_kind_that_fits_and_says_why(
    budget: int | None, factory: str, words: str
) -> None:
    kind = choose_spec(1_000_000, 512, 50_000, budget)
    assert kind.factory == factory
    assert words in kind.reason
    assert budget is None or budget == 1 or kind.memory <= budget


def test_a_small_catalogue_on_a_budget_has_one_byte_a_number_and_no_lists() -> None:
    kind = choose_spec(20_000, 512, 50_000, 12_000_000)
    assert (kind.factory, kind.nlist) == ("SQ8", 0)
    # Too few vectors to train a product quantizer with: the smallest is taken, and said.
    few = choose_spec(500, 512, 50_000, 1000)
    assert few.factory == "SQ8"
    assert "more than INDEX_MEMORY (1000 bytes)" in few.reason


KINDS = {
    "Flat": (10**6, None),
    "SQ8": (10**6, 12_000 * 24 * 2),
    "IVF110,Flat": (500, None),
    "IVF110,SQ8": (500, 12_000 * 24 * 2),
    "IVF110,PQ6x8np": (500, 12_000 * 24),
}


@pytest.fixture(scope="module", params=KINDS)
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[np.ndarray, object, IndexSpec]:
    """Vectors and their index, saved and loaded again, of each kind."""
    flat_max, budget = KINDS[request.param]
    rows = vectors(12_000)
    index_, kind = faiss_index.build(rows, flat_max, budget=budget)
    assert kind.factory == request.param
    faiss_index.self_check(index_, rows, kind)
    file = tmp_path_factory.mktemp("index") / "index.bin"
    faiss_index.save(index_, file)
    # What the choice was made by is what the file has, but for headers.
    assert file.stat().st_size == pytest.approx(kind.memory, rel=0.02, abs=2000)
    return rows, faiss_index.load(file, kind), kind


def test_every_kind_finds_what_exact_search_finds_and_scores_it_exactly(
    built: tuple[np.ndarray, object, IndexSpec],
) -> None:
    rows, loaded, kind = built
    queries = vectors(12_000, seed=0)[::240] + np.float32(0.01)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    scores, found = faiss_index.search(loaded, queries, 10, kind=kind, vectors=rows)
    best, truth = faiss_index.exact(rows, queries, 10)
    assert np.array_equal(truth, np.argsort(-(queries @ rows.T), axis=1)[:, :10])
    recall = (scores >= best[:, -1:] - 1e-5).mean()
    assert recall >= kind.target_recall - 0.04
    assert kind.recall_at_10 >= kind.target_recall
    assert np.allclose(scores, np.einsum("qd,qkd->qk", queries, rows[found]), atol=1e-5)
    assert (np.diff(scores, axis=1) <= 1e-6).all()


def test_every_kind_searches_within_allowed_rows_and_down_to_the_last(
    built: tuple[np.ndarray, object, IndexSpec],
) -> None:
    rows, loaded, kind = built
    version = SimpleNamespace(manifest={"index": kind.parameters()}, vectors=rows)
    opened = FaissIndex(version, loaded)
    allowed = np.zeros(len(rows), bool)
    allowed[::400] = True
    *_, last = opened.search_deepening(rows[401], 3, allowed)
    assert sorted(row for row, _ in last) == list(range(0, 12_000, 400))
    *_, everything = opened.search_deepening(rows[0], 5000)
    assert sorted(row for row, _ in everything) == list(range(12_000))


def test_pictures_that_are_stored_many_times_do_not_count_as_lost() -> None:
    """Whichever of ten equal rows is found is right; a search for all would cost every list."""
    rows = np.repeat(vectors(1000), 20, axis=0)
    _, kind = faiss_index.build(rows, 500)
    assert kind.recall_at_10 >= 0.97
    assert kind.nprobe < kind.nlist / 4


def test_an_ivf_index_is_trained_on_all_rows_and_not_on_the_first() -> None:
    """Trained on the first rows only, one list would swallow every later cluster."""
    built, _ = faiss_index.build(vectors(4000), 500)
    sizes = [built.invlists.list_size(number) for number in range(built.nlist)]
    assert max(sizes) < 4000 / 8


def test_the_self_check_catches_an_index_of_other_vectors() -> None:
    built, kind = faiss_index.build(vectors(300), 500)
    faiss_index.self_check(built, vectors(300), kind)
    with pytest.raises(IndexBroken, match="do not find themselves"):
        faiss_index.self_check(built, vectors(300, seed=1), kind)
    with pytest.raises(IndexBroken, match="holds 300 vectors, 301"):
        faiss_index.self_check(built, vectors(301), kind)


def test_the_self_check_catches_rows_that_stand_in_another_order() -> None:
    """The same vectors, but under other ids: each match would have another product's name."""
    rows = vectors(300)
    built, kind = faiss_index.build(np.ascontiguousarray(rows[::-1]), 500)
    with pytest.raises(IndexBroken, match="do not find themselves"):
        faiss_index.self_check(built, rows, kind)


def test_the_self_check_catches_vectors_that_are_no_numbers() -> None:
    rows = vectors(200)
    rows[7] = np.nan
    built, kind = faiss_index.build(rows, 500)
    with pytest.raises(IndexBroken, match="1 of 200 sampled vectors"):
        faiss_index.self_check(built, rows, kind)


def test_equal_vectors_pass_the_self_check_although_each_finds_the_first() -> None:
    rows = np.repeat(vectors(10), 5, axis=0)
    built, kind = faiss_index.build(rows, 500)
    faiss_index.self_check(built, rows, kind)


def test_more_matches_than_products_is_all_of_them() -> None:
    built, kind = faiss_index.build(vectors(3), 500)
    scores, rows = faiss_index.search(built, vectors(3)[:1], 50, kind=kind, vectors=vectors(3))
    assert scores.shape == (1, 3)
    assert sorted(rows[0]) == [0, 1, 2]


def test_a_file_that_is_no_index_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "index.bin").write_bytes(b"nonsense")
    with pytest.raises(IndexBroken, match="Roll back with"):
        faiss_index.load(tmp_path / "index.bin", IndexSpec("Flat"))


@pytest.mark.parametrize(("count", "k"), [(5, 10), (700, 10), (700, 300), (700, 700)])
def test_exact_search_lists_the_best_of_all_blocks(
    monkeypatch: pytest.MonkeyPatch, count: int, k: int
) -> None:
    monkeypatch.setattr(faiss_index, "BLOCK_ROWS", 64)
    vectors = clustered(count, 16)
    vectors[count // 2] = np.nan  # is never among the best
    queries = faiss_index.noisy_queries(vectors[: count // 2], 3)
    scores, rows = faiss_index.exact(vectors, queries, k)
    k = min(k, count)
    products = np.nan_to_num(queries @ vectors.T, nan=-np.inf)
    expected = np.argsort(-products, axis=1, kind="stable")[:, :k]
    np.testing.assert_allclose(scores, np.take_along_axis(products, expected, 1), atol=1e-6)
    assert (rows[scores > -np.inf] == expected[scores > -np.inf]).mean() > 0.99  # equal scores
    assert (rows[scores == -np.inf] == -1).all()
