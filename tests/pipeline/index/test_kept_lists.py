"""A merge after a small change keeps the lists that an earlier one was trained for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from index_stand import clustered, publish, store_in
from toy_pipeline import ToyPipeline

from pipeline.index import faiss_index
from pipeline.index.choose import IndexSpec
from pipeline.index.engine import Base
from pipeline.index.faiss_engine import FaissEngine, FaissIndex
from pipeline.index.versions import Version
from pipeline.rebuild import merge

COUNT, DIM = 12_000, 32
BUDGETS = {"Flat": None, "SQ8": 800_000, "PQ8x8np": 300_000}


@pytest.fixture(params=list(BUDGETS))
def engine(request: pytest.FixtureRequest) -> FaissEngine:
    return FaissEngine(1000, 1, BUDGETS[request.param])


def vectors(count: int = COUNT) -> np.ndarray:
    return clustered(2 * COUNT, DIM)[:count]


def centroids(index: FaissIndex) -> np.ndarray:
    """Return the (lists, d) centroids that an index was trained to."""
    return np.array(index.faiss.quantizer.reconstruct_n(0, index.faiss.nlist))


def changed(before: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors of which a share is new, in another order, and their rows in `before`."""
    rng = np.random.default_rng(3)
    rows = rng.permutation(len(before))
    new = rng.random(len(before)) < share
    after = before[rows]
    after[new] = clustered(2 * COUNT, DIM)[COUNT : COUNT + int(new.sum())]
    return after, np.where(new, -1, rows)


def opened(engine: FaissEngine, version: Version) -> FaissIndex:
    return engine.open(version)


def test_the_lists_are_kept_and_every_row_is_found_as_before(
    engine: FaissEngine, tmp_path: Path
) -> None:
    store = store_in(tmp_path / "index")
    before = vectors()
    old = publish(store, engine, before)
    after, rows = changed(before, 0.02)
    new = publish(store, engine, after, Base(old, rows))
    first, second = opened(engine, old), opened(engine, new)
    assert np.array_equal(centroids(first), centroids(second))
    assert new.manifest["index"]["reason"].endswith("lists kept from before")
    assert new.manifest["index"]["trained"] == COUNT
    assert second.kind.recall_at_10 >= second.kind.target_recall
    queries = faiss_index.noisy_queries(after, 100)
    best, _ = faiss_index.exact(after, queries, 10)
    scores, _ = second.search(queries, 10)
    assert (scores >= best[:, -1:] - 1e-5).mean() >= second.kind.target_recall - 0.04
    *_, everything = second.search_deepening(after[0], 5000)
    assert sorted(row for row, _ in everything) == list(range(COUNT))
    # The version before is as it was.
    assert opened(engine, old).search(before[7:8], 1)[1][0, 0] == 7


def test_a_row_is_in_the_list_of_its_nearest_centroid_as_if_it_were_new(tmp_path: Path) -> None:
    engine, store = FaissEngine(1000), store_in(tmp_path / "index")
    before = vectors()
    old = publish(store, engine, before)
    after, rows = changed(before, 0.02)
    second = opened(engine, publish(store, engine, after, Base(old, rows)))
    kept = faiss_index.keep_lists(second.faiss, second.kind, np.arange(COUNT))
    nearest = second.faiss.quantizer.search(np.ascontiguousarray(after), 1)[1][:, 0]
    assert np.array_equal(kept.lists, nearest)


def test_a_catalogue_that_has_grown_by_half_has_new_lists(tmp_path: Path) -> None:
    engine, store = FaissEngine(1000), store_in(tmp_path / "index")
    old = publish(store, engine, vectors())
    much = vectors(19_000)
    rows = np.where(np.arange(len(much)) < COUNT, np.arange(len(much)), -1)
    new = publish(store, engine, much, Base(old, rows))
    assert new.manifest["index"]["trained"] == 19_000
    assert new.manifest["index"]["nlist"] > old.manifest["index"]["nlist"]


