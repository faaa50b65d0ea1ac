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


def two_versions(shop: ToyPipeline) -> None:
    shop.rebuild()
    shop.draw("second.png", seed=300)
    shop.rebuild()


def folder(shop: ToyPipeline, name: str) -> Path:
    return shop.settings.index_dir / name


BREAK = {
    "a file cut off": lambda shop: (folder(shop, "v0002") / "index.bin").write_bytes(b"short"),
    "a file gone": lambda shop: (folder(shop, "v0002") / "vectors.npy").unlink(),
    "the manifest is no JSON": lambda shop: (folder(shop, "v0002") / "manifest.json").write_text(
        "{"
    ),
    "the manifest is something else": lambda shop: (
        folder(shop, "v0002") / "manifest.json"
    ).write_text("[]"),
    "the manifest gone": lambda shop: (folder(shop, "v0002") / "manifest.json").unlink(),
    "the version gone": lambda shop: shutil.rmtree(folder(shop, "v0002")),
    "the pointer is nonsense": lambda shop: folder(shop, "CURRENT").write_text("\0\0"),
}
broken = pytest.mark.parametrize("broken", BREAK)


@broken
def test_a_rebuild_replaces_a_published_version_that_cannot_be_opened(
    shop: ToyPipeline, broken: str
) -> None:
    two_versions(shop)
    BREAK[broken](shop)
    with pytest.raises(ImgrecError):
        PublishedIndex(shop.versions).current()
    name, embedded, reused = shop.rebuild()
    assert (embedded, reused) == (31, 0)
    version = PublishedIndex(shop.versions).current().version
    assert version.name == name
    assert len(version.paths) == 31
    shop.versions.verify(version)


@broken
def test_a_rollback_to_a_named_version_works_whatever_is_broken(
    shop: ToyPipeline, broken: str
) -> None:
    two_versions(shop)
    BREAK[broken](shop)
    assert shop.versions.rollback("v0001")[1].name == "v0001"
    assert PublishedIndex(shop.versions).current().version.name == "v0001"


@broken
def test_versions_are_listed_whatever_is_broken(shop: ToyPipeline, broken: str) -> None:
    two_versions(shop)
    BREAK[broken](shop)
    assert shop.versions.versions()[0].name == "v0001"
    with pytest.raises(WrongUse, match="v0001"):
        shop.versions.open("v0009")


def test_an_unchanged_folder_replaces_an_index_file_that_rotted(shop: ToyPipeline) -> None:
    shop.rebuild()
    flip_last_byte(folder(shop, "v0001") / "index.bin")
    assert shop.rebuild() == ("v0002", 0, 30)
    shop.versions.verify(shop.versions.current())


def test_a_version_file_that_changed_on_disk_is_named(shop: ToyPipeline) -> None:
    shop.rebuild()
    version = shop.versions.current()
    shop.versions.verify(version)
    flip_last_byte(version.folder / "files.npy")
    with pytest.raises(IndexBroken, match=r"files\.npy does not match"):
        shop.versions.verify(version)
    shop.draw("new.png", seed=300)
    shop.rebuild(full=True)
    with pytest.raises(IndexBroken, match=r"files\.npy does not match"):
        shop.versions.rollback()  # never back to a version that is not what it was
    assert shop.versions.current_name() == "v0002"


def test_without_a_pointer_nothing_is_published_but_a_named_version_can_be(
    shop: ToyPipeline,
) -> None:
    two_versions(shop)
    folder(shop, "CURRENT").unlink()
    with pytest.raises(IndexMissing):
        shop.versions.rollback()
    assert shop.versions.rollback("v0002") == (None, shop.versions.open("v0002"))


def test_leftovers_of_killed_builds_go_with_the_next_one(shop: ToyPipeline) -> None:
    shop.rebuild()
    (folder(shop, ".build-killed")).mkdir()
    (folder(shop, ".build-killed") / "vectors.npy").write_bytes(b"half")
    shop.draw("new.png", seed=300)
    shop.rebuild()
    names = {child.name for child in shop.settings.index_dir.iterdir()}
    assert names == {"v0001", "v0002", "CURRENT", ".lock"}


def test_a_version_that_is_pruned_disappears_as_a_whole(
    shop: ToyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between two files, pruning must not leave a version that can be rolled back to."""
    two_versions(shop)
    shop.draw("third.png", seed=301)
    shop.rebuild()

    class Killed(BaseException):
        pass

    def die_half_way(path: Path, **_: object) -> None:
        (path / "index.bin").unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", die_half_way)
        with pytest.raises(Killed):
            shop.versions.prune(2, protect=())
    assert [version.name for version in shop.versions.versions()] == ["v0002", "v0003"]
    with pytest.raises(WrongUse, match="no index version 'v0001'"):
        shop.versions.rollback("v0001")
    shop.draw("fourth.png", seed=302)
    shop.rebuild()  # and its rest goes with the next build
    assert not list(shop.settings.index_dir.glob(".*-*"))


def test_an_older_job_that_comes_back_from_a_crash_does_not_hide_a_later_version(
    shop: ToyPipeline,
) -> None:
    older = shop.plan()
    shop.embed(older)
    assert shop.merge(older).version == "v0001"
    with shop.jobs._database.transaction() as tx:  # as if killed before it was recorded
        tx.rows("UPDATE jobs SET state = 'merging', finished_at = NULL WHERE id = ?", (older,))
    shop.draw("later.png", seed=200)
    assert shop.rebuild()[0] == "v0002"
    assert shop.merge(older).version == "v0001"  # what it had published
    assert shop.versions.current_name() == "v0002"


def test_an_index_folder_that_was_deleted_and_made_again_is_not_mistaken_for_the_first(
    shop: ToyPipeline,
) -> None:
    """The first version of both is v0001: workers that run must see the new one."""
    shop.rebuild()
    index = PublishedIndex(shop.versions)
    assert len(index.current().version.paths) == 30
    shutil.rmtree(shop.settings.index_dir)
    shop.draw("new.png", seed=300)
    assert shop.rebuild()[0] == "v0001"
    assert len(shop.versions.current().paths) == 31
    held = index.current()
    assert len(held.version.paths) == held.n_vectors == 31


def test_manifests_say_what_a_version_is_made_of(shop: ToyPipeline) -> None:
    job_id = shop.plan()
    shop.embed(job_id)
    shop.merge(job_id)
    manifest = json.loads((folder(shop, "v0001") / "manifest.json").read_bytes())
    assert manifest["job_id"] == job_id
    assert manifest["root"] == str(shop.root)
    assert (manifest["images"], manifest["dimension"]) == (30, 12)
    assert manifest["index"]["factory"] == "Flat"
    assert manifest["fingerprint"]["id"] == shop.jobs.get(job_id).fingerprint
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
