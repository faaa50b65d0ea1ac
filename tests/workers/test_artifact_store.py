"""Workers of several hosts that share a job table and a store, and no folder."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from inline_worker import InlineWorker
from live_stack import until
from obstore.store import MemoryStore

from pipeline.errors import ServerUnavailable, StoreRefused
from pipeline.index import remote_versions
from pipeline.settings import Settings
from pipeline.storage.address import Address
from pipeline.storage.object_store import ObjectStore
from pipeline.store.identity import Identifier, Identity, Place
from workers import lifecycle
from workers.agreement import Mismatch
from workers.embed import embed
from workers.prune import prune
from workers.registry import Announcement
from workers.resources import Resources

ADDRESS = "s3://shop/imgrec"


pytestmark = pytest.mark.usefixtures("quick_followers")


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    store = ObjectStore(Address.parse(ADDRESS), MemoryStore())
    monkeypatch.setattr("workers.resources.ObjectStore", lambda address: store)
    monkeypatch.setattr("pipeline.storage.object_store.ObjectStore", lambda address: store)
    return store


@pytest.fixture
def inline_worker(inline_worker: InlineWorker, tmp_path: Path) -> InlineWorker:
    """The workers of one host; the command that plans runs on another."""
    inline_worker.start_again(artifacts_url=ADDRESS)
    inline_worker.toy.versions = host(inline_worker, tmp_path, "planner").versions
    return inline_worker


def host(inline_worker: InlineWorker, tmp_path: Path, name: str) -> Resources:
    """Another host: a data folder of its own, the same job table."""
    settings = inline_worker.resources.settings.model_copy(update={"data_dir": tmp_path / name})
    return Resources(
        settings, inline_worker, cache=inline_worker.memory, clip=inline_worker.resources.clip
    )


def keys(store: ObjectStore, prefix: str) -> list[str]:
    return sorted(each.key for each in store.objects(prefix))


def test_a_rebuild_leaves_nothing_but_a_copy_on_this_host(
    inline_worker: InlineWorker, store: ObjectStore, tmp_path: Path
) -> None:
    job_id = inline_worker.rebuild()
    assert inline_worker.job(job_id).index_version == "v0001"
    data = inline_worker.resources.settings.data_dir
    assert not (data / "jobs").exists()
    assert not (data / "faiss_index").exists()
    assert keys(store, "jobs") == []  # pruned after the publication
    other = host(inline_worker, tmp_path, "other")
    assert other.live_index.current().version.name == "v0001"
    assert len(other.versions.current().paths) == 20


def test_the_next_rebuild_reuses_what_is_in_the_store(
    inline_worker: InlineWorker, tmp_path: Path
) -> None:
    inline_worker.rebuild()
    inline_worker.toy.versions = host(inline_worker, tmp_path, "another planner").versions
    inline_worker.toy.draw("new.png", seed=77)
    progress = inline_worker.progress(inline_worker.rebuild())
    assert (progress.embedded, progress.reused) == (1, 20)


def test_a_planner_that_cannot_ask_the_store_embeds_nothing_again(
    inline_worker: InlineWorker, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    inline_worker.rebuild()

    def away(*_: Any) -> Any:
        raise ServerUnavailable("The store does not answer.")

    monkeypatch.setattr(store, "get", away)
    with pytest.raises(ServerUnavailable):
        inline_worker.toy.plan()


def test_a_store_that_takes_no_shard_makes_the_job_wait_and_costs_no_attempt(
    inline_worker: InlineWorker, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(key: str, data: Any) -> None:
        raise StoreRefused("The store s3://shop/imgrec refuses the request: HTTP 403.")

    job_id = inline_worker.toy.plan()
    with monkeypatch.context() as outage:
        outage.setattr(store, "put", full)
        for _ in range(3 * inline_worker.resources.settings.shard_max_attempts):
            embed(inline_worker.resources, job_id, 0)
        assert inline_worker.job(job_id).open
        assert "refuses the request" in str(inline_worker.job(job_id).error)
    inline_worker.advance(job_id)
    inline_worker.work()
    assert inline_worker.job(job_id).index_version == "v0001"
    assert inline_worker.job(job_id).error is None


def test_a_name_that_no_key_can_hold_is_a_failure_of_the_image_that_is_kept(
    inline_worker: InlineWorker,
) -> None:
    """The whole job failed."""
    inline_worker.toy.draw("a\x01.png", seed=1)
    job_id = inline_worker.toy.plan(save_preprocessed=True)
    inline_worker.advance(job_id)
    inline_worker.work()
    assert inline_worker.job(job_id).state == "published"
    (failure,) = inline_worker.toy.jobs.failures(job_id)
    assert (failure.path, failure.stage) == ("a\x01.png", "save")
    assert "control character" in failure.reason


def test_a_shard_object_that_was_lost_is_made_again(
    inline_worker: InlineWorker, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = inline_worker.toy.plan()
    put, lost = store.put, list[str]()

    def lose_one(key: str, data: Any) -> None:
        if key.startswith("jobs/") and not lost:
            lost.append(key)
        else:
            put(key, data)

    monkeypatch.setattr(store, "put", lose_one)
    inline_worker.advance(job_id)
    inline_worker.work()
    assert lost
    assert inline_worker.job(job_id).index_version == "v0001"
    assert len(inline_worker.toy.versions.current().paths) == 20


def test_a_merge_that_another_host_overtakes_looks_again(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rollback between the merge's look at the pointer and its change of it."""
    inline_worker.rebuild()
    inline_worker.toy.draw("new.png", seed=77)
    commit, overtaken = remote_versions.RemoteVersions.commit, [True]

    def slow(self: Any, *args: Any) -> Any:
        version = commit(self, *args)
        if overtaken:
            overtaken.pop()
            self.point_to(self.open("v0001"))
        return version

    monkeypatch.setattr(remote_versions.RemoteVersions, "commit", slow)
    job_id = inline_worker.rebuild()
    assert not overtaken
    assert (
        inline_worker.job(job_id).index_version
        == inline_worker.toy.versions.current_name()
        == "v0002"
    )


