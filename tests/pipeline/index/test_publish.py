"""Plan, merge, publish, roll back: readers see a whole version or the one before it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_pipeline import ToyPipeline

from pipeline.errors import FingerprintMismatch, IndexBroken, IndexMissing, JobFailed, WrongUse
from pipeline.index import live_index
from pipeline.index.live_index import Loading, PublishedIndex
from pipeline.index.versions import Version
from pipeline.rebuild.merge import Merged


def test_only_what_changed_is_planned_and_every_image_is_published_once(toy: ToyPipeline) -> None:
    assert toy.rebuild() == ("v0001", 30, 0)
    assert toy.rebuild() == ("v0001", 0, 30)  # the same rows need no new version
    toy.draw("kind0/00.png", seed=100)
    (toy.root / "kind1/01.png").unlink()
    toy.draw("new.png", seed=101)
    assert toy.rebuild() == ("v0002", 2, 28)
    version = toy.versions.current()
    on_disk = sorted(file.relative_to(toy.root).as_posix() for file in toy.root.rglob("*.png"))
    assert version.paths == on_disk
    for row, path in enumerate(version.paths):
        with Image.open(toy.root / path) as image:
            assert np.allclose(version.vectors[row], toy.embed_images([image])[0], atol=1e-6)
    assert toy.rebuild(full=True) == ("v0003", 30, 0)


def test_an_unchanged_folder_reads_no_image(toy: ToyPipeline) -> None:
    toy.rebuild()
    progress = toy.jobs.progress(toy.plan())
    assert (progress.images, progress.reused, progress.shards_done) == (30, 30, progress.shards)


def test_an_older_job_does_not_replace_what_a_later_one_found_unchanged(
    toy: ToyPipeline,
) -> None:
    toy.rebuild()
    toy.draw("new.png", seed=101)
    older = toy.plan()
    toy.embed(older)
    (toy.root / "new.png").unlink()
    assert toy.rebuild() == ("v0001", 0, 30)
    with pytest.raises(JobFailed, match="has already published v0001; this older one"):
        toy.merge(older)
    assert toy.versions.current().name == "v0001"


def test_another_folder_with_like_names_sizes_and_times_is_not_mistaken_for_the_first(
    toy: ToyPipeline, tmp_path: Path
) -> None:
    toy.rebuild()
    toy.root.rename(tmp_path / "elsewhere")
    toy.root = tmp_path / "elsewhere"
    assert toy.rebuild() == ("v0002", 30, 0)
    assert toy.versions.current().manifest["root"] == str(toy.root)
    assert toy.rebuild() == ("v0002", 0, 30)


def test_vectors_of_another_model_are_neither_reused_nor_compared(toy: ToyPipeline) -> None:
    toy.rebuild()
    toy.settings = toy.settings.model_copy(update={"preprocess_size": (64, 64)})
    assert toy.jobs.progress(toy.plan()).reused == 0
    with pytest.raises(FingerprintMismatch, match="enqueue-rebuild"):
        toy.versions.current().require("other", "another model")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "No such file or directory"),
        (lambda folder: folder.touch(), "is a file"),
        (lambda folder: folder.mkdir(), "is empty"),
        (lambda folder: (folder.mkdir(), (folder / "a.txt").touch()), "contains no images"),
    ],
)
def test_a_folder_that_cannot_be_indexed_is_refused_before_a_job_exists(
    toy: ToyPipeline, tmp_path: Path, make: object, words: str
) -> None:
    make(tmp_path / "folder")
    toy.root = tmp_path / "folder"
    with pytest.raises(WrongUse, match=words):
        toy.plan()
    assert toy.jobs.list_with_progress() == []


def test_a_folder_outside_of_the_allowed_roots_is_refused(toy: ToyPipeline, tmp_path: Path) -> None:
    toy.settings = toy.settings.model_copy(update={"image_roots": str(tmp_path / "only")})
    with pytest.raises(WrongUse, match="outside of IMAGE_ROOTS"):
        toy.plan()


def test_a_folder_of_bad_images_publishes_nothing_and_keeps_what_was(toy: ToyPipeline) -> None:
    toy.rebuild()
    for file in toy.root.rglob("*.png"):
        file.write_bytes(b"bad")
    job_id = toy.plan()
    toy.embed(job_id)
    with pytest.raises(JobFailed, match="No image"):
        toy.merge(job_id)
    assert toy.versions.current_name() == "v0001"


def test_a_lost_shard_file_is_named_and_nothing_is_published(toy: ToyPipeline) -> None:
    job_id = toy.plan()
    toy.embed(job_id)
    next((toy.settings.jobs_dir / job_id).glob("shard-000001-*")).unlink()
    assert toy.merge(job_id) == Merged(broken=[1])
    assert toy.versions.current_name() is None


def test_a_merge_after_a_crash_between_naming_and_pointing_publishes_the_same_version(
    toy: ToyPipeline,
) -> None:
    job_id = toy.plan()
    toy.embed(job_id)
    first = toy.merge(job_id)
    (toy.settings.index_dir / "CURRENT").unlink()  # as if killed before the pointer
    with toy.jobs._database.transaction() as tx:
        tx.rows("UPDATE jobs SET state = 'merging', finished_at = NULL WHERE id = ?", (job_id,))
    assert toy.merge(job_id) == first
    assert [version.name for version in toy.versions.versions()] == ["v0001"]


def test_an_older_job_never_hides_a_later_one(toy: ToyPipeline) -> None:
    older = toy.plan()
    toy.embed(older)
    toy.draw("later.png", seed=200)
    toy.rebuild()
    with pytest.raises(JobFailed, match="later job"):
        toy.merge(older)
    assert "later.png" in toy.versions.current().paths


def test_reused_vectors_that_rotted_on_disk_are_refused(toy: ToyPipeline) -> None:
    toy.rebuild()
    file = toy.settings.index_dir / "v0001" / "vectors.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    toy.draw("new.png", seed=300)
    job_id = toy.plan()
    toy.embed(job_id)
    with pytest.raises(IndexBroken, match="--full"):
        toy.merge(job_id)


def test_rollback_returns_to_the_version_before_and_refuses_what_is_not_there(
    toy: ToyPipeline,
) -> None:
    with pytest.raises(IndexMissing):
        toy.versions.rollback()
    toy.rebuild()
    with pytest.raises(WrongUse, match="no index version before v0001"):
        toy.versions.rollback()
    toy.draw("new.png", seed=300)
    toy.rebuild()
    assert toy.versions.rollback()[1].name == "v0001"
    assert toy.versions.current_name() == "v0001"
    assert toy.versions.rollback("v0002")[1].name == "v0002"
    with pytest.raises(WrongUse, match="v0009"):
        toy.versions.rollback("v0009")
    with pytest.raises(WrongUse):
        toy.versions.rollback("../../etc")


def test_after_a_rollback_the_next_rebuild_gets_a_new_name(toy: ToyPipeline) -> None:
    toy.rebuild()
    toy.draw("new.png", seed=300)
    toy.rebuild()
    toy.versions.rollback()
    toy.draw("newer.png", seed=301)
    assert toy.rebuild()[0] == "v0003"


def test_pruning_keeps_the_current_the_newest_and_what_jobs_build_on(toy: ToyPipeline) -> None:
    for number in range(5):
        toy.draw("changing.png", seed=400 + number)
        toy.rebuild()
    toy.versions.rollback("v0001")
    assert toy.versions.prune(2, protect={"v0003"}) == ["v0002"]
    names = [version.name for version in toy.versions.versions()]
    assert names == ["v0001", "v0003", "v0004", "v0005"]


def test_a_version_whose_files_do_not_fit_is_not_opened(toy: ToyPipeline) -> None:
    toy.rebuild()
    folder = toy.settings.index_dir / "v0001"
    (folder / "index.bin").write_bytes(b"short")
    with pytest.raises(IndexBroken, match=r"index\.bin"):
        toy.versions.open("v0001")
    (toy.settings.index_dir / "CURRENT").write_text("../../etc/passwd")
    with pytest.raises(IndexBroken, match="pointer"):
        toy.versions.current()


def test_readers_see_whole_versions_while_new_ones_are_published_and_pruned(
    toy: ToyPipeline,
) -> None:
    toy.rebuild()
    stop, seen, errors = threading.Event(), set(), []

    def read() -> None:
        index = PublishedIndex(toy.versions)
        while not stop.is_set():
            try:
                held = index.current()
                names = held.version.paths
                ((row, _),) = next(held.search_deepening(np.array(held.version.vectors[0]), 1))
                assert row == 0
                assert held.n_vectors == len(names) == held.version.manifest["images"]
                seen.add(held.version.name)
            except BaseException as error:
                errors.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for number in range(8):
            toy.draw(f"more-{number}.png", seed=500 + number)
            toy.rebuild()
            toy.versions.prune(2, protect=())
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert errors == []
    assert len(seen) > 1


def test_queries_go_on_with_the_old_version_when_the_new_one_is_broken(toy: ToyPipeline) -> None:
    toy.rebuild()
    index = PublishedIndex(toy.versions)
    assert index.current().version.name == "v0001"
    toy.draw("new.png", seed=300)
    toy.rebuild()
    names = toy.settings.index_dir / "v0002" / "id_to_filename.json"
    broken = json.loads(names.read_bytes())
    broken.pop("0")
    names.write_text(json.dumps(broken))
    assert index.current().version.name == "v0001"
    with pytest.raises(IndexBroken):
        PublishedIndex(toy.versions).current()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_large_version_is_loaded_beside_the_queries_which_go_on_with_the_one_before(
    toy: ToyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_index, "LOAD_AT_ONCE", 0)
    may_end, warmed = threading.Event(), list[str]()

    def warm(version: Version) -> None:
        may_end.wait(30)
        warmed.append(version.name)

    toy.rebuild()
    index = PublishedIndex(toy.versions, warm)
    assert index.current().version.name == "v0001"  # the first has no other to go on with
    toy.draw("new.png", seed=300)
    toy.rebuild()
    assert {index.current().version.name for _ in range(20)} == {"v0001"}
    may_end.set()
    until(lambda: index.current().version.name == "v0002")
    assert warmed == ["v0002"]  # once, however many asked


def test_a_version_of_a_server_is_loaded_beside_the_queries_however_small(
    toy: ToyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To open it takes round trips: a query waited 0.3 s for Milvus."""
    toy.rebuild()
    index = PublishedIndex(toy.versions)
    index.current()
    toy.draw("new.png", seed=300)
    toy.rebuild()
    may_end, load = threading.Event(), index._load
    monkeypatch.setattr(index, "_load", lambda name: (may_end.wait(30), load(name))[1])
    monkeypatch.setattr(live_index, "engine_of", lambda manifest: "milvus")
    assert {index.current().version.name for _ in range(20)} == {"v0001"}
    may_end.set()
    until(lambda: index.current().version.name == "v0002")


