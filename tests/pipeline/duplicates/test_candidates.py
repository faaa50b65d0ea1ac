"""Candidates come from the index in blocks: close pairs, each once, however the index is built."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.duplicates.candidates import BLOCK, find_candidates, first_rows
from pipeline.index import faiss_index
from pipeline.index.faiss_engine import FaissIndex

COUNT, DIM = 3000, 32
COPIES = [(number, 1500 + number) for number in range(0, 200, 7)]


def units(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module", params=["Flat", "IVF"])
def index(request: pytest.FixtureRequest) -> FaissIndex:
    rng = np.random.default_rng(0)
    rows = units(rng.normal(size=(COUNT, DIM)))
    for one, other in COPIES:
        rows[other] = units(rows[one] + 0.01 * rng.normal(size=DIM))
    built, kind = faiss_index.build(rows, 10**6 if request.param == "Flat" else 10)
    version: Any = SimpleNamespace(
        vectors=rows,
        manifest={"index": kind.parameters()},
        random_pairs=faiss_index.random_pairs(rows),
    )
    return FaissIndex(version, built)


def test_close_pairs_are_found_once_and_the_closest_first(index: FaissIndex) -> None:
    done: list[int] = []
    found = find_candidates(index, np.arange(COUNT), None, done.append)
    pairs = [tuple(pair) for pair in found.rows.tolist()]
    assert len(pairs) == len(set(pairs))
    assert set(COPIES) <= set(pairs)
    assert all(one < other for one, other in pairs)
    assert (np.diff(found.scores) <= 0).all()
    similar = {pair for pair, same in zip(pairs, found.similar, strict=True) if same}
    assert similar == set(COPIES)  # all else is as far away as anything is
    assert done == [min(COUNT, BLOCK * n) for n in range(1, -(-COUNT // BLOCK) + 1)]


def test_a_threshold_is_the_lowest_score(index: FaissIndex) -> None:
    found = find_candidates(index, np.arange(COUNT), 0.99)
    assert {tuple(pair) for pair in found.rows.tolist()} == set(COPIES)
    assert found.similar.all()
    assert len(find_candidates(index, np.arange(COUNT), 0.6).rows) > len(COPIES)
    assert len(find_candidates(index, np.arange(COUNT), 1.0).rows) <= 1  # rounding


def test_rows_that_are_left_out_are_found_by_none(index: FaissIndex) -> None:
    """Twenty copies of one file would hide all other neighbors of it."""
    rows = np.setdiff1d(np.arange(COUNT), [one for one, _ in COPIES])
    found = find_candidates(index, rows, 0.99)
    assert len(found.rows) == 0


@pytest.mark.parametrize("n_copies", [3, 40])
def test_copies_hide_no_neighbor_whatever_their_number(n_copies: int) -> None:
    rng = np.random.default_rng(1)
    rows = units(rng.normal(size=(300, DIM)))
    rows[1] = units(rows[0] + 0.02 * rng.normal(size=DIM))
    rows[100 : 100 + n_copies] = rows[0]  # the same file many times
    built, kind = faiss_index.build(rows, 10**6)
    version: Any = SimpleNamespace(
        vectors=rows,
        manifest={"index": kind.parameters()},
        random_pairs=faiss_index.random_pairs(rows),
    )
    others = np.setdiff1d(np.arange(300), np.arange(100, 100 + n_copies))
    found = find_candidates(FaissIndex(version, built), others, None)
    assert [0, 1] in found.rows.tolist()
    assert not np.isin(found.rows, np.arange(100, 100 + n_copies)).any()


def test_an_index_of_one_image_has_no_pairs(index: FaissIndex) -> None:
    assert len(find_candidates(index, np.array([5]), None).rows) == 0
    assert len(find_candidates(index, np.array([], np.int64), None).rows) == 0


def test_rows_of_one_content_are_named_by_their_first() -> None:
    hashes = np.array([b"b", b"a", b"b", b"c", b"a"], "S64")
    rows, first_of = first_rows(hashes)
    assert rows.tolist() == [0, 1, 3]
    assert first_of.tolist() == [0, 1, 0, 3, 1]
