"""Trained heads in a store: every host sees them as they are there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_stack import until
from obstore.store import MemoryStore

from pipeline.classify.head import CATEGORY, Head, HeadName
from pipeline.classify.head_places import HeadFolder, HeadObjects
from pipeline.classify.head_store import HeadStore, list_heads
from pipeline.errors import HeadBroken, ServerUnavailable
from pipeline.storage.address import Address
from pipeline.storage.object_store import ObjectStore

NAME = HeadName.parse("shoe", "color")
HEAD = Head(
    weight=np.array([[2.0, 0.0], [0.0, 2.0]], np.float32),
    bias=np.zeros(2, np.float32),
    temperature=0.5,
    classes=("red", "blue"),
    fingerprint="f" * 16,
    made_with="a model",
    accuracy=0.9,
    images=20,
)
Host = Callable[[str], HeadObjects]


@pytest.fixture
def store() -> ObjectStore:
    return ObjectStore(Address("s3", "shop", "imgrec"), MemoryStore())


@pytest.fixture
def host(store: ObjectStore, tmp_path: Path) -> Host:
    return lambda name: HeadObjects(store, tmp_path / name / "models")


def classes(heads: HeadObjects) -> dict[str, tuple[str, ...]]:
    found = HeadStore(heads.folder()).of_category("shoe")
    return {name: head.classes for name, head in found.items()}


def test_in_a_folder_heads_are_where_they_were(tmp_path: Path) -> None:
    place = HeadFolder(tmp_path)
    place.save(NAME, HEAD, b"png")
    assert place.folder() == tmp_path
    assert place.where(NAME) == str(tmp_path / "shoe" / "color")
    assert (tmp_path / "shoe" / "color" / "model.pt").is_file()


def test_a_head_that_was_trained_on_one_host_is_used_on_another(
    host: Host, store: ObjectStore
) -> None:
    host("a").save(NAME, HEAD, b"png")
    host("a").save(CATEGORY, replace(HEAD, classes=("bag", "shoe")), b"png")
    assert classes(host("b")) == {"color": ("red", "blue")}
    assert list_heads(host("b").folder()) == [CATEGORY, NAME]
    assert host("b").where(NAME) == "s3://shop/imgrec/models/shoe/color"
    facts = json.loads(store.get("models/shoe/color/classes.json").data)
    assert facts["classes"] == ["red", "blue"]
    assert store.get("models/shoe/color/loss.png").data == b"png"


@pytest.mark.usefixtures("quick_followers")
def test_a_running_host_notices_a_head_that_is_new_trained_again_or_deleted(
    host: Host, store: ObjectStore
) -> None:
    there = host("b")
    assert classes(there) == {}
    for labels in (("red", "blue"), ("scarlet", "navy")):
        host("a").save(NAME, replace(HEAD, classes=labels), b"")
        until(lambda now=labels: classes(there) == {"color": now}, "the head is seen", 20)
    store.delete(["models/shoe/color/model.pt"])
    until(lambda: classes(there) == {}, "the head is gone", 20)


def test_only_heads_that_changed_are_fetched(
    host: Host, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    host("a").save(NAME, HEAD, b"")
    host("b").folder()
    get, asked = store.get, list[str]()

    def count(key: str, max_bytes: int | None = None) -> Any:
        asked.append(key)
        return get(key, max_bytes)

    monkeypatch.setattr(store, "get", count)
    host("b").folder()
    assert asked == []
    host("c").folder()
    assert asked == ["models/shoe/color/model.pt"]


def test_copies_answer_while_the_store_is_away(
    host: Host, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    host("a").save(NAME, HEAD, b"")
    host("b").folder()

    def away(*_: Any) -> Any:
        raise ServerUnavailable("The store does not answer.")

    monkeypatch.setattr(store, "pages", away)
    assert classes(host("b")) == {"color": ("red", "blue")}
    with pytest.raises(ServerUnavailable):
        host("c").folder()


@pytest.mark.parametrize(
    "key",
    ["shoe/color/extra/model.pt", "model.pt", ".hidden/color/model.pt", "shoe/other.pt"],
)
def test_what_is_no_head_is_not_fetched(
    host: Host, store: ObjectStore, tmp_path: Path, key: str
) -> None:
    store.put(f"models/{key}", b"content")
    assert list_heads(host("b").folder()) == []
    names = {file.name for file in (tmp_path / "b").rglob("*") if file.is_file()}
    assert names == {"etags.json", ".lock"}


def test_a_broken_head_of_the_store_is_an_error_of_those_who_use_it(
    host: Host, store: ObjectStore
) -> None:
    store.put("models/shoe/color/model.pt", b"rotten")
    with pytest.raises(HeadBroken, match="imgrec train --category shoe"):
        classes(host("b"))
