"""Images in a real S3 server: listed like a folder, read ahead, and each trouble told apart."""

from __future__ import annotations

import io
import random
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from s3_server import READER, READER_SECRET, S3Server
from toy_pipeline import ToyPipeline

from pipeline.errors import BadImage, ImgrecError, ServerUnavailable, StoreRefused, WrongUse
from pipeline.images import fetch_ahead
from pipeline.images.decode import Limits
from pipeline.images.failure import Failure
from pipeline.images.find import ImageFile, LeftOut, find_images
from pipeline.images.object_source import ObjectSource
from pipeline.images.roots import open_source, parse_root
from pipeline.settings import Settings
from pipeline.storage.address import Address
from pipeline.storage.object_store import ObjectInfo, ObjectStore

LIMITS = Limits(10**6, 10**6)


@pytest.fixture
def store(s3: S3Server) -> ObjectStore:
    return ObjectStore(Address.parse(f"s3://shop/{uuid.uuid4().hex}"))


def source_of(store: ObjectStore) -> ObjectSource:
    return ObjectSource(Address.parse(store.name))


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((16, 16), Image.Resampling.NEAREST).save(stream, "PNG")
    return stream.getvalue()


def names(items: Iterator[ImageFile | Failure]) -> list[str]:
    return [item.path for item in items if isinstance(item, ImageFile)]


def test_a_store_lists_what_a_folder_of_the_same_files_lists(
    store: ObjectStore, tmp_path: Path
) -> None:
    paths = ["a/b.jpg", "a-b.jpg", "a0.jpg", "a.JPG", "Z.png", "ü/👟.webp", ".hidden/x.jpg"]
    paths += ["x/.y.jpg", "@eaDir/a.jpg", "notes.txt", "x/list.csv"]
    for path in paths:
        file = tmp_path / path
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"1")
        store.put(path, b"1")
    of_folder, of_store = LeftOut(), LeftOut()
    assert names(source_of(store).find(None, of_store)) == names(
        find_images(tmp_path, None, of_folder)
    )
    # Of a hidden folder or a system folder, a folder's listing counts one, a store's each file.
    assert of_store.by_reason() == of_folder.by_reason()


def test_any_order_of_a_store_becomes_the_order_of_paths(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"{kind}/{n:03d}.jpg" for kind in "abc" for n in range(300)]
    mixed = random.Random(1).sample(keys, len(keys))
    monkeypatch.setattr(
        ObjectStore, "pages", lambda self: iter([[ObjectInfo(k, 1, f'"{k}"') for k in mixed]])
    )
    items = list(source_of(store).find())
    assert names(iter(items)) == keys
    assert len({item.mtime_ns for item in items if isinstance(item, ImageFile)}) == len(keys)


def test_a_rebuild_of_a_store_embeds_again_only_what_changed(
    toy: ToyPipeline, store: ObjectStore
) -> None:
    for number in range(30):
        store.put(f"kind{number % 2}/{number:02d}.png", png(number))
    toy.address = store.name
    assert toy.rebuild() == ("v0001", 30, 0)
    assert toy.versions.current().manifest["root"] == store.name
    assert toy.rebuild() == ("v0001", 0, 30)
    store.put("kind0/00.png", png(99))  # of the same size, maybe: the tag tells
    store.put("kind1/01.png", png(1))  # as it was before
    store.delete(["kind0/02.png"])
    assert toy.rebuild() == ("v0002", 1, 28)


def test_a_folder_and_its_file_address_are_one_root(toy: ToyPipeline) -> None:
    toy.rebuild()
    toy.address = f"file://{toy.root}"
    assert toy.rebuild() == ("v0001", 0, 30)


def read(source: ObjectSource, path: str, limits: Limits = LIMITS) -> bytes:
    image = ImageFile(path, 1, 1)
    with source.reading([image], limits) as reading:
        return reading(image)


def test_what_is_wrong_with_one_object_is_told_of_it(store: ObjectStore) -> None:
    store.put("large.jpg", b"x" * 2000)
    store.put("empty.jpg", b"")
    source = source_of(store)
    for path, reason in (
        ("gone.jpg", "the store has no such object any more"),
        ("empty.jpg", r"the file is empty \(0 bytes\)"),
        ("large.jpg", r"2,000 bytes, more than MAX_IMAGE_BYTES \(1,999\)"),
        ("a//b.jpg", "cannot be used"),
    ):
        with pytest.raises(BadImage, match=reason) as error:
            read(source, path, Limits(10**6, 1_999))
        assert error.value.stage == "read"


