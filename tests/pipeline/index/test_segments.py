"""A version after a small change shares the large files of an earlier one."""

from __future__ import annotations

import os
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_stand import clustered, publish, store_in
from toy_pipeline import ToyPipeline

from pipeline.errors import IndexBroken
from pipeline.index import faiss_index
from pipeline.index.engine import Base, Engines
from pipeline.index.faiss_engine import FaissEngine
from pipeline.index.live_changes import AddedImage, Changes, RemovedImage, with_changes
from pipeline.index.live_index import PublishedIndex
from pipeline.index.remote_versions import RemoteVersions
from pipeline.index.segments import SegmentedIndex, SegmentedVectors
from pipeline.index.versions import Version, VersionStore
from pipeline.rebuild.migrate import migrate
from pipeline.settings import Settings

LARGE = {"vectors.npy", "index.bin"}
SHARED = {"base_vectors.npy", "base_index.bin"}
ALL_SEGMENTS = SHARED | {"new_vectors.npy", "new_index.bin", "places.npy"}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"flat_max_vectors": 1})  # inverted lists from two images on


@pytest.fixture
def toy(toy: ToyPipeline) -> ToyPipeline:
    for number in range(30, 60):
        toy.draw(f"kind{number % 2}/{number:02d}.png", seed=number)
    return toy


def names(version: Version) -> set[str]:
    return {file.name for file in version.folder.iterdir()}


def opened(toy: ToyPipeline, version: Version | None = None) -> Any:
    return FaissEngine().open(version or toy.versions.current())


def as_if_built_whole(toy: ToyPipeline, tmp_path: Path) -> Version:
    """Build the folder with nothing to share, beside the version that is looked at."""
    other = copy(toy)
    other.versions = VersionStore(tmp_path / "whole")
    other.rebuild(full=True)
    return other.versions.current()


def assert_equals_whole(toy: ToyPipeline, tmp_path: Path) -> None:
    """Compare with a rebuild of everything: rows, vectors, and the results of searches."""
    version, whole = toy.versions.current(), as_if_built_whole(toy, tmp_path)
    assert list(version.paths) == list(whole.paths) == sorted(whole.paths)
    n = len(whole.paths)
    for mine, other in (
        (version.vectors[:], whole.vectors),
        (version.vectors[np.arange(n)[::-1]], whole.vectors[::-1]),
        (np.asarray(version.vectors), whole.vectors),
        (np.array([version.vectors[row] for row in range(n)]), whole.vectors),
        (version.files, whole.files),
        (version.sha256, whole.sha256),
        (version.by_hash, whole.by_hash),
    ):
        np.testing.assert_array_equal(mine, other)
    toy.versions.verify(version)
    index, expected = opened(toy, version), opened(toy, whole)
    for allowed in (None, np.arange(n) % 3 == 0):
        for query in np.asarray(whole.vectors[::7]):
            hits = list(index.search_deepening(query, n, allowed))[-1]
            others = list(expected.search_deepening(query, n, allowed))[-1]
            assert sorted(row for row, _ in hits) == sorted(row for row, _ in others)
            np.testing.assert_allclose([s for _, s in hits], [s for _, s in others], atol=1e-6)


def change_a_little(toy: ToyPipeline) -> None:
    """Change one image, remove one, add one: two new rows, two that are gone, of sixty."""
    toy.draw("kind0/00.png", seed=99)
    (toy.root / "kind1" / "01.png").unlink()
    toy.draw("kind0/05-between.png", seed=77)


def test_a_small_change_shares_the_large_files_and_finds_what_a_whole_index_finds(
    toy: ToyPipeline, tmp_path: Path
) -> None:
    toy.rebuild()
    first = toy.versions.current()
    assert names(first) >= LARGE
    change_a_little(toy)
    assert toy.rebuild() == ("v0002", 2, 58)
    second = toy.versions.current()
    assert names(second) & LARGE == set()
    assert names(second) >= ALL_SEGMENTS
    for name, base in (("base_vectors.npy", "vectors.npy"), ("base_index.bin", "index.bin")):
        assert (second.folder / name).samefile(first.folder / base)
        assert second.manifest["files"][name] == first.manifest["files"][base]
    assert np.load(second.folder / "new_vectors.npy").shape == (2, toy.dim)
    assert_equals_whole(toy, tmp_path)


