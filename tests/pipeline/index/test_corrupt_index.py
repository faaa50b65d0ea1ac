"""Files of a version that rot or are swapped: a sentence with the way out, never a wrong answer."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import pytest
from toy_pipeline import ToyPipeline

from pipeline.errors import IndexBroken, ServerUnavailable
from pipeline.index import live_index
from pipeline.index.live_index import PublishedIndex
from pipeline.index.versions import Version, VersionStore

FILES = (
    *("index.bin", "id_to_filename.json", "manifest.json", "vectors.npy", "sha256.npy"),
    *("files.npy", "by_hash.npy", "paths.bin", "path_ends.npy"),
)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.file), "w")


def published_twice(toy: ToyPipeline) -> tuple[Path, Path]:
    """Two versions of the same size whose rows differ; return (older, published)."""
    toy.rebuild()
    older = toy.versions.current().folder
    # Other names, of other lengths that add up to the same.
    (toy.root / "kind0/00.png").rename(toy.root / "kind0/099.png")
    (toy.root / "kind1/07.png").rename(toy.root / "kind1/7.png")
    toy.draw("kind1/01.png", seed=777)
    toy.rebuild()
    return older, toy.versions.current().folder


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    # In the data, not in what a header leaves unused.
    data[len(data) * 2 // 3] ^= 4
    file.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut off": lambda file: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file: os.truncate(file, 0),
    "missing": lambda file: file.unlink(),
    "one bit": flip,
}


def answer_until_refused(index: PublishedIndex) -> str:
    """Ask until the index refuses; large files are compared beside the queries."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            index.current()
        except IndexBroken as error:
            return str(error)
        time.sleep(0.01)
    raise AssertionError("the index went on serving")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_of_a_version_is_named_with_the_way_out(
    toy: ToyPipeline, file: str, damage: str
) -> None:
    _, folder = published_twice(toy)
    DAMAGES[damage](folder / file)
    sentence = answer_until_refused(PublishedIndex(VersionStore(toy.settings.index_dir)))
    assert folder.name in sentence
    assert file in sentence
    assert "imgrec index rollback" in sentence


def test_a_small_version_that_is_broken_is_tried_again_now_and_then_and_at_once_after_another(
    toy: ToyPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    """Each query waited for a load that failed, and wrote a traceback."""
    toy.rebuild()
    index = PublishedIndex(VersionStore(toy.settings.index_dir))
    assert index.current().version.name == "v0001"
    toy.draw("more.png", seed=99)
    toy.rebuild()
    whole = (toy.settings.index_dir / "v0002" / "paths.bin").read_bytes()
    flip(toy.settings.index_dir / "v0002" / "paths.bin")
    for _ in range(50):
        assert index.current().version.name == "v0001"
    (record,) = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert "v0002 cannot be loaded; v0001 stays in use: " in record.getMessage()
    assert record.exc_info is None
    (toy.settings.index_dir / "v0002" / "paths.bin").write_bytes(whole)
    toy.versions.rollback("v0002")  # the pointer is written again
    assert index.current().version.name == "v0002"


def test_digests_are_compared_later_where_a_store_is_away(
    toy: ToyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_index, "RETRY_S", 0.0)
    toy.rebuild()
    versions, looks = VersionStore(toy.settings.index_dir), list[int]()

    def away_at_first(version: Version, only: Collection[str] | None = None) -> None:
        if only is not None:
            return
        looks.append(1)
        if len(looks) < 3:
            raise ServerUnavailable("The store does not answer.")
        raise IndexBroken("It does not match.")

    monkeypatch.setattr(versions, "verify", away_at_first)
    index = PublishedIndex(versions)
    with suppress(IndexBroken):
        index.current()
    assert answer_until_refused(index) == "It does not match."
    assert len(looks) == 3


@pytest.mark.parametrize("file", FILES)
def test_a_file_of_another_version_is_found_out(toy: ToyPipeline, file: str) -> None:
    older, folder = published_twice(toy)
    if file != "manifest.json":  # else its size alone would tell
        assert (older / file).stat().st_size == (folder / file).stat().st_size
    (folder / file).write_bytes((older / file).read_bytes())
    sentence = answer_until_refused(PublishedIndex(VersionStore(toy.settings.index_dir)))
    assert folder.name in sentence
    assert "imgrec index rollback" in sentence


@pytest.mark.parametrize("file", FILES)
def test_a_pickle_in_place_of_a_file_is_never_loaded(
    toy: ToyPipeline, file: str, tmp_path: Path
) -> None:
    import pickle

    _, folder = published_twice(toy)
    trap = tmp_path / "trap"
    data = pickle.dumps(Trap(trap))
    size = (folder / file).stat().st_size
    (folder / file).write_bytes(data.ljust(size, b"\0")[:size])
    answer_until_refused(PublishedIndex(VersionStore(toy.settings.index_dir)))
    assert not trap.exists()


def test_a_manifest_that_names_other_facts_under_its_old_seal_is_refused(toy: ToyPipeline) -> None:
    _, folder = published_twice(toy)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["root"] = "/elsewhere"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(IndexBroken, match=r"sealed.*imgrec index rollback"):
        PublishedIndex(VersionStore(toy.settings.index_dir)).current()


def test_a_rollback_leads_out(toy: ToyPipeline) -> None:
    older, folder = published_twice(toy)
    flip(folder / "index.bin")
    index = PublishedIndex(VersionStore(toy.settings.index_dir))
    answer_until_refused(index)
    toy.versions.rollback(older.name)
    assert index.current().version.name == older.name


@pytest.mark.parametrize("asked_between", [True, False])
def test_a_version_whose_file_was_restored_serves_again_after_a_rollback_to_it(
    toy: ToyPipeline, asked_between: bool
) -> None:
    older, folder = published_twice(toy)
    good = (folder / "vectors.npy").read_bytes()
    (folder / "vectors.npy").write_bytes(good[:-4] + bytes([good[-4] ^ 1]) + good[-3:])
    index = PublishedIndex(VersionStore(toy.settings.index_dir))
    index.current()  # one wrong bit of a vector is found only by the digests
    answer_until_refused(index)
    (folder / "vectors.npy").write_bytes(good)
    toy.versions.rollback(older.name)
    if asked_between:
        assert index.current().version.name == older.name
    toy.versions.rollback(folder.name)
    assert index.current().version.name == folder.name


def test_a_broken_version_does_not_serve_while_a_large_one_is_loaded_in_its_place(
    toy: ToyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, folder = published_twice(toy)
    monkeypatch.setattr("pipeline.index.live_index.LOAD_AT_ONCE", 0)
    flip(folder / "vectors.npy")
    index = PublishedIndex(VersionStore(toy.settings.index_dir))
    answer_until_refused(index)
    toy.versions.rollback(older.name)
    assert index.current().version.name == older.name
