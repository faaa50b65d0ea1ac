"""Fetched images on a disk and in a store: kept by content, read by content, pruned if unused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from pipeline.atomic_files import TEMPORARY, remove_abandoned, temporary_beside
from pipeline.errors import BadImage, ImageTooLarge
from pipeline.images import fetched as module
from pipeline.images.decode import Limits, sha256
from pipeline.images.fetched import (
    FetchedFiles,
    FetchedObjects,
    FetchedStore,
    feed_name,
    prune_fetched,
)
from pipeline.images.find import ImageFile
from pipeline.storage.address import Address
from pipeline.storage.object_store import ObjectStore

LIMITS = Limits(10**6, 1000)


@pytest.fixture(params=["disk", "store"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FetchedStore:
    if request.param == "disk":
        return FetchedFiles(tmp_path / "fetched")
    return FetchedObjects(ObjectStore(Address.parse("s3://bucket/shop"), MemoryStore()))


def read(store: FetchedStore, *digests: str) -> list[bytes]:
    images = [ImageFile(f"{n}.png", 3, 1, digest) for n, digest in enumerate(digests)]
    with store.reading(images, LIMITS) as read_one:
        return [read_one(image) for image in images]


def test_a_content_is_kept_once_under_its_hash(store: FetchedStore) -> None:
    digest = store.put(b"one")
    assert digest == sha256(b"one") == store.put(b"one")
    other = store.put(b"two")
    store.require()
    assert store.has(digest)
    assert read(store, other, digest) == [b"two", b"one"]
    for unknown in (sha256(b"three"), "", "../../etc/passwd", "A" * 64):
        assert not store.has(unknown)


@pytest.mark.parametrize("damaged", [b"", b"on", b"0ne", b"one and more"])
def test_a_damaged_content_that_is_stored_again_is_whole(
    store: FetchedStore, damaged: bytes
) -> None:
    digest = store.put(b"one")
    if isinstance(store, FetchedFiles):
        store.path(digest).write_bytes(damaged)
    else:
        assert isinstance(store, FetchedObjects)
        store._store.put(f"fetched/{digest[:2]}/{digest}", damaged)
    assert store.put(b"one") == digest
    assert read(store, digest) == [b"one"]


@pytest.mark.parametrize("digest", [sha256(b"three"), "", "../secret"])
def test_what_is_not_there_is_a_bad_image(store: FetchedStore, digest: str) -> None:
    with pytest.raises(BadImage, match="does not exist any more"):
        read(store, digest)


def test_a_file_above_the_limit_is_not_read(store: FetchedStore) -> None:
    digest = store.put(b"x" * 1001)
    with pytest.raises(ImageTooLarge, match="MAX_IMAGE_BYTES"):
        read(store, digest)


def test_only_what_is_old_and_unused_is_deleted(
    store: FetchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, unused = store.put(b"one"), store.put(b"four")
    assert prune_fetched(store, lambda some: set(), dry_run=False) == (0, 0)
    monkeypatch.setattr(module, "LEAST_AGE_S", -60)
    monkeypatch.setattr(module, "AT_ONCE", 1)
    assert prune_fetched(store, lambda some: {used}, dry_run=True) == (1, 4)
    assert store.has(unused)
    assert prune_fetched(store, lambda some: {used}, dry_run=False) == (1, 4)
    assert (store.has(used), store.has(unused)) == (True, False)
    assert prune_fetched(store, lambda some: {used}, dry_run=False) == (0, 0)


def test_a_content_that_is_stored_again_while_others_are_pruned_stays(tmp_path: Path) -> None:
    files = FetchedFiles(tmp_path)
    digest = files.put(b"one")
    os.utime(files.path(digest), (1, 1))

    def stored_meanwhile(digests: list[str]) -> set[str]:
        files.put(b"one")
        return set()

    prune_fetched(files, stored_meanwhile, dry_run=False)
    assert files.has(digest)


def test_a_content_that_is_stored_again_is_new(tmp_path: Path) -> None:
    files = FetchedFiles(tmp_path)
    digest = files.put(b"one")
    os.utime(files.path(digest), (1, 1))
    assert list(files.old()) == [(digest, 3)]
    files.put(b"one")
    assert list(files.old()) == []


def test_the_root_of_a_feed_is_told_from_folders() -> None:
    assert feed_name("feed:shop") == "shop"
    assert feed_name("./feed:shop") is None
    assert feed_name("/data/products") is None


def test_only_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    names = (".0123456789abcdef.tmp", ".fedcba9876543210.tmp", ".notes.tmp", "a.jpg")
    for name in names:
        (tmp_path / name).touch()
        if name != ".fedcba9876543210.tmp":  # that one is being written
            os.utime(tmp_path / name, (1, 1))
    assert not temporary_beside(tmp_path / "a.jpg").exists()
    assert TEMPORARY.fullmatch(temporary_beside(tmp_path / "a.jpg").name)
    remove_abandoned(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(names[1:])