def test_changes_add_up_beside_one_base_until_they_are_worth_new_files(
    toy: ToyPipeline, tmp_path: Path
) -> None:
    toy.rebuild()
    base = (toy.versions.current().folder / "vectors.npy").stat().st_ino
    shared = []
    for step in range(7):
        toy.draw(f"kind0/new-{step}.png", seed=500 + step)
        toy.rebuild()
        version = toy.versions.current()
        file = version.folder / "base_vectors.npy"
        shared.append(file.exists() and file.stat().st_ino == base)
    assert shared == [True] * 6 + [False]  # 60 images: up to six beside them
    assert names(toy.versions.current()) >= LARGE
    assert names(toy.versions.current()) & ALL_SEGMENTS == set()
    assert_equals_whole(toy, tmp_path)


def test_rows_that_came_with_the_last_change_are_kept_changed_or_removed_by_the_next(
    toy: ToyPipeline, tmp_path: Path
) -> None:
    toy.rebuild()
    for name, seed in (("kind0/x.png", 1001), ("kind0/y.png", 1002)):
        toy.draw(name, seed)
    toy.rebuild()
    (toy.root / "kind0" / "x.png").unlink()
    toy.draw("kind0/y.png", seed=1003)
    assert toy.rebuild() == ("v0003", 1, 60)
    assert toy.versions.current().is_segmented
    assert_equals_whole(toy, tmp_path)


