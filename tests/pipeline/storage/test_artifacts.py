"""What ARTIFACTS_URL may name, and what its store must be able to do."""

from __future__ import annotations

import tempfile
import uuid
from typing import Any

import pytest
from live_stack import free_port
from obstore.store import LocalStore, MemoryStore
from s3_server import READER, READER_SECRET, SECRET, S3Server

from pipeline.errors import ServerUnavailable, StoreRefused, WrongUse
from pipeline.settings import Settings
from pipeline.storage import object_store
from pipeline.storage.address import Address
from pipeline.storage.artifacts import (
    artifacts_address,
    copies_folder,
    require_conditional_puts,
    store_id,
)
from pipeline.storage.object_store import ObjectStore

ADDRESS = Address("s3", "shop", "imgrec")


class Careless(ObjectStore):
    """A store that ignores one of the conditions, and says nothing."""

    def __init__(self, ignored: str) -> None:
        super().__init__(ADDRESS, MemoryStore())
        self._ignored = ignored

    def put_if(self, key: str, data: bytes, etag: str | None) -> str:
        if self._ignored == ("If-None-Match" if etag is None else "If-Match"):
            self.put(key, data)
            return self.get(key).etag
        return super().put_if(key, data, etag)


def test_a_store_with_conditional_puts_is_fit_and_left_empty() -> None:
    store = ObjectStore(ADDRESS, MemoryStore())
    require_conditional_puts(store)
    assert list(store.objects()) == []


def test_a_real_s3_server_is_fit(s3: S3Server) -> None:
    store = ObjectStore(Address.parse(f"s3://shop/{uuid.uuid4().hex}"))
    require_conditional_puts(store)
    assert list(store.objects()) == []


@pytest.mark.parametrize("ignored", ["If-None-Match", "If-Match"])
def test_a_store_that_silently_ignores_a_condition_is_found_out(ignored: str) -> None:
    store = Careless(ignored)
    with pytest.raises(StoreRefused, match="ignores the conditions of a put") as caught:
        require_conditional_puts(store)
    assert caught.value.exit_code == 4
    assert list(store.objects()) == []


def test_a_store_that_says_it_has_no_conditional_puts_is_refused() -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = ObjectStore(ADDRESS, LocalStore(folder))
        with pytest.raises(StoreRefused):
            require_conditional_puts(store)


def test_a_store_that_may_only_be_read_is_refused_without_its_secret(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
    with pytest.raises(StoreRefused, match="refuses access") as caught:
        require_conditional_puts(ObjectStore(Address.parse("s3://shop/x")))
    assert READER_SECRET not in str(caught.value)


def test_a_store_that_is_away_is_not_called_unfit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "RETRY_S", 1)
    monkeypatch.setattr(object_store, "RETRIES", 1)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ServerUnavailable, match="does not answer") as caught:
        require_conditional_puts(ObjectStore(ADDRESS))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://shop.example/imgrec", "a web server cannot be written to"),
        ("/data", "starts with one of s3://"),
        ("s3://key:secret-word@shop/imgrec", "credentials come from the environment"),
        ("s3:///imgrec", "names no bucket"),
    ],
)
def test_what_is_no_store_is_a_sentence_with_the_setting_and_no_secret(
    settings: Settings, url: str, words: str
) -> None:
    with pytest.raises(WrongUse, match=f"ARTIFACTS_URL cannot be used: .*{words}") as caught:
        artifacts_address(settings.model_copy(update={"artifacts_url": url}))
    assert "secret-word" not in str(caught.value)


def test_without_a_store_nothing_is_opened(settings: Settings) -> None:
    assert artifacts_address(settings) is None


def test_two_stores_have_copies_of_their_own(settings: Settings) -> None:
    one, two = (copies_folder(settings, Address("s3", "shop", name)) for name in "ab")
    assert one != two
    assert one.parent == two.parent == settings.data_dir / "copies"


def test_a_store_gets_one_id_whoever_asks_first() -> None:
    library: Any = MemoryStore()
    one, two = ObjectStore(ADDRESS, library), ObjectStore(ADDRESS, library)
    assert store_id(one) is None
    first = store_id(one, create=True)
    assert first
    assert store_id(two, create=True) == store_id(two) == first