def test_a_large_version_that_could_not_be_prepared_is_served_all_the_same(
    toy: ToyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was never looked for again."""
    monkeypatch.setattr(live_index, "LOAD_AT_ONCE", 0)

    def warm(version: Version) -> None:
        raise MemoryError

    toy.rebuild()
    index = PublishedIndex(toy.versions, warm)
    index.current()
    toy.draw("new.png", seed=300)
    toy.rebuild()
    until(lambda: index.current().version.name == "v0002")


def test_a_large_version_that_is_broken_is_not_tried_again_by_each_query(
    toy: ToyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_index, "LOAD_AT_ONCE", 0)
    toy.rebuild()
    index = PublishedIndex(toy.versions)
    index.current()
    toy.draw("new.png", seed=300)
    toy.rebuild()
    names = toy.settings.index_dir / "v0002" / "id_to_filename.json"
    names.write_text("broken")
    loads: list[str] = []
    load = index._load
    monkeypatch.setattr(index, "_load", lambda name: (loads.append(name), load(name))[1])
    for _ in range(20):
        assert index.current().version.name == "v0001"
        until(lambda: not isinstance(index._state, Loading))
    assert loads == ["v0002"]
    toy.versions.rollback("v0001")
    toy.versions.prune(1, protect=())
    assert index.current().version.name == "v0001"
