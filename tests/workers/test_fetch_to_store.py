"""Images of a feed between hosts that share a job table and a store, and no folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from feed_desk import FeedDesk
from feed_server import FeedServer, picture
from obstore.store import MemoryStore

from pipeline.errors import ServerUnavailable
from pipeline.rebuild.plan_feed import plan_fetch
from pipeline.settings import Settings
from pipeline.storage.address import Address
from pipeline.storage.object_store import ObjectStore
from workers import product_images
from workers.local import run_next
from workers.prune import prune
from workers.reconcile import reconcile
from workers.resources import Resources
from workers.routes import QUEUE_OF

ADDRESS = "s3://shop/imgrec"


@pytest.fixture
def server() -> Iterator[FeedServer]:
    server = FeedServer()
    yield server
    server.close()


pytestmark = pytest.mark.usefixtures("quick_followers")


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    store = ObjectStore(Address.parse(ADDRESS), MemoryStore())
    monkeypatch.setattr("workers.resources.ObjectStore", lambda address: store)
    monkeypatch.setattr("pipeline.storage.object_store.ObjectStore", lambda address: store)
    return store


@pytest.fixture
def inline_worker(settings: Settings, tmp_path: Path, server: FeedServer) -> FeedDesk:
    inline_worker = FeedDesk(settings, tmp_path, server)
    inline_worker.start_again(artifacts_url=ADDRESS)
    return inline_worker


def host(inline_worker: FeedDesk, tmp_path: Path, name: str) -> Resources:
    """A host with a data folder of its own."""
    settings = inline_worker.resources.settings.model_copy(update={"data_dir": tmp_path / name})
    return Resources(
        settings, inline_worker, cache=inline_worker.memory, clip=inline_worker.resources.clip
    )


def fetched(store: ObjectStore) -> list[str]:
    return sorted(each.key for each in store.objects("fetched/"))


def test_one_host_fetches_another_embeds_and_a_third_shows(
    inline_worker: FeedDesk, store: ObjectStore, tmp_path: Path
) -> None:
    hosts = {queue: host(inline_worker, tmp_path, queue) for queue in ("fetch", "embed", "index")}
    inline_worker.import_products(inline_worker.draw_products(12))
    job_id = inline_worker.plan_feed()
    inline_worker.advance(job_id)
    while inline_worker.messages:
        assert run_next(hosts[QUEUE_OF[inline_worker.messages[0][0]]], inline_worker)
    assert inline_worker.job(job_id).state == "published"
    assert len(fetched(store)) == 12
    assert not list(tmp_path.glob("*/fetched"))
    third = host(inline_worker, tmp_path, "query")
    version = third.versions.current()
    assert len(version.paths) == 12
    shown = product_images.thumbnails(third, version.name, ["SKU-003/image-1.png"])
    assert list(shown) == ["SKU-003/image-1.png"]


def test_the_next_rebuild_finds_what_was_fetched(
    inline_worker: FeedDesk, store: ObjectStore, server: FeedServer
) -> None:
    inline_worker.import_products(inline_worker.draw_products(4))
    inline_worker.rebuild_feed()
    server.requests.clear()
    server.put("/2-0.png", picture(77), etag='"new"')
    job = inline_worker.rebuild_feed()
    progress = inline_worker.progress(job.id)
    assert (progress.fetched, progress.unchanged, progress.reused) == (1, 3, 3)
    assert sum("if-none-match" in headers for _, _, headers in server.requests) == 4
    assert len(fetched(store)) == 5


def test_a_store_that_is_away_is_waited_for(
    inline_worker: FeedDesk, store: ObjectStore, server: FeedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    inline_worker.import_products(inline_worker.draw_products(4))
    job_id = inline_worker.plan_feed()
    inline_worker.advance(job_id)

    def away(*args: object) -> None:
        raise ServerUnavailable(f"The store {ADDRESS} does not answer: no connection.")

    with monkeypatch.context() as patch:
        patch.setattr(store, "put", away)
        inline_worker.work()
    job = inline_worker.job(job_id)
    assert job.open
    assert job.error == f"The store {ADDRESS} does not answer: no connection."
    for _ in range(3):
        reconcile(inline_worker.resources)
        inline_worker.work()
    assert inline_worker.job(job_id).state == "published"
    assert len(fetched(store)) == 4


def test_objects_that_neither_a_feed_nor_a_version_leads_to_are_pruned(
    inline_worker: FeedDesk, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    products = inline_worker.draw_products(4)
    inline_worker.import_products(products)
    inline_worker.rebuild_feed()
    inline_worker.import_products(products[:1], replace=True)
    store.put(f"fetched/ab/{'ab' * 32}", b"of nobody")
    monkeypatch.setattr("pipeline.images.fetched.LEAST_AGE_S", -60)
    other = host(inline_worker, tmp_path, "other")  # which has no copy of any version
    assert prune(other, dry_run=True).fetched_files == 1
    assert prune(other).fetched_files == 1
    assert len(fetched(store)) == 4  # the version has them


def test_a_product_s_id_that_no_key_can_hold_is_a_failure_of_the_images_that_are_kept(
    inline_worker: FeedDesk, store: ObjectStore
) -> None:
    """The whole job failed."""
    good = ["lamp", "e" * 988]  # with imgrec/preprocessed/ and /image-1.png.jpg: 1,024 bytes
    bad = ["a//b", "../lamp", "./c", "f" * 989]
    addresses = [urls for _, urls in inline_worker.draw_products(len(good + bad))]
    inline_worker.import_products(list(zip(good + bad, addresses, strict=True)))
    resources = inline_worker.resources
    job_id = plan_fetch(
        "feed:shop", resources.settings, resources.jobs, resources.feeds, save_preprocessed=True
    )
    inline_worker.advance(job_id)
    inline_worker.work()
    assert inline_worker.job(job_id).state == "published"
    failures = {each.path: each for each in resources.jobs.failures(job_id)}
    assert set(failures) == {f"{product}/image-1.png" for product in bad}
    assert {each.stage for each in failures.values()} == {"save"}
    assert "1,024 bytes" in failures[f"{bad[-1]}/image-1.png"].reason
    assert len(list(store.objects("preprocessed/"))) == len(good)
