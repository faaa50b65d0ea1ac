"""The HTTP API on a host that has no copy of what is in the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from inline_worker import InlineWorker
from obstore.store import MemoryStore
from web_stand import serve_here

from pipeline.errors import ServerUnavailable
from pipeline.storage.address import Address
from pipeline.storage.object_store import ObjectStore
from workers.resources import Resources

ADDRESS = "s3://shop/imgrec"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    store = ObjectStore(Address.parse(ADDRESS), MemoryStore())
    monkeypatch.setattr("workers.resources.ObjectStore", lambda address: store)
    monkeypatch.setattr("pipeline.storage.object_store.ObjectStore", lambda address: store)
    return store


@pytest.fixture
def here(inline_worker: InlineWorker, store: ObjectStore, tmp_path: Path) -> Resources:
    """A host beside the one that has published v0001 and v0002."""
    inline_worker.start_again(artifacts_url=ADDRESS)
    inline_worker.toy.versions = inline_worker.resources.versions
    inline_worker.rebuild()
    inline_worker.toy.draw("new.png", seed=77)
    inline_worker.rebuild()
    settings = inline_worker.resources.settings.model_copy(update={"data_dir": tmp_path / "web"})
    return Resources(settings, inline_worker)


def test_versions_are_shown_compared_and_rolled_back(here: Resources, tmp_path: Path) -> None:
    with serve_here(here) as (client, _):
        assert client.get("/v1/index").json["version"] == "v0002"
        listing = client.get("/v1/index/versions").json
        assert [each["version"] for each in listing["versions"]] == ["v0001", "v0002"]
        changes = client.get("/v1/index/changes?from=v0001&to=v0002").json
        assert changes["added"] == {"total": 1, "paths": ["new.png"]}
        answer = client.post("/v1/index/rollback", json={})
        assert answer.json == {"from": "v0002", "to": "v0001", "undone": 0}
        assert client.get("/v1/index").json["version"] == "v0001"
    assert not list((tmp_path / "web").rglob("index.bin"))


def test_a_store_that_is_away_is_no_reason_to_take_the_server_out_of_service(
    here: Resources, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> Any:
        raise ServerUnavailable("The store s3://shop/imgrec does not answer: no connection.")

    with serve_here(here) as (client, web):
        assert web.has_index()
        assert here.versions.is_published()
        monkeypatch.setattr(store, "get", away)
        assert here.versions.is_published()
        answer = client.get("/v1/index")
        assert answer.status == 503
        assert "does not answer" in answer.detail
