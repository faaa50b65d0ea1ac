"""What broke on disk, or was killed half-way, never blocks the way back to a good index."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from toy_pipeline import ToyPipeline

from pipeline.errors import ImgrecError, IndexBroken, IndexMissing, WrongUse
from pipeline.index.live_index import PublishedIndex


def flip_last_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def two_versions(toy: ToyPipeline) -> None:
    toy.rebuild()
    toy.draw("second.png", seed=300)
    toy.rebuild()


def folder(toy: ToyPipeline, name: str) -> Path:
    return toy.settings.index_dir / name


BREAK = {
    "a file cut off": lambda toy: (folder(toy, "v0002") / "index.bin").write_bytes(b"short"),
    "a file gone": lambda toy: (folder(toy, "v0002") / "vectors.npy").unlink(),
    "the manifest is no JSON": lambda toy: (folder(toy, "v0002") / "manifest.json").write_text("{"),
    "the manifest is something else": lambda toy: (
        folder(toy, "v0002") / "manifest.json"
    ).write_text("[]"),
    "the manifest gone": lambda toy: (folder(toy, "v0002") / "manifest.json").unlink(),
    "the version gone": lambda toy: shutil.rmtree(folder(toy, "v0002")),
    "the pointer is nonsense": lambda toy: folder(toy, "CURRENT").write_text("\0\0"),
}
broken = pytest.mark.parametrize("broken", BREAK)


@broken
def test_a_rebuild_replaces_a_published_version_that_cannot_be_opened(
    toy: ToyPipeline, broken: str
) -> None:
    two_versions(toy)
    BREAK[broken](toy)
    with pytest.raises(ImgrecError):
        PublishedIndex(toy.versions).current()
    name, embedded, reused = toy.rebuild()
    assert (embedded, reused) == (31, 0)
    version = PublishedIndex(toy.versions).current().version
    assert version.name == name
    assert len(version.paths) == 31
    toy.versions.verify(version)


@broken
def test_a_rollback_to_a_named_version_works_whatever_is_broken(
    toy: ToyPipeline, broken: str
) -> None:
    two_versions(toy)
    BREAK[broken](toy)
    assert toy.versions.rollback("v0001")[1].name == "v0001"
    assert PublishedIndex(toy.versions).current().version.name == "v0001"


@broken
def test_versions_are_listed_whatever_is_broken(toy: ToyPipeline, broken: str) -> None:
    two_versions(toy)
    BREAK[broken](toy)
    assert toy.versions.versions()[0].name == "v0001"
    with pytest.raises(WrongUse, match="v0001"):
        toy.versions.open("v0009")


def test_an_unchanged_folder_replaces_an_index_file_that_rotted(toy: ToyPipeline) -> None:
    toy.rebuild()
    flip_last_byte(folder(toy, "v0001") / "index.bin")
    assert toy.rebuild() == ("v0002", 0, 30)
    toy.versions.verify(toy.versions.current())


def test_a_version_file_that_changed_on_disk_is_named(toy: ToyPipeline) -> None:
    toy.rebuild()
    version = toy.versions.current()
    toy.versions.verify(version)
    flip_last_byte(version.folder / "files.npy")
    with pytest.raises(IndexBroken, match=r"files\.npy does not match"):
        toy.versions.verify(version)
    toy.draw("new.png", seed=300)
    toy.rebuild(full=True)
    with pytest.raises(IndexBroken, match=r"files\.npy does not match"):
        toy.versions.rollback()  # never back to a version that is not what it was
    assert toy.versions.current_name() == "v0002"


def test_without_a_pointer_nothing_is_published_but_a_named_version_can_be(
    toy: ToyPipeline,
) -> None:
    two_versions(toy)
    folder(toy, "CURRENT").unlink()
    with pytest.raises(IndexMissing):
        toy.versions.rollback()
    assert toy.versions.rollback("v0002") == (None, toy.versions.open("v0002"))


def test_leftovers_of_killed_builds_go_with_the_next_one(toy: ToyPipeline) -> None:
    toy.rebuild()
    (folder(toy, ".build-killed")).mkdir()
    (folder(toy, ".build-killed") / "vectors.npy").write_bytes(b"half")
    toy.draw("new.png", seed=300)
    toy.rebuild()
    names = {child.name for child in toy.settings.index_dir.iterdir()}
    assert names == {"v0001", "v0002", "CURRENT", ".lock"}


def test_a_version_that_is_pruned_disappears_as_a_whole(
    toy: ToyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between two files, pruning must not leave a version that can be rolled back to."""
    two_versions(toy)
    toy.draw("third.png", seed=301)
    toy.rebuild()

    class Killed(BaseException):
        pass

    def die_half_way(path: Path, **_: object) -> None:
        (path / "index.bin").unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", die_half_way)
        with pytest.raises(Killed):
            toy.versions.prune(2, protect=())
    assert [version.name for version in toy.versions.versions()] == ["v0002", "v0003"]
    with pytest.raises(WrongUse, match="no index version 'v0001'"):
        toy.versions.rollback("v0001")
    toy.draw("fourth.png", seed=302)
    toy.rebuild()  # and its rest goes with the next build
    assert not list(toy.settings.index_dir.glob(".*-*"))


def test_an_older_job_that_comes_back_from_a_crash_does_not_hide_a_later_version(
    toy: ToyPipeline,
) -> None:
    older = toy.plan()
    toy.embed(older)
    assert toy.merge(older).version == "v0001"
    with toy.jobs._database.transaction() as tx:  # as if killed before it was recorded
        tx.rows("UPDATE jobs SET state = 'merging', finished_at = NULL WHERE id = ?", (older,))
    toy.draw("later.png", seed=200)
    assert toy.rebuild()[0] == "v0002"
    assert toy.merge(older).version == "v0001"  # what it had published
    assert toy.versions.current_name() == "v0002"


def test_an_index_folder_that_was_deleted_and_made_again_is_not_mistaken_for_the_first(
    toy: ToyPipeline,
) -> None:
    """The first version of both is v0001: workers that run must see the new one."""
    toy.rebuild()
    index = PublishedIndex(toy.versions)
    assert len(index.current().version.paths) == 30
    shutil.rmtree(toy.settings.index_dir)
    toy.draw("new.png", seed=300)
    assert toy.rebuild()[0] == "v0001"
    assert len(toy.versions.current().paths) == 31
    held = index.current()
    assert len(held.version.paths) == held.n_vectors == 31


def test_manifests_say_what_a_version_is_made_of(toy: ToyPipeline) -> None:
    job_id = toy.plan()
    toy.embed(job_id)
    toy.merge(job_id)
    manifest = json.loads((folder(toy, "v0001") / "manifest.json").read_bytes())
    assert manifest["job_id"] == job_id
    assert manifest["root"] == str(toy.root)
    assert (manifest["images"], manifest["dimension"]) == (30, 12)
    assert manifest["index"]["factory"] == "Flat"
    assert manifest["fingerprint"]["id"] == toy.jobs.get(job_id).fingerprint
    assert set(manifest["files"]) == {
        "index.bin",
        "id_to_filename.json",
        "paths.bin",
        "path_ends.npy",
        "vectors.npy",
        "sha256.npy",
        "by_hash.npy",
        "files.npy",
    }