def test_small_steps_add_up(tmp_path: Path) -> None:
    """Each step is small beside the last version, and none may escape what the lists were for."""
    engine, store = FaissEngine(1000), store_in(tmp_path / "index")
    version, count, trained = publish(store, engine, vectors(6000)), 6000, list[int]()
    for grown in (7200, 8600, 10_300):
        rows = np.where(np.arange(grown) < count, np.arange(grown), -1)
        version, count = publish(store, engine, vectors(grown), Base(version, rows)), grown
        trained.append(version.manifest["index"]["trained"])
    assert trained == [6000, 6000, 10_300]


def test_lists_that_no_longer_serve_are_trained_anew(tmp_path: Path) -> None:
    """All that is new lies where no list was, and would swell one that half of all rows are in."""
    rng = np.random.default_rng(0)
    narrow = np.ones(DIM) + 0.01 * rng.normal(size=(COUNT, DIM))
    narrow /= np.linalg.norm(narrow, axis=1, keepdims=True)
    engine, store = FaissEngine(1000), store_in(tmp_path / "index")
    old = publish(store, engine, narrow.astype(np.float32))
    after = vectors()
    after[: COUNT // 2 + 100] = narrow[: COUNT // 2 + 100]
    rows = np.where(np.arange(COUNT) < COUNT // 2 + 100, np.arange(COUNT), -1)
    new = publish(store, engine, after, Base(old, rows))
    assert not np.array_equal(centroids(opened(engine, old)), centroids(opened(engine, new)))
    assert "kept" not in new.manifest["index"]["reason"]


def test_an_index_that_cannot_be_read_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine, store = FaissEngine(1000), store_in(tmp_path / "index")
    before = vectors()
    old = publish(store, engine, before)
    (old.folder / "index.bin").write_bytes(b"no index")
    new = publish(store, engine, before, Base(old, np.arange(COUNT)))
    assert opened(engine, new).n_vectors == COUNT
    assert "trained anew" in caplog.text


def test_a_version_of_before_the_note_counts_as_trained_for_all_of_its_rows() -> None:
    kind = IndexSpec("IVF100,Flat", nlist=100, nprobe=4)
    wanted = replace(kind, factory="IVF101,Flat", nlist=101)
    trained = faiss_index.Trained(None, replace(kind, trained=1000), np.empty(0, np.int32), 0)
    assert trained.fits(wanted, 1400)
    assert not trained.fits(wanted, 1600)
    assert not trained.fits(replace(wanted, factory="IVF101,SQ8"), 1000)


def test_an_unchanged_folder_is_merged_without_a_copy_of_the_vectors(
    toy: ToyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the vectors were copied")

    toy.rebuild()
    monkeypatch.setattr(merge, "join", refuse)
    assert toy.rebuild() == ("v0001", 0, 30)
    toy.draw("new.png", seed=99)
    with pytest.raises(AssertionError, match="copied"):
        toy.rebuild()


def test_an_unchanged_folder_replaces_a_damaged_index(toy: ToyPipeline) -> None:
    toy.rebuild()
    file = toy.versions.current().folder / "index.bin"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    assert toy.rebuild()[0] == "v0002"


def test_a_small_change_of_a_folder_keeps_the_lists(
    toy: ToyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    bases = list[Base | None]()
    build = FaissEngine.build

    def note(self: FaissEngine, *args: object, **options: object) -> object:
        bases.append(args[3])  # type: ignore[arg-type]
        return build(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(FaissEngine, "build", note)
    toy.rebuild()
    toy.draw("kind0/00.png", seed=99)
    (toy.root / "kind1" / "01.png").unlink()
    toy.rebuild()
    first, second = bases
    assert first is None
    assert second is not None
    new = toy.versions.current()
    old = toy.versions.open("v0001")
    for row, base_row in enumerate(second.rows.tolist()):
        if base_row < 0:
            assert new.paths[row] == "kind0/00.png"
        else:
            assert new.paths[row] == old.paths[base_row]
