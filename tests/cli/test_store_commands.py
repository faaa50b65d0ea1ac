"""Commands about photos in a real S3 server."""

from __future__ import annotations

import base64
import io
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inline_worker import InlineWorker
from PIL import Image
from s3_server import SECRET, S3Server

from cli import query_client
from pipeline.storage import object_store
from pipeline.storage.address import Address
from pipeline.storage.object_store import ObjectStore
from workers.product_images import thumbnails
from workers.query import image_vector, query_image

Run = Callable[..., Any]


@pytest.fixture
def photos(inline_worker: InlineWorker, s3: S3Server) -> str:
    """The address of the products; their folder is gone."""
    store = ObjectStore(Address.parse(f"s3://shop/{uuid.uuid4().hex}"))
    for file in inline_worker.toy.root.rglob("*.png"):
        store.put(file.relative_to(inline_worker.toy.root).as_posix(), file)
    store.put("empty.jpg", b"")
    store.put("notes/readme.txt", b"1")
    inline_worker.toy.root.rename(inline_worker.toy.root.with_name("elsewhere"))
    return store.name


def test_a_store_is_indexed_as_a_folder_is(
    inline_worker: InlineWorker, imgrec: Run, photos: str, tmp_path: Path
) -> None:
    inline_worker.inline = True
    done = imgrec("enqueue-rebuild", f"{photos}/", "--wait", "--json").object
    counts = {key: done[key] for key in ("state", "images", "embedded", "skipped")}
    assert counts == {"state": "published", "images": 21, "embedded": 20, "skipped": 1}
    assert done["left_out"] == {"not an image's name (.txt)": 1}
    failures = imgrec("failures", done["job_id"], "--json").object["failures"]
    assert [(row["path"], row["stage"]) for row in failures] == [("empty.jpg", "read")]
    assert inline_worker.job(done["job_id"]).root == photos
    again = imgrec("enqueue-rebuild", photos, "--wait", "--json", "--exclude", "kind1/").object
    assert (again["embedded"], again["reused"]) == (0, 10)
    version = inline_worker.resources.versions.current()
    jpegs = thumbnails(
        inline_worker.resources, version.name, ["kind0/00.png", "empty.jpg", "nothing.png"]
    )
    assert list(jpegs) == ["kind0/00.png"]
    Image.open(io.BytesIO(base64.b64decode(jpegs["kind0/00.png"]))).load()


@pytest.mark.parametrize(
    ("address", "code", "sentence"),
    [
        (f"s3://me:{SECRET}@shop/photos", 2, "credentials come from the environment"),
        ("s3://no-such-bucket/photos", 4, "does not exist (NoSuchBucket)"),
        ("s3://shop/nothing-below", 2, "There are no images below s3://shop/nothing-below"),
        ("ftp://shop/photos", 2, "A store's address starts with one of s3://, gs://, az://"),
        ("file://elsewhere/photos", 2, "names no folder of this host"),
        ("az://shop/photos", 4, "set AZURE_STORAGE_ACCOUNT_NAME"),
    ],
)
def test_an_address_that_cannot_be_indexed_is_one_sentence(
    inline_worker: InlineWorker, imgrec: Run, s3: S3Server, address: str, code: int, sentence: str
) -> None:
    ObjectStore(Address.parse("s3://shop/any")).put("a", b"1")  # makes the bucket
    done = imgrec("enqueue-rebuild", address)
    assert done.code == code
    assert sentence in done.err
    assert SECRET not in done.err
    assert inline_worker.toy.jobs.list_with_progress() == []


def test_a_store_that_does_not_answer_is_a_server_that_is_away(
    imgrec: Run, photos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "RETRIES", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    done = imgrec("enqueue-rebuild", photos)
    assert (done.code, done.out) == (4, "")
    assert f"The store {photos} does not answer: no connection." in done.err


@pytest.fixture
def indexed(
    inline_worker: InlineWorker, imgrec: Run, photos: str, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The address of the products, which are indexed; the query worker is this process."""

    class Answered:
        def __init__(self, wiring: Any, task: str, args: tuple[Any, ...], *_: Any) -> None:
            self._args = args

        def answer(self) -> dict[str, Any]:
            return image_vector(inline_worker.resources, *self._args)

    monkeypatch.setattr(query_client, "PendingQuery", Answered)
    inline_worker.inline = True
    assert imgrec("enqueue-rebuild", photos, "--wait").code == 0
    return photos


def test_a_photo_is_added_to_a_store_and_kept_by_the_next_rebuild(
    inline_worker: InlineWorker, imgrec: Run, indexed: str, tmp_path: Path
) -> None:
    photo, store = tmp_path / "photo.png", ObjectStore(Address.parse(indexed))
    Image.linear_gradient("L").resize((16, 16)).save(photo)
    done = imgrec("add", photo, "--product", "lamp/one", "--json")
    assert done.object["added"] == ["lamp/one/photo.png"]
    assert store.get("lamp/one/photo.png").data == photo.read_bytes()
    for rebuilt in (False, True):
        inline_worker.start_again()
        answer = query_image(inline_worker.resources, photo.read_bytes(), 1)
        assert answer["matches"][0]["product_id"] == "lamp/one"
        if not rebuilt:
            again = imgrec("enqueue-rebuild", indexed, "--wait", "--json").object
            assert (again["images"], again["embedded"]) == (22, 0)
    Image.radial_gradient("L").resize((16, 16)).save(photo)
    assert "is another photo" in imgrec("add", photo, "--product", "lamp/one").err


def test_a_photo_that_lies_in_the_store_already_is_added_by_its_address(
    inline_worker: InlineWorker, imgrec: Run, indexed: str
) -> None:
    store = ObjectStore(Address.parse(indexed))
    data = store.get("kind0/00.png").data
    store.put("new/arrival.png", data)
    done = imgrec("add", f"{indexed}/new/arrival.png", "--product", "arrival", "--json")
    assert done.object["added"] == ["new/arrival.png"]
    assert imgrec("add", "s3://another/photo.png", "--product", "arrival").code == 2
    assert imgrec("remove", "arrival").code == 0
    again = imgrec("enqueue-rebuild", indexed, "--wait", "--json").object
    assert again["left_out"]["removed with 'imgrec remove'"] == 1
