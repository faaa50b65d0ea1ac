"""Objects in a real S3 server: what is put is there, and each error is one of ours."""

from __future__ import annotations

import math
import re
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from live_stack import free_port
from obstore.exceptions import InvalidPathError, PreconditionError
from s3_server import READER, READER_SECRET, SECRET, S3Server

from pipeline.errors import (
    ImgrecError,
    ObjectConflict,
    ObjectMissing,
    ServerUnavailable,
    StoreRefused,
    WrongUse,
)
from pipeline.storage import object_store
from pipeline.storage.address import Address
from pipeline.storage.object_store import ObjectInfo, ObjectStore, TooLarge
from pipeline.storage.parallel_list import list_objects


def open_store(address: str) -> ObjectStore:
    return ObjectStore(Address.parse(address))


@pytest.fixture
def store(s3: S3Server) -> ObjectStore:
    return open_store(f"s3://shop/{uuid.uuid4().hex}")


KEYS = ["a.jpg", "a-b/c.jpg", "a/b c.jpg", "per%20cent.jpg", "q?x#y&z.jpg", "ü/👟.jpg"]


def test_objects_are_listed_read_and_deleted_under_any_name(store: ObjectStore) -> None:
    for key in KEYS:
        store.put(key, key.encode())
    assert sorted(item.key for item in store.objects()) == sorted(KEYS)
    assert {item.size for item in store.objects()} == {len(key.encode()) for key in KEYS}
    assert [store.get(key).data.decode() for key in KEYS] == KEYS
    store.delete(KEYS[:2])
    store.delete([*KEYS[:2], "never there"])
    assert sorted(item.key for item in store.objects()) == sorted(KEYS[2:])


def test_a_prefix_ends_at_a_slash(store: ObjectStore) -> None:
    store.put("one/a.jpg", b"1")
    store.put("one-more/a.jpg", b"2")
    assert [item.key for item in open_store(f"{store.name}/one").objects()] == ["a.jpg"]


def test_more_than_a_page_of_keys_is_listed(store: ObjectStore) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: store.put(f"{n:05d}.jpg", b"x"), range(1_100)))
    assert [item.key for item in store.objects()] == [f"{n:05d}.jpg" for n in range(1_100)]


def test_a_part_is_read_and_what_is_too_large_is_not(store: ObjectStore) -> None:
    store.put("a", b"0123456789")
    assert store.get_range("a", 2, 3) == b"234"
    with pytest.raises(TooLarge):
        store.get("a", max_bytes=9)
    assert store.get("a", max_bytes=10).data == b"0123456789"


@pytest.mark.parametrize(("size", "n_parts"), [(2**20, 1), (49 * 2**30, 10_000)])
def test_a_file_of_any_size_has_no_more_parts_than_s3_takes(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, n_parts: int
) -> None:
    file = tmp_path / "vectors"
    with file.open("wb") as stream:
        stream.truncate(size)
    parts = []

    def put(key: str, data: Path, chunk_size: int) -> None:
        parts.append(math.ceil(data.stat().st_size / chunk_size))

    monkeypatch.setattr(store, "_library", SimpleNamespace(put=put))
    store.put("vectors", file)
    assert parts == [n_parts]


def test_of_two_conditional_puts_one_wins(store: ObjectStore) -> None:
    first = store.put_if("CURRENT", b"v1", None)
    with pytest.raises(ObjectConflict):
        store.put_if("CURRENT", b"other", None)
    store.put_if("CURRENT", b"v2", first)
    with pytest.raises(ObjectConflict):
        store.put_if("CURRENT", b"late", first)
    assert store.get("CURRENT").data == b"v2"


def test_what_is_not_there_is_told(store: ObjectStore) -> None:
    with pytest.raises(ObjectMissing, match="has no object 'nothing'"):
        store.get("nothing")
    with pytest.raises(WrongUse):
        store.get("a//b")


def refused(address: str, doing: str) -> ImgrecError:
    """Return the error of a request, which must hold no secret."""

    def run() -> None:
        store = open_store(address)
        if doing == "put":
            store.put("x", b"x")
        else:
            next(store.objects())

    with pytest.raises(ImgrecError) as error:
        run()
    assert "Traceback" not in str(error.value)
    for secret in (SECRET, READER_SECRET, "X-Amz", "<?xml"):
        assert secret not in str(error.value)
    assert error.value.__cause__ is None  # a log would show it
    return error.value


@pytest.mark.parametrize("doing", ["list", "put"])
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "refuses access .InvalidAccessKeyId."),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "refuses access .SignatureDoesNotMatch."),
        ({"AWS_ENDPOINT_URL": "http://me:the-secret-of-the-tester@127.0.0.1"}, "without a user"),
        ({"AWS_ENDPOINT_URL": "ftp://127.0.0.1"}, "an address like https"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9 x"}, "an address like https"),
        ({"AWS_PROFILE": "nobody"}, "does not exist"),
    ],
)
def test_credentials_that_are_refused_are_a_matter_of_setup(
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    reason: str,
    doing: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    error = refused(store.name, doing)
    assert isinstance(error, StoreRefused)
    assert error.exit_code == 4
    assert re.search(reason, str(error))


@pytest.mark.parametrize(
    ("address", "environment", "reason"),
    [
        ("gs://shop", {"GOOGLE_APPLICATION_CREDENTIALS": "/nothing.json"}, "check GOOGLE_APPL"),
        ("az://shop", {}, "needs the name of its account"),
        ("az://shop", {"AZURE_STORAGE_ACCOUNT_KEY": f"no base64: {SECRET}"}, "check AZURE_STOR"),
    ],
)
def test_settings_that_open_no_store_are_told_without_their_values(
    s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    environment: dict[str, str],
    reason: str,
) -> None:
    if environment:
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "shop")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    error = refused(address, "list")
    assert isinstance(error, StoreRefused)
    assert reason in str(error)