def test_an_older_rebuild_does_not_replace_a_later_one_that_another_host_published(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = inline_worker.toy.plan()
    commit, later = remote_versions.RemoteVersions.commit, list[str]()

    def slow(self: Any, *args: Any) -> Any:
        version = commit(self, *args)
        if not later:
            later.append("")
            inline_worker.toy.draw("new.png", seed=77)
            later[0] = inline_worker.toy.plan()
            inline_worker.toy.versions = self
            inline_worker.toy.files = inline_worker.resources.shard_files
            inline_worker.toy.embed(later[0])
            # As another host would: without this host's lock.
            monkeypatch.setattr(type(self), "lock", lambda self: threading.RLock())
            inline_worker.toy.merge(later[0])
        return version

    monkeypatch.setattr(remote_versions.RemoteVersions, "commit", slow)
    inline_worker.advance(older)
    inline_worker.work()
    current = inline_worker.toy.versions.current()
    assert current.manifest["job_id"] == later[0]
    assert len(current.paths) == 21


def test_what_a_killed_publisher_has_uploaded_is_deleted_with_its_job(
    inline_worker: InlineWorker, store: ObjectStore
) -> None:
    store.put("builds/20260101-000000-dead.0123abcd/index.bin", b"half")
    inline_worker.rebuild()
    builds = {key.split("/")[1] for key in keys(store, "builds")}
    assert builds == {inline_worker.toy.versions.current().manifest["build"]}


def test_pruning_only_shows_what_it_would_delete(
    inline_worker: InlineWorker, store: ObjectStore
) -> None:
    inline_worker.rebuild()
    store.put("jobs/20260101-000000-dead/shard-000000-x.npz", b"half")
    before = keys(store, "")
    assert prune(inline_worker.resources, dry_run=True).folders == ["20260101-000000-dead"]
    assert keys(store, "") == before
    assert prune(inline_worker.resources).folders == ["20260101-000000-dead"]
    assert keys(store, "jobs") == []


def test_a_host_without_a_copy_embeds_without_fetching_the_index(
    inline_worker: InlineWorker, tmp_path: Path
) -> None:
    inline_worker.rebuild()
    other = host(inline_worker, tmp_path, "embedder")
    other.reusable_vectors(verify=True)
    assert not list((tmp_path / "embedder").rglob("vectors.npy"))
    other.live_index.current()
    until(lambda: list((tmp_path / "embedder").rglob("vectors.npy")), "the copy is whole", 20)


# -- agreement --


def read(settings: Settings, **changes: Any) -> Identity:
    return Identifier(settings.model_copy(update=changes), None).read(create=True)


def test_hosts_with_one_store_agree_whatever_their_folders(
    settings: Settings, tmp_path: Path
) -> None:
    one, two = (read(settings, artifacts_url=ADDRESS, data_dir=tmp_path / name) for name in "ab")
    assert one.data.id
    assert (one.data, one.models) == (two.data, two.models)
    assert not any(one.differs(two, part) for part in ("data", "models"))
    assert not (tmp_path / "a").exists()


def test_a_worker_at_a_store_that_is_away_goes_on_to_announce_itself(
    settings: Settings, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To ask a store that does not answer takes 20 s."""
    asked = list[str]()

    def away(key: str, max_bytes: int | None = None) -> Any:
        asked.append(key)
        raise ServerUnavailable("The store does not answer.")

    identifier = Identifier(settings.model_copy(update={"artifacts_url": ADDRESS}), None)
    with monkeypatch.context() as outage:
        outage.setattr(store, "get", away)
        for _ in range(3):
            place = identifier.read(create=True).data
        assert place == Place(None, ADDRESS)
        assert len(asked) == 1
    monkeypatch.setattr("pipeline.store.identity.STORE_LOOK_S", 0)
    assert identifier.read(create=True).data.id


def test_a_host_that_forgot_the_setting_is_named_with_it(settings: Settings) -> None:
    settings.data_dir.mkdir(parents=True)
    with_store, without = read(settings, artifacts_url=ADDRESS), read(settings)
    worker = Announcement("embed@b", ("embed",), without, 1.0)
    mismatch = Mismatch.find(with_store, [worker], ["embed"], ["data"])
    assert mismatch is not None
    assert f"ARTIFACTS_URL or DATA_DIR is {ADDRESS} on" in str(mismatch)


def test_two_stores_are_told_apart_also_by_who_asks_neither() -> None:
    def at(address: str, host: str, id: str | None = None) -> Identity:
        place = Place(id, address)
        return Identity(host, Place(None, "postgresql://x/y"), place, place)

    assert at("s3://shop/a", "one").differs(at("s3://shop/b", "two", "id"), "data")
    assert not at("s3://shop/a", "one").differs(at("s3://shop/a", "two", "id"), "data")
    assert at("s3://shop/a", "one", "1").differs(at("s3://shop/a", "two", "2"), "data")


# -- the start of a worker --


def start(inline_worker: InlineWorker) -> None:
    lifecycle._require_fit_store(inline_worker.resources)


def test_a_worker_starts_at_a_fit_store_and_at_one_that_is_away(
    inline_worker: InlineWorker, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(inline_worker)

    def away(*_: Any) -> Any:
        raise ServerUnavailable("The store does not answer.")

    monkeypatch.setattr(store, "put_if", away)
    start(inline_worker)


def test_a_worker_ends_with_a_sentence_at_a_store_without_conditional_puts(
    inline_worker: InlineWorker,
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(store, "put_if", lambda key, data, etag: "tag")
    with pytest.raises(SystemExit) as caught:
        start(inline_worker)
    assert caught.value.code == 4
    assert capsys.readouterr().err.startswith("Error: The store s3://shop/imgrec ignores")
