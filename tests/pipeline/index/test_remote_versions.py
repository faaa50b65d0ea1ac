"""Index versions in a store, seen from hosts that share nothing else."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import Timeout
from live_stack import until
from obstore.store import MemoryStore
from toy_pipeline import ToyPipeline

from pipeline.embed.shard_files import ShardObjects
from pipeline.errors import (
    Conflict,
    IndexBroken,
    IndexMissing,
    NotFound,
    ObjectConflict,
    ObjectMissing,
    ServerUnavailable,
)
from pipeline.index import remote_versions as module
from pipeline.index.live_index import PublishedIndex
from pipeline.index.remote_versions import RemoteVersions
from pipeline.index.version_pointer import VersionPointer
from pipeline.index.versions import Version
from pipeline.settings import Settings
from pipeline.storage import download as downloading
from pipeline.storage import follower as following
from pipeline.storage.address import Address
from pipeline.storage.download import download
from pipeline.storage.object_store import ObjectStore

FACTS: dict[str, Any] = {
    "job_created_at": 1.0,
    "created_at": 1.0,
    "root": "/products",
    "images": 1,
    "dimension": 4,
    "index": {"factory": "Flat"},
    "fingerprint": {"id": "f"},
}


@pytest.fixture
def store() -> ObjectStore:
    return ObjectStore(Address("s3", "shop", "imgrec"), MemoryStore())


@pytest.fixture
def host(store: ObjectStore, tmp_path: Path) -> Callable[[str], RemoteVersions]:
    """Return a function that opens the store from a host."""
    return lambda name: RemoteVersions(store, tmp_path / name)


def build(
    versions: RemoteVersions, job_id: str, content: bytes = b"vectors", **facts: Any
) -> Version:
    """Upload and name a version of two files; do not publish it."""
    workspace = versions.workspace()
    (workspace / "index.bin").write_bytes(content)
    (workspace / "vectors.npy").write_bytes(content[::-1])
    return versions.commit(workspace, {**FACTS, "job_id": job_id, **facts})


def publish(versions: RemoteVersions, job_id: str) -> Version:
    seen = versions.pointer_stamp()
    version = build(versions, job_id, job_id.encode())
    versions.point_to(version, seen)
    return version


def keys(store: ObjectStore, prefix: str) -> list[str]:
    return sorted(each.key for each in store.objects(prefix))


Host = Callable[[str], RemoteVersions]


def test_nothing_is_published_in_an_empty_store(host: Host) -> None:
    versions = host("a")
    assert (versions.current_name(), versions.versions()) == (None, [])
    assert versions.followed()[0] is None
    with pytest.raises(IndexMissing):
        versions.current()
    with pytest.raises(IndexMissing):
        versions.on_disk()
    with pytest.raises(NotFound, match=r"no index version 'v0001'. Available versions: none."):
        versions.open("v0001")


def test_a_published_version_is_read_by_a_host_without_a_copy(host: Host) -> None:
    publish(host("a"), "job1")
    there = host("b")
    version = there.current()
    assert (version.name, version.manifest["job_id"]) == ("v0001", "job1")
    assert not (version.folder / "index.bin").exists()  # what nobody reads is not fetched
    assert version.file("index.bin").read_bytes() == b"job1"
    there.verify(version)
    assert [each.name for each in there.versions()] == ["v0001"]


def test_the_host_that_built_a_version_fetches_nothing(host: Host, store: ObjectStore) -> None:
    version = publish(host("a"), "job1")
    store.delete(keys(store, "builds"))
    assert version.file("index.bin").read_bytes() == b"job1"


def test_a_version_is_named_only_when_all_its_files_are_there(
    host: Host, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = host("a")
    put = store.put

    def fail(key: str, data: Any) -> None:
        if key.endswith("vectors.npy"):
            raise ServerUnavailable("The store does not answer.")
        put(key, data)

    monkeypatch.setattr(store, "put", fail)
    with pytest.raises(ServerUnavailable):
        publish(versions, "job1")
    until(lambda: len(keys(store, "builds")) == 1, "the other file is there", 20)
    assert keys(store, "versions") == []
    assert versions.current_name() is None
    assert versions.abandoned_builds(lambda: {"job1"}) == []
    (build_name,) = versions.abandoned_builds(set)
    versions.delete_build(build_name)
    assert keys(store, "builds") == []


def test_an_upload_of_a_migration_is_abandoned_only_after_a_day(
    host: Host, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No open job tells that somebody writes it."""
    versions = host("a")
    put = store.put

    def killed(key: str, data: Any) -> None:
        put(key, data)
        if key.endswith("vectors.npy"):
            raise ServerUnavailable("The store does not answer.")

    with monkeypatch.context() as patch:
        patch.setattr(store, "put", killed)
        with pytest.raises(ServerUnavailable):
            build(versions, "job1", migrated_from="v0001")
    publish(versions, "job1")
    store.put("builds/job1.killed/vectors.npy", b"half")
    assert versions.abandoned_builds(set) == ["job1.killed"]
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 90_000)
    assert len(versions.abandoned_builds(set)) == 2