def test_one_object_that_is_refused_is_a_bad_image_and_a_store_that_refuses_all_is_not(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("a.jpg", "b.jpg"):
        store.put(path, b"1")
    get, info = ObjectStore.get, ObjectStore.info

    def denied(self: ObjectStore, key: str, *more: object) -> object:
        if key in refused:
            raise StoreRefused("refused")
        return (get if more else info)(self, key, *more)

    monkeypatch.setattr(ObjectStore, "get", denied)
    monkeypatch.setattr(ObjectStore, "info", denied)
    refused = {"a.jpg"}
    with pytest.raises(BadImage, match="refuses to give this object"):
        read(source_of(store), "a.jpg")
    refused = {"a.jpg", "b.jpg"}
    with pytest.raises(StoreRefused):
        read(source_of(store), "a.jpg")


def test_images_are_fetched_ahead_within_their_limits(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four threads take 40 images; sixteen of 1 MB and less would be fetched at once."""
    monkeypatch.setattr(fetch_ahead, "FETCH_BYTES", 5_000_000)
    bytes_at_once, most, turn = 0, 0, threading.Lock()
    images = [ImageFile(f"{n:02d}.jpg", 1_000_000, 1) for n in range(40)]
    go_on = threading.Event()

    def get(self: ObjectSource, path: str, limits: Limits) -> bytes:
        nonlocal bytes_at_once, most
        with turn:
            bytes_at_once += 1
            most = max(most, bytes_at_once)
            if bytes_at_once == 5:
                go_on.set()
        assert go_on.wait(20)
        with turn:
            bytes_at_once -= 1
        return path.encode()

    monkeypatch.setattr(ObjectSource, "read", get)
    with (
        source_of(store).reading(images, LIMITS) as reading,
        ThreadPoolExecutor(1) as pool,
    ):
        assert list(pool.map(reading, images)) == [image.path.encode() for image in images]
        assert reading(images[3]) == b"03.jpg"  # once more, as after a lack of memory
    assert most == 5


def test_a_store_that_goes_away_blames_no_image(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: ObjectStore, key: str, *more: object) -> object:
        raise ServerUnavailable("away")

    monkeypatch.setattr(ObjectStore, "get", away)
    with pytest.raises(ServerUnavailable):
        read(source_of(store), "a.jpg")


@pytest.mark.parametrize(
    ("roots", "root", "allowed"),
    [
        ("", "s3://shop/a", True),
        ("s3://shop", "s3://shop/a", True),
        ("/data:s3://shop/a:gs://xyz", "s3://shop/a/b", True),
        ("/data:https://files.example:8443/a:s3://xyz", "https://files.example:8443/a/b", True),
        ("/data:https://files.example:8443/a:s3://xyz", "s3://xyz", True),
        ("s3://shop/a", "s3://shop/ab", False),
        ("s3://shop/a", "s3://shop", False),
        ("s3://shop", "gs://shop", False),
        ("/data", "s3://data", False),
        ("s3://shop", "/shop", False),
        ("file:///data:s3://xyz", "/data/b", True),
        ("file:///data:s3://xyz", "/database", False),
    ],
)
def test_image_roots_name_folders_and_stores(
    settings: Settings, s3: S3Server, roots: str, root: str, allowed: bool
) -> None:
    settings = settings.model_copy(update={"image_roots": roots})
    if allowed:
        assert open_source(root, settings).name == root
    else:
        with pytest.raises(WrongUse, match="outside of IMAGE_ROOTS"):
            open_source(root, settings)


@pytest.mark.parametrize("roots", [":", "::"])
def test_image_roots_of_nothing_allow_nothing(settings: Settings, roots: str) -> None:
    """As a template such as ${A}:${B} leaves it."""
    with pytest.raises(WrongUse, match=r"IMAGE_ROOTS .* names no folder and no store"):
        open_source("/data", settings.model_copy(update={"image_roots": roots}))


def test_a_full_disk_of_temporary_files_is_told(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(sqlite3.Connection):
        def executemany(self, *_: object) -> sqlite3.Cursor:
            raise sqlite3.OperationalError("database or disk is full")

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda name: connect(name, factory=Full))
    with pytest.raises(ImgrecError, match=r"cannot be written to .* Free some space there"):
        list(source_of(store).find())


def test_a_file_address_of_another_host_is_refused() -> None:
    assert parse_root("file:///a%20b") == Path("/a b")
    with pytest.raises(WrongUse, match="names no folder of this host"):
        parse_root("file://elsewhere/a")


def test_a_store_without_images_and_one_that_refuses_are_told_before_a_job_exists(
    toy: ToyPipeline, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("readme.txt", b"1")
    toy.address = store.name
    with pytest.raises(WrongUse, match=r"no images below s3://shop/.*Left out: 1 not an image's"):
        toy.plan()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"not {READER_SECRET}")
    with pytest.raises(StoreRefused, match="refuses access"):
        toy.plan()
    assert toy.jobs.list_with_progress() == []
