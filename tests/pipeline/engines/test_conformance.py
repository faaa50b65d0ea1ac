"""What every engine does, whether it is FAISS in a file or a server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from index_stand import clustered, publish, store_in
from live_stack import until

from pipeline.engines.choice import engines
from pipeline.errors import IndexBroken
from pipeline.index import faiss_index
from pipeline.index.engine import Engines, OpenIndex, drop_unused, engine_of
from pipeline.index.live_index import PublishedIndex
from pipeline.index.versions import VersionStore
from pipeline.settings import Settings

COUNT, DIM = 20_000, 32
ENGINES = ("flat", "ivf", "pgvector", "milvus")


@dataclass(frozen=True)
class Shelf:
    """An engine, the versions that it has built, and the newest of them."""

    settings: Settings
    engines: Engines
    vectors: np.ndarray
    opened: OpenIndex

    def another(self, folder: Path) -> tuple[Engines, VersionStore]:
        """Return the engine for the versions of another folder."""
        return engines(self.settings, lambda: str(folder)), store_in(folder / "index")


@pytest.fixture(scope="module", params=ENGINES)
def shelf(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shelf]:
    urls = {"pgvector": "vector_url", "milvus": "milvus_url"}
    name = urls.get(request.param)
    settings = Settings(
        _env_file=None,
        flat_max_vectors=10**6 if request.param == "flat" else 1000,
        vector_url=request.getfixturevalue(name) if name else "",
        cpu_threads=1,
    )
    made = engines(settings, lambda: "a folder")
    store = store_in(tmp_path_factory.mktemp("index"))
    vectors = clustered(COUNT, DIM)
    version = publish(store, made.current, vectors)
    yield Shelf(settings, made, vectors, made.open(version))
    made.keep_only([])


@pytest.mark.parametrize("share", [1, 0.5, 0.05, 0.001])
def test_a_search_finds_what_exact_search_finds_within_the_allowed_rows(
    shelf: Shelf, share: float
) -> None:
    allowed = np.random.default_rng(1).random(COUNT) < share
    rows = np.flatnonzero(allowed)
    queries = faiss_index.noisy_queries(shelf.vectors, 100)
    best, _ = faiss_index.exact(shelf.vectors[rows], queries, 10)
    reached = 0
    for query, lowest in zip(queries, best[:, -1], strict=True):
        hits = next(shelf.opened.search_deepening(query, 10, None if share == 1 else allowed))
        assert all(allowed[row] for row, _ in hits)
        assert len(hits) == 10
        scores = [score for _, score in hits]
        assert scores == sorted(scores, reverse=True)
        assert np.allclose(scores, shelf.vectors[[row for row, _ in hits]] @ query, atol=1e-5)
        reached += sum(score >= lowest - 1e-5 for score in scores)
    assert reached / best.size >= 0.97


@pytest.mark.parametrize("share", [1, 0.05, 0.001])
def test_ever_deeper_lists_end_with_every_allowed_row_once(shelf: Shelf, share: float) -> None:
    allowed = np.random.default_rng(2).random(COUNT) < share
    lists = list(shelf.opened.search_deepening(shelf.vectors[7], 3, allowed))
    lengths = [len(hits) for hits in lists]
    assert lengths == sorted(lengths)
    assert sorted(row for row, _ in lists[-1]) == np.flatnonzero(allowed).tolist()


def test_rows_that_are_far_away_are_found_where_no_others_are_allowed(shelf: Shelf) -> None:
    """A walk from the query would pass every other row first."""
    scores = shelf.vectors @ shelf.vectors[0]
    allowed = np.zeros(COUNT, bool)
    allowed[np.argsort(scores)[:2000]] = True
    hits = next(shelf.opened.search_deepening(shelf.vectors[0], 10, allowed))
    assert len(hits) >= 10
    assert all(allowed[row] for row, _ in hits)


def test_no_allowed_row_gives_an_empty_answer(shelf: Shelf) -> None:
    nothing = np.zeros(COUNT, bool)
    assert list(shelf.opened.search_deepening(shelf.vectors[0], 5, nothing)) == []


def test_many_queries_are_answered_at_once(shelf: Shelf) -> None:
    scores, rows = shelf.opened.search(np.ascontiguousarray(shelf.vectors[:5]), 3)
    assert scores.shape == rows.shape == (5, 3)
    assert np.allclose(scores[:, 0], 1, atol=1e-3)


def test_the_manifest_keeps_the_engine_and_the_measured_recall(shelf: Shelf) -> None:
    facts = shelf.opened.version.manifest["index"]
    assert engine_of(shelf.opened.version.manifest) == shelf.engines.current.name
    assert 0.97 <= facts["recall_at_10"] <= 1
    assert facts["memory"] > COUNT * DIM
    assert shelf.opened.n_vectors == COUNT


def test_the_plan_names_the_rows_that_are_allowed(shelf: Shelf) -> None:
    allowed = np.arange(COUNT) < 1234
    assert "1,234" in shelf.opened.plan(10, allowed)


def test_versions_are_published_rolled_back_and_dropped(shelf: Shelf, tmp_path: Path) -> None:
    made, store = shelf.another(tmp_path)
    first, second = clustered(600, DIM, seed=1), clustered(700, DIM, seed=2)
    published = PublishedIndex(store, engines=made)
    old = publish(store, made.current, first)
    assert published.current().n_vectors == 600
    new = publish(store, made.current, second)
    until(lambda: published.current().n_vectors == 700, "the new version is loaded", 20)
    made.verify(old)
    store.rollback(verify=made.verify)
    until(lambda: published.current().n_vectors == 600, "the old version is loaded", 20)
    scores, rows = published.current().search(first[5:6], 1)
    assert (rows[0, 0], round(float(scores[0, 0]), 3)) == (5, 1)
    assert drop_unused(made, store) == []
    store.prune(1, protect=())
    shutil.rmtree(new.folder)
    assert len(drop_unused(made, store)) == (made.current.name != "faiss")
    assert published.current().n_vectors == 600
    assert shelf.engines.open(shelf.opened.version).n_vectors == COUNT


def test_nothing_is_dropped_while_a_version_cannot_be_read(shelf: Shelf, tmp_path: Path) -> None:
    made, store = shelf.another(tmp_path)
    version = publish(store, made.current, clustered(600, DIM, seed=1))
    manifest = (version.folder / "manifest.json").read_bytes()
    (version.folder / "manifest.json").write_bytes(b"?")
    assert drop_unused(made, store) == []
    (version.folder / "manifest.json").write_bytes(manifest)
    assert made.open(store.current()).n_vectors == 600


def test_an_index_of_other_vectors_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    made, store = shelf.another(tmp_path)
    version = publish(store, made.current, clustered(600, DIM, seed=3))
    np.save(version.folder / "vectors.npy", clustered(600, DIM, seed=4))
    with pytest.raises(IndexBroken, match="do not belong together"):
        made.open(store.open(version.name))


def test_a_build_that_is_stopped_leaves_nothing(shelf: Shelf, tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    made, store = shelf.another(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        made.current.build(shelf.vectors, store.workspace(), stop)
    assert made.keep_only([]) == []