def test_a_reader_may_not_write(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("a", b"1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
    assert open_store(store.name).get("a").data == b"1"
    assert isinstance(refused(store.name, "put"), StoreRefused)


def test_a_bucket_that_does_not_exist_is_told(s3: S3Server) -> None:
    error = refused("s3://no-such-bucket/x", "list")
    assert isinstance(error, StoreRefused)
    assert "does not exist (NoSuchBucket)" in str(error)


@pytest.mark.parametrize("doing", ["list", "put"])
def test_a_store_that_does_not_answer_is_unavailable(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, doing: str
) -> None:
    monkeypatch.setattr(object_store, "RETRIES", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    error = refused("s3://shop", doing)
    assert isinstance(error, ServerUnavailable)
    assert str(error) == "The store s3://shop does not answer: no connection."


@pytest.mark.parametrize("n_rounds", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_eight_racing_publishers_have_one_winner_in_each_round(
    store: ObjectStore, n_rounds: int
) -> None:
    """Readers see one whole value after the other, and no round is lost or won twice."""
    etag = store.put_if("CURRENT", b"0", None)
    seen: list[bytes] = []
    ended = threading.Event()

    def read() -> None:
        while not ended.wait(0.005):
            seen.append(store.get("CURRENT").data)

    def publish(etag: str, content: bytes) -> str | None:
        try:
            return store.put_if("CURRENT", content, etag)
        except ObjectConflict:
            return None

    reader = threading.Thread(target=read)
    reader.start()
    values = [b"0"]
    with ThreadPoolExecutor(8) as pool:
        for n in range(n_rounds):
            contents = [f"{n}-{publisher}".encode() for publisher in range(8)]
            etags = list(pool.map(publish, [etag] * 8, contents))
            winners = [place for place, new in enumerate(etags) if new is not None]
            assert len(winners) == 1
            etag = str(etags[winners[0]])
            assert store.get("CURRENT").data == contents[winners[0]]
            values.append(contents[winners[0]])
    ended.set()
    reader.join()
    places = [values.index(value) for value in seen]  # each is a winner's
    assert places == sorted(places)


KINDS = [f"kind{n:02d}" for n in range(11)]


def test_many_prefixes_are_listed_side_by_side_and_each_key_once(store: ObjectStore) -> None:
    keys = [f"{kind}/{n:03d}.jpg" for kind in KINDS for n in range(95)] + ["a.jpg", "z.jpg"]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: store.put(key, b"x"), keys))
    assert sorted(item.key for item in list_objects(store)) == sorted(keys)
    listing = list_objects(store)
    next(listing)
    listing.close()  # as where a command only asks for the first image


def test_a_prefix_that_cannot_be_listed_ends_the_whole_listing(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passed over in silence, its products would leave the index."""
    page = [ObjectInfo(f"{kind}/{n}.jpg", 1, "1") for kind in KINDS for n in range(100)][:1000]

    def pages(self: ObjectStore, prefix: str | None = None) -> Iterator[list[ObjectInfo]]:
        if prefix == "kind07":
            raise ServerUnavailable("away")
        yield page

    monkeypatch.setattr(ObjectStore, "pages", pages)
    monkeypatch.setattr(ObjectStore, "first_level", lambda self: (KINDS, []))
    with pytest.raises(ServerUnavailable):
        list(list_objects(store))


class Generations:
    """As Google's: an ETag in a condition is an error, a generation is compared."""

    def __init__(self) -> None:
        self.generation = 0

    def put(self, key: str, data: bytes, *, mode: Any) -> dict[str, str]:
        if mode != ("create" if not self.generation else {"version": str(self.generation)}):
            raise PreconditionError("conditionNotMet")
        self.generation += 1
        return {"e_tag": "same", "version": str(self.generation)}


def test_google_s_store_compares_generations() -> None:
    library: Any = Generations()
    store = ObjectStore(Address.parse("gs://shop/x"), library)
    first = store.put_if("CURRENT", b"v1", None)
    second = store.put_if("CURRENT", b"v2", first)
    assert (first, second) == ("1", "2")
    with pytest.raises(ObjectConflict):
        store.put_if("CURRENT", b"late", first)


def test_a_key_that_ends_a_listing_is_named_with_the_way_out() -> None:
    error = InvalidPathError('Path "p/a//b.jpg" contained empty path segment')
    sentence = str(object_store._translated(error, "s3://shop", ""))
    assert '"p/a//b.jpg"' in sentence
    assert "Rename that object, or name a prefix beside it." in sentence