def test_rows_that_came_with_the_last_change_stay_in_their_lists(
    toy: ToyPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.rebuild()
    toy.draw("kind0/x.png", 1001)
    toy.rebuild()
    fill, compared = faiss_index._fill, []

    def count(index: Any, vectors: Any, lists: np.ndarray, *rest: Any) -> np.ndarray:
        compared.append((len(lists), int((lists < 0).sum())))
        return fill(index, vectors, lists, *rest)

    monkeypatch.setattr(faiss_index, "_fill", count)
    toy.draw("kind0/y.png", 1002)
    toy.rebuild()
    assert compared == [(2, 1)]
    assert_equals_whole(toy, tmp_path)


def test_only_removals_and_what_cannot_be_read_need_no_new_vector(
    toy: ToyPipeline, tmp_path: Path
) -> None:
    toy.rebuild()
    (toy.root / "kind1" / "01.png").unlink()
    (toy.root / "kind0" / "02.png").write_bytes(b"no image")
    assert toy.rebuild() == ("v0002", 0, 58)
    version = toy.versions.current()
    assert version.is_segmented
    assert np.load(version.folder / "new_vectors.npy").shape == (0, toy.dim)
    assert_equals_whole(toy, tmp_path)


def test_an_image_that_cannot_be_read_leaves_no_gap_among_the_new_vectors(
    toy: ToyPipeline, tmp_path: Path
) -> None:
    toy.rebuild()
    toy.draw("kind0/new.png", seed=55)
    (toy.root / "kind0" / "bad.png").write_bytes(b"no image")
    toy.rebuild()
    version = toy.versions.current()
    assert np.load(version.folder / "new_vectors.npy").shape == (1, toy.dim)
    assert_equals_whole(toy, tmp_path)


def test_an_unchanged_folder_keeps_a_version_of_two_segments(toy: ToyPipeline) -> None:
    toy.rebuild()
    change_a_little(toy)
    toy.rebuild()
    assert toy.rebuild() == ("v0002", 0, 60)


def test_the_shared_files_outlive_the_version_that_they_came_with(toy: ToyPipeline) -> None:
    toy.rebuild()
    change_a_little(toy)
    toy.rebuild()
    assert toy.versions.prune(1, ()) == ["v0001"]
    version = VersionStore(toy.versions.folder).current()
    toy.versions.verify(version)
    assert opened(toy, version).search(np.asarray(version.vectors[4:5]), 1)[1][0, 0] == 4
    toy.draw("kind0/later.png", seed=12)
    assert toy.rebuild()[0] == "v0003"
    assert toy.versions.prune(1, ()) == ["v0002"]
    toy.versions.verify(toy.versions.current())


def test_a_rollback_goes_either_way(toy: ToyPipeline) -> None:
    toy.rebuild()
    change_a_little(toy)
    toy.rebuild()
    live = PublishedIndex(toy.versions)
    assert live.current().version.name == "v0002"
    toy.versions.rollback()
    assert live.current().version.has_path("kind1/01.png")
    toy.versions.rollback("v0002")
    assert not live.current().version.has_path("kind1/01.png")


@pytest.mark.parametrize("file", sorted(ALL_SEGMENTS))
def test_a_damaged_segment_is_named_and_the_next_rebuild_replaces_it(
    toy: ToyPipeline, file: str
) -> None:
    toy.rebuild()
    change_a_little(toy)
    toy.rebuild()
    damaged = toy.versions.current().folder / file
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.unlink()  # so that the version before keeps its bytes
    damaged.write_bytes(bytes(data))
    store = VersionStore(toy.versions.folder)
    with pytest.raises(IndexBroken, match=file):
        store.verify(store.current())
    if file in ("base_index.bin", "new_index.bin"):
        toy.draw("kind0/later.png", seed=12)
        toy.rebuild()
        assert toy.versions.current().is_segmented is False
        toy.versions.verify(toy.versions.current())
    else:
        toy.draw("kind0/later.png", seed=12)
        with pytest.raises(IndexBroken, match="--full"):
            toy.rebuild()
        toy.rebuild(full=True)
        toy.versions.verify(toy.versions.current())


def test_without_hard_links_all_files_are_written(
    toy: ToyPipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    toy.rebuild()
    change_a_little(toy)
    monkeypatch.setattr(os, "link", refuse)
    toy.rebuild()
    assert names(toy.versions.current()) >= LARGE
    assert_equals_whole(toy, tmp_path)


def test_a_full_rebuild_shares_nothing(toy: ToyPipeline) -> None:
    toy.rebuild()
    change_a_little(toy)
    toy.rebuild(full=True)
    assert names(toy.versions.current()) & ALL_SEGMENTS == set()


def test_live_changes_lie_beside_both_segments(
    toy: ToyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.rebuild()
    change_a_little(toy)
    toy.rebuild()
    index = opened(toy)
    version, vectors = index.version, np.asarray(index.version.vectors)
    new = -vectors[3]
    added = AddedImage("a.png", "a", 1, 1, "0" * 64, version.fingerprint, new, n=1)
    removed = RemovedImage(version.paths[7], "gone", 1, 1, n=2)
    changed = with_changes(index, Changes(1, (added, removed)))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("all vectors were copied")

    monkeypatch.setattr(SegmentedVectors, "__array__", refuse)
    np.testing.assert_array_equal(changed.version.vectors[[8, 3]], vectors[[8, 3]])
    assert changed.search(new[None, :], 1)[1][0, 0] == len(vectors)
    *_, hits = changed.search_deepening(vectors[7], 100)
    assert sorted(row for row, _ in hits) == [*range(7), *range(8, len(vectors) + 1)]
    np.testing.assert_array_equal(changed.version.vectors[len(vectors)], new)


class Other:
    """Another engine that only notes what it was given."""

    name = "other"
    builds_in_memory = False

    def build(self, vectors: Any, workspace: Path, *_: object, **__: object) -> dict[str, Any]:
        self.vectors = np.array(vectors)
        self.files = {file.name for file in workspace.iterdir()}
        return {"engine": self.name, "factory": "other", "nlist": 0}

    def keep_only(self, *_: object) -> list[str]:
        return []


def test_a_version_of_two_segments_moves_to_another_engine_as_a_whole(toy: ToyPipeline) -> None:
    toy.rebuild()
    change_a_little(toy)
    toy.rebuild()
    other: Any = Other()
    with toy.versions.lock():
        old, new = migrate(toy.versions, Engines({"faiss": FaissEngine(), "other": other}), "other")
    assert other.files & ALL_SEGMENTS == set()
    np.testing.assert_array_equal(other.vectors, old.vectors[:])
    np.testing.assert_array_equal(new.vectors, old.vectors[:])
    toy.versions.verify(new)


def test_a_program_that_knows_no_segments_does_not_open_the_version(toy: ToyPipeline) -> None:
    """Those before read vectors.npy and index.bin, and a missing one is a sentence there."""
    toy.rebuild()
    change_a_little(toy)
    toy.rebuild()
    version = toy.versions.current()
    with pytest.raises(IndexBroken, match=r"vectors\.npy cannot be read"):
        version._array("vectors.npy")


# -- the index of two segments alone ---------------------------------------------------------------

COUNT, DIM = 12_000, 32
BUDGETS = {"Flat": None, "SQ8": 800_000, "PQ8x8np": 300_000}


@pytest.fixture(params=list(BUDGETS))
def engine(request: pytest.FixtureRequest) -> FaissEngine:
    return FaissEngine(1000, 1, BUDGETS[request.param])


def beside(old: np.ndarray, new: np.ndarray) -> tuple[SegmentedVectors, np.ndarray]:
    """Return the rows of a version in which every so many-th one is new, and their base rows."""
    places = np.arange(len(old))
    places[:: len(old) // len(new)] = len(old) + np.arange(len(new))
    return SegmentedVectors(old, new, places), np.where(places < len(old), places, -1)


def test_every_kind_of_lists_is_searched_in_two_segments_as_in_one(
    engine: FaissEngine, tmp_path: Path
) -> None:
    store, before = store_in(tmp_path / "index"), clustered(COUNT, DIM)
    old = publish(store, engine, before)
    vectors, rows = beside(before, clustered(2 * COUNT, DIM)[COUNT : COUNT + 100])
    stacked: Any = vectors
    version = publish(store, engine, stacked, Base(old, rows))
    assert version.is_segmented
    index, whole = engine.open(version), vectors[:]
    assert index.n_vectors == COUNT
    assert index.kind.recall_at_10 >= index.kind.target_recall
    queries = np.concatenate([faiss_index.noisy_queries(whole, 100), vectors.new[:20]])
    allowed = np.random.default_rng(5).random(COUNT) < 0.5
    for mask in (None, allowed):
        among = np.arange(COUNT) if mask is None else np.flatnonzero(mask)
        best, _ = faiss_index.exact(whole[among], queries, 10)
        scores, found = index.search(queries, 10, mask)
        assert (scores >= best[:, -1:] - 1e-5).mean() >= index.kind.target_recall - 0.04
        assert np.isin(found, among).all()
        np.testing.assert_allclose(
            scores, np.einsum("qd,qkd->qk", queries, whole[found]), atol=1e-5
        )
    *_, everything = index.search_deepening(whole[0], COUNT)
    assert sorted(row for row, _ in everything) == list(range(COUNT))


def test_lists_that_no_longer_serve_end_the_sharing(tmp_path: Path) -> None:
    """What is new lies where the base has no list, and most queries near it would miss it."""
    engine, store = FaissEngine(1000), store_in(tmp_path / "index")
    rng = np.random.default_rng(0)
    narrow = np.ones(DIM) + 0.01 * rng.normal(size=(COUNT, DIM))
    narrow = (narrow / np.linalg.norm(narrow, axis=1, keepdims=True)).astype(np.float32)
    old = publish(store, engine, narrow)
    vectors, rows = beside(narrow, -narrow[: COUNT // 2])
    stacked: Any = vectors
    version = publish(store, engine, stacked, Base(old, rows))
    assert names(version) >= LARGE
    assert names(version) & ALL_SEGMENTS == set()
    np.testing.assert_array_equal(version.vectors, vectors[:])


def test_a_shared_index_that_does_not_find_its_rows_ends_the_sharing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    check = faiss_index.self_check

    def refuse_segments(index: Any, *rest: Any) -> None:
        if isinstance(index, SegmentedIndex):
            raise IndexBroken("3 of 256 sampled vectors do not find themselves.")
        check(index, *rest)

    engine, store, before = FaissEngine(1000), store_in(tmp_path / "index"), clustered(COUNT, DIM)
    old = publish(store, engine, before)
    vectors, rows = beside(before, clustered(2 * COUNT, DIM)[COUNT : COUNT + 100])
    stacked: Any = vectors
    monkeypatch.setattr(faiss_index, "self_check", refuse_segments)
    version = publish(store, engine, stacked, Base(old, rows))
    assert not version.is_segmented
    assert engine.open(version).search(before[1:2], 1)[1][0, 0] == 1
    assert "v0001 is not gone on with: 3 of 256" in caplog.text


def test_a_smaller_budget_ends_the_sharing(tmp_path: Path) -> None:
    store, before = store_in(tmp_path / "index"), clustered(COUNT, DIM)
    old = publish(store, FaissEngine(1000), before)
    vectors, rows = beside(before, clustered(2 * COUNT, DIM)[COUNT : COUNT + 100])
    stacked: Any = vectors
    version = publish(store, FaissEngine(1000, 1, 300_000), stacked, Base(old, rows))
    assert version.manifest["index"]["factory"].endswith("PQ8x8np")
    assert not version.is_segmented


def test_where_versions_have_files_of_their_own_nothing_is_shared(
    toy: ToyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not RemoteVersions.shares_files  # each build has its own objects
    toy.rebuild()
    change_a_little(toy)
    monkeypatch.setattr(toy.versions, "shares_files", False)
    toy.rebuild()
    assert names(toy.versions.current()) >= LARGE
