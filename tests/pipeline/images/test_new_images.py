"""An image that is added lies below the products' root: whole, under a safe name, over no other."""

from __future__ import annotations

import errno
import io
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore
from PIL import Image

from pipeline.errors import Conflict, FolderUnavailable, ImgrecError, WrongUse
from pipeline.images.decode import Limits
from pipeline.images.find import ImageFile, find_images
from pipeline.images.new_images import (
    NewFiles,
    NewImages,
    image_path,
    open_new_images,
    upload_name,
)
from pipeline.images.object_source import ObjectSource
from pipeline.settings import Settings
from pipeline.storage.object_store import ObjectStore

LIMITS = Limits(10**6, 10**6)


def png_of(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (seed, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(params=["folder", "store"])
def root(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str | Path:
    """The root of the products: a folder, or a prefix of a store in memory."""
    if request.param == "folder":
        (tmp_path / "products").mkdir()
        return tmp_path / "products"
    memory, made = MemoryStore(), ObjectStore.__init__

    def init(self: ObjectStore, address: Any, library: Any = None) -> None:
        made(self, address, library or memory)

    monkeypatch.setattr(ObjectStore, "__init__", init)
    return "s3://shop"


def listed(root: str | Path) -> list[ImageFile]:
    """List the images as a rebuild does."""
    if isinstance(root, Path):
        found = find_images(root)
    else:
        from pipeline.images.roots import parse_root

        found = ObjectSource(parse_root(root)).find()  # type: ignore[arg-type]
    return [each for each in found if isinstance(each, ImageFile)]


@pytest.fixture
def images(root: str | Path, settings: Settings) -> NewImages:
    return open_new_images(str(root), settings)


def test_a_rebuild_lists_what_was_put_as_it_was_returned(
    images: NewImages, root: str | Path
) -> None:
    data = png_of(1)
    file = images.put("lamp/one/a.png", data)
    (found,) = listed(root)
    assert (found.path, found.size, found.mtime_ns) == (file.path, file.size, file.mtime_ns)
    assert images.read("lamp/one/a.png", LIMITS) == data


def test_the_same_image_again_changes_nothing_and_another_one_is_refused(
    images: NewImages, root: str | Path
) -> None:
    first = images.put("lamp/a.png", png_of(1))
    assert images.put("lamp/a.png", png_of(1)) == first
    with pytest.raises(Conflict, match=r"lamp/a\.png is another photo"):
        images.put("lamp/a.png", png_of(2))
    assert images.read("lamp/a.png", LIMITS) == png_of(1)
    assert len(listed(root)) == 1


def test_an_image_whose_time_no_database_holds_has_the_one_that_a_rebuild_lists(
    tmp_path: Path,
) -> None:
    images = NewFiles(tmp_path)
    images.put("lamp/a.png", png_of(1))
    os.utime(tmp_path / "lamp/a.png", (2**34, 2**34))  # in the year 2514
    file = images.put("lamp/a.png", png_of(1))
    assert file.mtime_ns == listed(tmp_path)[0].mtime_ns < 2**63


@pytest.mark.parametrize("links", [True, False], ids=["links", "no-links"])
def test_of_two_that_write_one_path_at_once_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    both_look = threading.Barrier(2)

    def hook(name: str, *_: object) -> None:
        if name == "new_image.before_link":  # both have seen that nothing is there
            both_look.wait(10)

    def no_link(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr("pipeline.images.new_images.failpoint", hook)
    if not links:
        monkeypatch.setattr(os, "link", no_link)
    outcomes: dict[int, object] = {}

    def put(seed: int) -> None:
        try:
            outcomes[seed] = NewFiles(tmp_path).put("lamp/a.png", png_of(seed))
        except Conflict as error:
            outcomes[seed] = error

    threads = [threading.Thread(target=put, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [seed for seed, outcome in outcomes.items() if isinstance(outcome, ImageFile)]
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes.values()) == 1
    assert (tmp_path / "lamp/a.png").read_bytes() == png_of(winner)
    assert [each.name for each in (tmp_path / "lamp").iterdir()] == ["a.png"]


def test_a_link_that_leads_out_of_the_root_is_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "products", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "lamp").symlink_to(outside)
    with pytest.raises(WrongUse, match="leads outside the products folder"):
        NewFiles(root).put("lamp/a.png", png_of(1))
    assert not list(outside.iterdir())


def test_a_file_in_the_place_of_a_folder_is_a_conflict(tmp_path: Path) -> None:
    (tmp_path / "lamp").write_bytes(b"1")
    with pytest.raises(Conflict):
        NewFiles(tmp_path).put("lamp/a.png", png_of(1))


def test_a_root_that_cannot_be_written_is_a_sentence_with_user_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(FolderUnavailable, match="Read-only file system") as error:
        NewFiles(tmp_path).put("lamp/a.png", png_of(1))
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    "product",
    ["", "..", "../lamp", "a/../../b", "/etc", ".hidden/x", "a\\b", "a\0b", "@eaDir", "x" * 300],
)
def test_a_product_that_no_folder_can_be_named_after_is_refused(product: str) -> None:
    with pytest.raises(WrongUse, match="No folder can be named after the product"):
        image_path(product, "a.png", png_of(1))


def test_only_the_last_part_of_a_name_counts_and_its_suffix_is_an_images() -> None:
    data = png_of(1)
    assert image_path("lamp", "../../etc/a.PNG", data) == "lamp/a.PNG"
    assert image_path("lamp", "C:\\photos\\a.jpeg", data) == "lamp/a.jpeg"
    assert image_path("lamp", "photo", data) == "lamp/photo.png"
    assert image_path("lamp", "photo.php", data) == "lamp/photo.php.png"
    for name in (".htaccess", "a\nb.png", "/"):
        with pytest.raises(WrongUse, match="No image can be named"):
            image_path("lamp", name, b"no image")


def test_an_upload_is_named_by_what_it_is_called_and_what_it_holds() -> None:
    first, second = upload_name("image.jpg", png_of(1)), upload_name("image.jpg", png_of(2))
    assert first != second
    assert first == upload_name("image.jpg", png_of(1))
    assert first.startswith("image-")
    assert first.endswith(".png")
    for name in ("../../.bashrc", "a/b\\..", "\0", "", ".", "x" * 5000, "‮gpj.exe"):
        path = image_path("lamp", upload_name(name, png_of(1)), png_of(1))
        assert path.count("/") == 1
        assert "\0" not in path


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("feed:shop", "add the image's address to the feed"),
        ("https://shop.example/photos", "put the photo there and rebuild"),
        ("/nowhere", "is not on this machine"),
    ],
)
def test_where_nothing_can_be_added_is_a_sentence(
    settings: Settings, address: str, sentence: str
) -> None:
    with pytest.raises(ImgrecError, match=sentence):
        open_new_images(address, settings)


def test_a_root_outside_of_image_roots_is_refused(settings: Settings, tmp_path: Path) -> None:
    settings = settings.model_copy(update={"image_roots": "/products"})
    with pytest.raises(WrongUse, match="IMAGE_ROOTS"):
        open_new_images(str(tmp_path), settings)
