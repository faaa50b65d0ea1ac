"""Exact while it is small, IVF above with measured recall, mapped from disk, checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline import index
from pipeline.errors import IndexBroken


def vectors(count: int, dim: int = 24, seed: int = 0) -> np.ndarray:
    """Unit vectors in clusters whose order is the row order: early rows tell nothing of late."""
    dice = np.random.default_rng(seed)
    centres = dice.normal(size=(20, dim))
    rows = centres[np.arange(count) * 20 // count] + 0.35 * dice.normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_up_to_the_limit_the_index_is_flat_and_above_it_is_ivf() -> None:
    assert index.choose_kind(50_000, 50_000).factory == "Flat"
    kind = index.choose_kind(50_001, 50_000)
    assert kind.factory == f"IVF{kind.nlist},Flat"
    # FAISS: 4*sqrt(n) to 16*sqrt(n) lists, at least 39 training points each.
    for count in (60_000, 1_000_000, 10_000_000):
        kind = index.choose_kind(count, 50_000)
        assert 3.9 * count**0.5 <= kind.nlist <= 16 * count**0.5
        assert count >= 39 * kind.nlist


@pytest.mark.parametrize("flat_max", [10_000, 500])
def test_a_saved_and_mapped_index_finds_what_exact_search_finds(
    tmp_path: Path, flat_max: int
) -> None:
    rows = vectors(4000)
    built, kind = index.build(rows, flat_max)
    assert kind.factory.startswith("Flat" if flat_max == 10_000 else "IVF")
    index.self_check(built, rows)
    index.save(built, tmp_path / "index.bin")
    loaded = index.load(tmp_path / "index.bin", kind.nprobe)
    queries = vectors(100, seed=0)[:50] + np.float32(0.01)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    scores, found = index.search(loaded, queries, 10)
    truth = np.argsort(-(queries @ rows.T), axis=1)[:, :10]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(truth, found, strict=True)])
    assert recall >= (1.0 if flat_max == 10_000 else 0.9)
    assert np.allclose(scores[:, 0], (queries @ rows.T).max(1), atol=1e-5) or flat_max == 500
    assert kind.recall_at_10 >= index.TARGET_RECALL


def test_an_ivf_index_is_trained_on_all_rows_and_not_on_the_first() -> None:
    """Trained on the first rows only, one list would swallow every later cluster."""
    built, _ = index.build(vectors(4000), 500)
    sizes = [built.invlists.list_size(number) for number in range(built.nlist)]
    assert max(sizes) < 4000 / 8


def test_the_self_check_catches_an_index_of_other_vectors() -> None:
    built, _ = index.build(vectors(300), 500)
    index.self_check(built, vectors(300))
    with pytest.raises(IndexBroken, match="do not find themselves"):
        index.self_check(built, vectors(300, seed=1))
    with pytest.raises(IndexBroken, match="holds 300 vectors, 301"):
        index.self_check(built, vectors(301))


def test_the_self_check_catches_rows_that_stand_in_another_order() -> None:
    """The same vectors, but under other ids: each match would have another product's name."""
    rows = vectors(300)
    built, _ = index.build(np.ascontiguousarray(rows[::-1]), 500)
    with pytest.raises(IndexBroken, match="do not find themselves"):
        index.self_check(built, rows)


def test_the_self_check_catches_vectors_that_are_no_numbers() -> None:
    rows = vectors(200)
    rows[7] = np.nan
    built, _ = index.build(rows, 500)
    with pytest.raises(IndexBroken, match="1 of 200 sampled vectors"):
        index.self_check(built, rows)


def test_equal_vectors_pass_the_self_check_although_each_finds_the_first() -> None:
    rows = np.repeat(vectors(10), 5, axis=0)
    built, _ = index.build(rows, 500)
    index.self_check(built, rows)


def test_more_matches_than_products_is_all_of_them() -> None:
    built, _ = index.build(vectors(3), 500)
    scores, rows = index.search(built, vectors(3)[:1], 50)
    assert scores.shape == (1, 3)
    assert sorted(rows[0]) == [0, 1, 2]


def test_a_file_that_is_no_index_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "index.bin").write_bytes(b"nonsense")
    with pytest.raises(IndexBroken, match="Roll back with"):
        index.load(tmp_path / "index.bin")