def test_the_lease_is_checked_during_an_upload_and_ends_it(
    host: Host, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECK_S", 0.01)
    put, go_on, checks = store.put, threading.Event(), list[int]()

    def slow(key: str, data: Any) -> None:
        assert go_on.wait(20)
        put(key, data)

    def lost() -> None:
        checks.append(1)
        if len(checks) == 3:
            raise TimeoutError

    monkeypatch.setattr(store, "put", slow)
    versions = host("a")
    workspace = versions.workspace()
    (workspace / "index.bin").write_bytes(b"vectors")
    with pytest.raises(TimeoutError):
        versions.commit(workspace, {**FACTS, "job_id": "job1"}, lost)
    go_on.set()
    assert keys(store, "versions") == []


def test_who_has_seen_another_pointer_publishes_nothing(host: Host) -> None:
    publish(host("a"), "job1")
    one, two = host("a"), host("b")
    seen = one.pointer_stamp(), two.pointer_stamp()
    versions = build(one, "job2"), build(two, "job3")
    assert [version.name for version in versions] == ["v0002", "v0003"]
    two.point_to(versions[1], seen[1])
    with pytest.raises(ObjectConflict):
        one.point_to(versions[0], seen[0])
    assert host("c").current_name() == "v0003"


def test_a_pointer_to_the_same_version_again_has_another_stamp(host: Host) -> None:
    versions = host("a")
    first = publish(versions, "job1")
    stamp = versions.pointer_stamp()
    versions.point_to(first, stamp)
    assert versions.pointer_stamp() != stamp
    with pytest.raises(ObjectConflict):
        versions.point_to(first, stamp)


def test_a_put_whose_answer_was_lost_is_not_taken_for_another_s(
    host: Host, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_if = store.put_if

    def twice(key: str, data: bytes, etag: str | None) -> str:
        put_if(key, data, etag)
        return put_if(key, data, etag)  # as the library does after a broken connection

    monkeypatch.setattr(store, "put_if", twice)
    publish(host("a"), "job1")
    assert [each.name for each in host("b").versions()] == ["v0001"]
    assert host("b").current_name() == "v0001"


def test_rollback_needs_no_copy_and_goes_back_one_version(host: Host) -> None:
    publish(host("a"), "job1")
    publish(host("a"), "job2")
    there = host("b")
    old, new = there.rollback()
    assert (old, new.name, host("a").current_name()) == ("v0002", "v0001", "v0001")
    with pytest.raises(Conflict, match="no index version before v0001"):
        there.rollback()


def test_rollback_to_a_version_whose_files_are_gone_is_refused(
    host: Host, store: ObjectStore
) -> None:
    first = publish(host("a"), "job1")
    publish(host("a"), "job2")
    store.delete([f"builds/{first.manifest['build']}/index.bin"])
    with pytest.raises(IndexBroken, match=r"lacks the file index\.bin of v0001"):
        host("b").rollback()
    assert host("b").current_name() == "v0002"


def test_a_broken_pointer_is_mended_by_a_rollback_with_a_name(
    host: Host, store: ObjectStore
) -> None:
    publish(host("a"), "job1")
    store.put("CURRENT", b"not json")
    with pytest.raises(IndexBroken, match="imgrec index rollback VERSION"):
        host("b").current_name()
    host("b").rollback("v0001")
    assert host("b").current_name() == "v0001"


def test_pruning_deletes_the_oldest_versions_with_their_files(
    host: Host, store: ObjectStore
) -> None:
    versions = host("a")
    for number in range(4):
        publish(versions, f"job{number}")
    assert versions.prune(2, {"v0001"}) == ["v0002"]
    assert keys(store, "versions") == [f"versions/v000{n}.json" for n in (1, 3, 4)]
    assert len(keys(store, "builds")) == 6
    assert host("b").current_name() == "v0004"


@pytest.mark.parametrize("first", ["prune", "rollback"])
def test_a_version_is_not_both_deleted_and_published(
    host: Host, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Of two hosts, one is stopped between its look at the pointer and its change of it."""
    for number in range(3):
        publish(host("a"), f"job{number}")
    one, two = host("a"), host("b")
    replace = VersionPointer.replace
    others = [lambda: two.rollback("v0001")] if first == "prune" else [lambda: two.prune(1, ())]

    def interrupted(self: VersionPointer, *args: Any) -> None:
        while others:
            others.pop()()
        replace(self, *args)

    monkeypatch.setattr(VersionPointer, "replace", interrupted)
    if first == "prune":
        assert one.prune(1, ()) == []
    else:
        with pytest.raises(Conflict):
            one.rollback("v0001")
    name = host("c").current_name()
    assert name is not None
    host("c").verify(host("c").open(name))


def test_a_rollback_to_a_version_that_is_being_deleted_is_refused(
    host: Host, store: ObjectStore
) -> None:
    for number in range(3):
        publish(host("a"), f"job{number}")
    versions = host("a")
    target = versions.open("v0001")
    pointer = VersionPointer(store)
    pointer.replace(pointer.read(), "v0003", ["v0001"])  # a kill before the deletion
    assert [each.name for each in versions.versions()] == ["v0002", "v0003"]
    with pytest.raises(Conflict, match="being deleted"):
        versions.point_to(target, versions.pointer_stamp())
    publish(host("b"), "job4")  # keeps in mind what is being deleted
    with pytest.raises(Conflict, match="being deleted"):
        host("c").rollback("v0001")
    assert versions.prune(10, ()) == ["v0001"]


def test_two_merges_of_one_host_take_turns(host: Host) -> None:
    with host("a").lock(), pytest.raises(Timeout):
        host("a").lock().acquire(timeout=0)


def test_a_manifest_with_a_path_in_it_is_refused(host: Host, store: ObjectStore) -> None:
    version = publish(host("a"), "job1")
    manifest = {**version.manifest, "build": "../../etc"}
    manifest.pop("seal")
    store.put("versions/v0001.json", json.dumps(manifest).encode())
    with pytest.raises(IndexBroken, match="cannot be used"):
        host("b").open("v0001")
    assert host("b").versions() == []


@pytest.mark.parametrize("key", ["versions/v0001.json", "CURRENT"])
@pytest.mark.parametrize("data", [b"not JSON", b"{}", b"[]", b"\xff" * (2 << 20)])
def test_a_host_without_a_copy_says_what_is_damaged(
    host: Host, store: ObjectStore, key: str, data: bytes
) -> None:
    publish(host("a"), "job1")
    store.put(key, data)
    for look in (host("b").current, host("b").followed):
        with pytest.raises(IndexBroken, match="imgrec index rollback VERSION"):
            look()


def test_an_unexpected_error_of_a_look_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    class Looks:
        count = 0

        def look(self) -> None:
            self.count += 1
            raise ValueError("a bug")

    held = [Looks()]
    following.Follower("looks", held[0].look, 0.0).start()
    until(lambda: held[0].count > 20, "it looks again and again")
    held.clear()  # its thread ends
    assert len([each for each in caplog.records if each.exc_info]) == 1


def test_a_fetch_that_broke_off_goes_on_where_it_was(
    host: Host, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloading, "CHUNK_BYTES", 10)
    content = bytes(range(95))
    versions = host("a")
    versions.point_to(build(versions, "job1", content))
    get_range, starts = store.get_range, list[int]()

    def broken(key: str, start: int, length: int) -> bytes:
        if key.endswith("index.bin"):
            starts.append(start)
            if len(starts) == 5:
                raise ServerUnavailable("The store does not answer.")
        return get_range(key, start, length)

    monkeypatch.setattr(store, "get_range", broken)
    there = host("b")
    with pytest.raises(ServerUnavailable):
        there.current().file("index.bin")
    assert not (there.current().folder / "index.bin").exists()
    assert host("b").current().file("index.bin").read_bytes() == content
    assert starts == [0, 10, 20, 30, 40, 40, 50, 60, 70, 80, 90]


def test_an_object_or_a_part_of_another_size_is_told(
    host: Host, store: ObjectStore, tmp_path: Path
) -> None:
    store.put("large", b"0123456789")
    digest = hashlib.sha256(b"0123456789").hexdigest()
    (tmp_path / ".file.part").write_bytes(b"x" * 99)  # of an object that was larger
    download(store, "large", tmp_path / "file", 10, digest)
    assert (tmp_path / "file").read_bytes() == b"0123456789"
    with pytest.raises(IndexBroken, match=r"large of the store .* has 10 bytes, its manifest says"):
        download(store, "large", tmp_path / "other", 11, digest)


def test_an_object_that_changed_is_not_used(host: Host, store: ObjectStore) -> None:
    version = publish(host("a"), "job1")
    key = f"builds/{version.manifest['build']}/index.bin"
    store.put(key, b"evil")
    with pytest.raises(IndexBroken, match="does not match its digest"):
        host("b").current().file("index.bin")
    store.put(key, b"job1")
    assert host("b").current().file("index.bin").read_bytes() == b"job1"


def test_a_copy_that_is_damaged_on_this_disk_is_fetched_again(host: Host) -> None:
    publish(host("a"), "job1")
    there = host("b")
    version = there.current()
    version.file("index.bin").write_bytes(b"JOB1")
    with pytest.raises(IndexBroken, match="fetched again"):
        there.verify(version)
    assert not version.is_current
    there.verify(there.current())
    assert there.current().file("index.bin").read_bytes() == b"job1"


@pytest.mark.usefixtures("quick_followers")
def test_the_version_before_serves_until_the_new_one_is_whole(
    host: Host, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(host("a"), "job1")
    there = host("b")
    assert there.followed()[0] == "v0001"
    go_on, get_range = threading.Event(), store.get_range
    asked = threading.Event()

    def slow(key: str, start: int, length: int) -> bytes:
        if "job2" in key and key.endswith("index.bin"):
            asked.set()
            assert go_on.wait(20)
        return get_range(key, start, length)

    monkeypatch.setattr(store, "get_range", slow)
    publish(host("a"), "job2")
    assert asked.wait(20)
    assert there.followed()[0] == "v0001"
    go_on.set()
    until(lambda: there.followed()[0] == "v0002", "the new version is followed", 20)
    folder = there.open("v0002").folder
    assert {"index.bin", "vectors.npy", "manifest.json"} <= {each.name for each in folder.iterdir()}


@pytest.mark.usefixtures("quick_followers")
def test_a_host_serves_its_copy_while_the_store_is_away(
    host: Host, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(host("a"), "job1")
    assert host("b").followed()[0] == "v0001"

    def away(*_: Any) -> Any:
        raise ServerUnavailable("The store does not answer.")

    with monkeypatch.context() as outage:
        for method in ("get", "get_range", "pages", "put_if"):
            outage.setattr(store, method, away)
        started_again = host("b")
        assert started_again.followed()[0] == "v0001"
        assert started_again.open("v0001").file("index.bin").read_bytes() == b"job1"
        assert started_again.on_disk().name == "v0001"
        with pytest.raises(ServerUnavailable):
            host("c").followed()
    publish(host("a"), "job2")
    until(lambda: started_again.followed()[0] == "v0002", "the new version is followed", 20)


@pytest.mark.usefixtures("quick_followers")
def test_copies_of_pruned_versions_are_deleted(host: Host) -> None:
    publisher, there = host("a"), host("b")
    first = publish(publisher, "job1")
    assert there.followed()[0] == "v0001"
    publish(publisher, "job2")
    until(lambda: there.followed()[0] == "v0002", "the new version is followed", 20)
    publisher.prune(1, ())
    assert there.open("v0002").folder.is_dir()
    publish(publisher, "job3")
    copy = there.folder / first.manifest["build"]
    until(lambda: not copy.exists(), "the copy is deleted", 20)
    until(lambda: there.followed()[0] == "v0003", "the new version is followed", 20)
    # What a version maps is let go with it; a cached one would keep it for ever.
    kept = there._manifests.values()
    assert "v0001" not in {version.name for version in kept}
    handed_out = [there.on_disk(), there.open("v0002"), *there.versions()]
    assert not {id(version) for version in handed_out} & {id(version) for version in kept}


@pytest.mark.parametrize(
    ("server", "rounds"),
    [("memory", 50), ("s3", 4), pytest.param("s3", 50, marks=pytest.mark.slow)],
)
def test_of_eight_publishers_that_race_one_wins_and_readers_see_whole_versions(
    request: pytest.FixtureRequest, tmp_path: Path, store: ObjectStore, server: str, rounds: int
) -> None:
    if server == "s3":
        request.getfixturevalue("s3")
        store = ObjectStore(Address.parse(f"s3://shop/{uuid.uuid4().hex}"))

    def host(name: str) -> RemoteVersions:
        return RemoteVersions(store, tmp_path / name)

    publishers = [host(f"host{n}") for n in range(8)]
    publish(publishers[0], "first")
    ended, seen = threading.Event(), [set[str](), set[str]()]

    def read(n: int) -> None:
        reader = host(f"reader{n}")
        while not ended.wait(0.005):
            try:
                version = reader.current()
                index, vectors = version.file("index.bin"), version.file("vectors.npy")
            except (ObjectMissing, NotFound):  # pruned since the pointer was read
                continue
            job_id = version.manifest["job_id"].encode()
            assert index.read_bytes() == job_id
            assert vectors.read_bytes() == job_id[::-1]
            seen[n].add(version.name)

    def take_part(n: int, round_number: int, stamp: Any) -> str | None:
        version = build(publishers[n], f"job{round_number}-{n}", f"job{round_number}-{n}".encode())
        try:
            publishers[n].point_to(version, stamp)
        except ObjectConflict:
            return None
        return version.name

    with ThreadPoolExecutor(10) as pool:
        readers = [pool.submit(read, n) for n in range(2)]
        try:
            for round_number in range(rounds):
                stamp = host("judge").pointer_stamp()
                parts = [pool.submit(take_part, n, round_number, stamp) for n in range(8)]
                winners = [name for each in parts if (name := each.result())]
                assert len(winners) == 1
                assert host("judge").current_name() == winners[0]
                publishers[round_number % 8].prune(20, ())
        finally:
            ended.set()
        for reader in readers:
            reader.result()
    # Every publisher has got a number of its own.
    assert max(keys(store, "versions")) == f"versions/v{1 + 8 * rounds:04d}.json"
    assert all(len(names) > 1 for names in seen)


class Hosts(ToyPipeline):
    """A shop that embeds, merges and serves on three hosts."""

    def __init__(self, settings: Settings, tmp_path: Path, store: ObjectStore) -> None:
        super().__init__(settings, tmp_path)
        self.files = ShardObjects(store)
        self.versions = RemoteVersions(store, tmp_path / "indexer")
        self.served = RemoteVersions(store, tmp_path / "server")
        self.planned = RemoteVersions(store, tmp_path / "planner")


@pytest.mark.usefixtures("quick_followers")
def test_a_shop_is_rebuilt_and_searched_by_hosts_that_share_only_the_store(
    settings: Settings, tmp_path: Path, store: ObjectStore
) -> None:
    shop = Hosts(settings, tmp_path, store)
    for number in range(30):
        shop.draw(f"{number:02d}.png", seed=number)
    assert shop.rebuild() == ("v0001", 30, 0)
    assert not settings.jobs_dir.exists()
    assert len(keys(store, "jobs")) == len(shop.files.jobs()) * 2
    live = PublishedIndex(shop.served)
    index = live.current()
    vector = index.version.vectors[7]
    (rows, *_) = index.search_deepening(vector, 3)
    assert index.version.paths[rows[0][0]] == "07.png"
    shop.draw("new.png", seed=99)
    assert shop.rebuild() == ("v0002", 1, 30)
    until(lambda: live.current().version.name == "v0002", "the new version serves", 20)
    assert len(live.current().version.paths) == 31
    shop.served.rollback()
    until(lambda: live.current().version.name == "v0001", "the old version serves again", 20)


@pytest.mark.usefixtures("quick_followers")
def test_a_damaged_copy_that_another_process_mended_is_served(
    settings: Settings, tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Hosts(settings, tmp_path, store)
    for number in range(10):
        shop.draw(f"{number:02d}.png", seed=number)
    shop.rebuild()
    file = shop.served.current().file("vectors.npy")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    verify, found = shop.served.verify, threading.Event()

    def verify_then_another_opens(version: Version) -> None:
        try:
            verify(version)
        except IndexBroken:
            RemoteVersions(store, tmp_path / "server").current().file("vectors.npy")
            found.set()
            raise

    monkeypatch.setattr(shop.served, "verify", verify_then_another_opens)
    live = PublishedIndex(shop.served)
    live.current()
    assert found.wait(20)
    until(lambda: live._state is None or not hasattr(live._state, "reason"), "it is let go", 20)
    assert live.current().version.vectors.shape[0] == 10
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("error", "expected"),
    [(IndexBroken("bad"), [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]), (IndexMissing(), [1.0] * 7)],
)
def test_a_damaged_object_is_fetched_ever_more_rarely(
    monkeypatch: pytest.MonkeyPatch, error: Exception, expected: list[float]
) -> None:
    pauses: list[float] = []

    class Ended(Exception):
        pass

    class Host:
        def look(self) -> None:
            raise error

    class Pause:
        def wait(self, seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == len(expected):
                raise Ended

    host = Host()
    follower = following.Follower("t", host.look, 1.0)
    monkeypatch.setattr(following, "threading", SimpleNamespace(Event=Pause))
    with pytest.raises(Ended):
        follower._run()
    assert pauses == expected
