"""From the addresses of a feed to an index: what is fetched, how often, and what becomes of it."""

from __future__ import annotations

import base64
import os
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from feed_desk import FeedDesk
from feed_server import FeedServer, picture
from toy_pipeline import ToyPipeline

from pipeline.errors import NotFound, ServerUnavailable, WrongUse
from pipeline.images.fetched import FetchedFiles
from pipeline.rebuild.retry import plan_retry
from pipeline.settings import Settings
from pipeline.store.job import Job, PlanClaim
from pipeline.store.shards import PlanLost
from workers import duplicates, fetch, plan_fetched, product_images
from workers.live_changes import remove_images
from workers.local import run_next
from workers.prune import prune
from workers.reconcile import reconcile
from workers.routes import EMBED_SHARD, FETCH_SHARD, MERGE_SHARDS, PLAN_FETCHED


@pytest.fixture
def server() -> Iterator[FeedServer]:
    server = FeedServer()
    yield server
    server.close()


@pytest.fixture
def inline_worker(settings: Settings, tmp_path: Path, server: FeedServer) -> FeedDesk:
    return FeedDesk(settings.model_copy(update={"shard_size": 20}), tmp_path, server)


def failures(inline_worker: FeedDesk, job: Job) -> dict[str, tuple[str, str, bool]]:
    found = inline_worker.resources.jobs.failures(job.id)
    return {f.path: (f.stage, f.reason, f.warning) for f in found}


def test_a_feed_becomes_an_index_whose_matches_are_products(inline_worker: FeedDesk) -> None:
    inline_worker.import_products(inline_worker.draw_products(25, each=2))
    job = inline_worker.rebuild_feed()
    assert (job.state, job.root, job.stage, job.error) == ("published", "feed:shop", "", None)
    paths = inline_worker.indexed()
    assert len(paths) == 50
    assert paths[:2] == ["SKU-000/image-1.png", "SKU-000/image-2.png"]
    progress = inline_worker.progress(job.id)
    assert (progress.images, progress.looked_at, progress.embedded) == (50, 50, 50)
    assert (progress.fetched, progress.unchanged, progress.skipped) == (50, 0, 0)
    catalogue = inline_worker.resources.products.catalogue()
    assert {catalogue.product_of(path) for path in paths} == {f"SKU-{n:03d}" for n in range(25)}
    assert catalogue.facts("SKU-007") == {"title": "Product SKU-007"}


@pytest.mark.parametrize("name", ["a/b", "../x", "/etc", "ä ö", "a.b.jpg", "..", "x/", "C:\\y"])
def test_an_id_of_any_form_names_its_own_images_only(inline_worker: FeedDesk, name: str) -> None:
    ((_, urls), other) = inline_worker.draw_products(2)
    inline_worker.import_products([(name, urls), other])
    assert inline_worker.rebuild_feed().state == "published"
    catalogue = inline_worker.resources.products.catalogue()
    owners = Counter(catalogue.product_of(path) for path in inline_worker.indexed())
    assert owners == {name: 1, "SKU-001": 1}


def test_a_second_rebuild_asks_and_downloads_nothing_that_has_not_changed(
    inline_worker: FeedDesk, server: FeedServer
) -> None:
    inline_worker.import_products(inline_worker.draw_products(12))
    first = inline_worker.rebuild_feed()
    server.requests.clear()
    server.put("/3-0.png", picture(999), etag='"new"')
    server.put("/4-0.png", picture(40), etag='"a new tag, the same image"')
    job = inline_worker.rebuild_feed()
    progress = inline_worker.progress(job.id)
    assert (progress.fetched, progress.unchanged) == (1, 11)
    assert (progress.embedded, progress.reused) == (1, 11)
    assert job.index_version != first.index_version
    assert server.counts() == Counter({f"/{n}-0.png": 1 for n in range(12)})
    assert all("if-none-match" in headers for _, _, headers in server.requests)


def test_nothing_changed_publishes_no_new_version(inline_worker: FeedDesk) -> None:
    inline_worker.import_products(inline_worker.draw_products(5))
    assert inline_worker.rebuild_feed().index_version == inline_worker.rebuild_feed().index_version


def test_a_full_rebuild_downloads_everything_again(
    inline_worker: FeedDesk, server: FeedServer
) -> None:
    inline_worker.import_products(inline_worker.draw_products(5))
    inline_worker.rebuild_feed()
    server.requests.clear()
    job = inline_worker.rebuild_feed(full=True)
    assert inline_worker.progress(job.id).embedded == 5
    assert len(server.requests) == 5
    assert not any("if-none-match" in headers for _, _, headers in server.requests)


def test_what_was_asked_a_moment_ago_need_not_be_asked_again(
    inline_worker: FeedDesk, server: FeedServer
) -> None:
    inline_worker.import_products(inline_worker.draw_products(5))
    inline_worker.rebuild_feed()
    server.requests.clear()
    inline_worker.start_again(fetch_recheck_s=3600)
    job = inline_worker.rebuild_feed()
    assert server.requests == []
    assert inline_worker.progress(job.id).unchanged == 5
    with inline_worker.resources.database.transaction() as tx:  # by a clock that was set back since
        tx.rows("UPDATE fetched SET checked_at = checked_at + 7200")
    inline_worker.rebuild_feed()
    assert len(server.requests) == 5


def test_each_failed_address_is_a_failure_with_its_status(
    inline_worker: FeedDesk, server: FeedServer
) -> None:
    products = inline_worker.draw_products(4, each=2)
    server.put("/1-1.png", status=404)
    server.put("/2-0.png", b"<html>" + b" " * 999)
    server.put("/3-0.png", picture(1), headers={"X-Robots-Tag": "noai"})
    inline_worker.import_products(products)
    job = inline_worker.rebuild_feed()
    assert job.state == "published"
    assert failures(inline_worker, job) == {
        "SKU-001/image-2": ("fetch", f"{server.url('/1-1.png')}: status 404", False),
        "SKU-002/image-1": (
            "fetch",
            f"{server.url('/2-0.png')}: the content is an HTML page, not an image",
            False,
        ),
        "SKU-003/image-1": (
            "fetch",
            f"{server.url('/3-0.png')}: the site refuses it by X-Robots-Tag: noai",
            False,
        ),
    }
    progress = inline_worker.progress(job.id)
    assert (progress.images, progress.looked_at, progress.skipped) == (8, 8, 3)
    assert len(inline_worker.indexed()) == 5


def test_an_image_that_is_not_available_now_stays_as_it_was_with_a_warning(
    inline_worker: FeedDesk, server: FeedServer
) -> None:
    inline_worker.start_again(fetch_attempts=1)
    inline_worker.import_products(inline_worker.draw_products(3))
    first = inline_worker.rebuild_feed()
    server.put("/1-0.png", status=503)
    server.put("/2-0.png", status=410)
    job = inline_worker.rebuild_feed()
    found = failures(inline_worker, job)
    stage, reason, warning = found["SKU-001/image-1.png"]
    assert (stage, warning) == ("fetch", True)
    assert reason.endswith("status 503; the image that was fetched before is used")
    assert found["SKU-002/image-1"][2] is False
    assert inline_worker.indexed() == ["SKU-000/image-1.png", "SKU-001/image-1.png"]
    assert job.index_version != first.index_version


def test_a_feed_without_any_image_publishes_nothing(
    inline_worker: FeedDesk, server: FeedServer
) -> None:
    inline_worker.import_products([("A", [server.url("/gone.png")])])
    job = inline_worker.rebuild_feed()
    assert job.state == "failed"
    assert "No image of the feed could be fetched" in str(job.error)
    assert list(failures(inline_worker, job)) == ["A/image-1"]


def test_products_that_share_an_image_fetch_it_once(
    inline_worker: FeedDesk, server: FeedServer
) -> None:
    url = server.put("/same.png", picture(1))
    inline_worker.import_products([("A", [url]), ("B", [url])])
    inline_worker.rebuild_feed()
    assert server.counts() == {"/same.png": 1}
    assert inline_worker.indexed() == ["A/image-1.png", "B/image-1.png"]


def test_a_feed_is_known_by_its_name(inline_worker: FeedDesk) -> None:
    first, second = inline_worker.draw_products(2)
    inline_worker.import_products([first], "summer")
    inline_worker.import_products([second], "winter")
    inline_worker.rebuild_feed("winter")
    assert inline_worker.indexed() == ["SKU-001/image-1.png"]
    with pytest.raises(NotFound, match=r"no feed 'spring'.*Feeds: summer, winter"):
        inline_worker.plan_feed("spring")
    inline_worker.import_products([("SKU-000", [])], "stock")
    with pytest.raises(WrongUse, match="lists no address"):
        inline_worker.plan_feed("stock")


def test_replaced_products_leave_the_next_index(inline_worker: FeedDesk) -> None:
    products = inline_worker.draw_products(4)
    inline_worker.import_products(products)
    inline_worker.rebuild_feed()
    inline_worker.import_products(products[:2], replace=True)
    inline_worker.rebuild_feed()
    assert inline_worker.indexed() == ["SKU-000/image-1.png", "SKU-001/image-1.png"]


def test_a_removed_product_stays_out_of_the_next_index_of_its_feed(inline_worker: FeedDesk) -> None:
    inline_worker.import_products(inline_worker.draw_products(3))
    inline_worker.rebuild_feed()
    remove_images(inline_worker.resources, "SKU-001", ["SKU-001/image-1.png"])
    job = inline_worker.rebuild_feed()
    assert inline_worker.indexed() == ["SKU-000/image-1.png", "SKU-002/image-1.png"]
    assert job.left_out == {"removed with 'imgrec remove'": 1}


def test_a_feed_imported_while_it_is_fetched_waits_for_the_next_rebuild(
    inline_worker: FeedDesk,
) -> None:
    products = inline_worker.draw_products(3)
    inline_worker.import_products(products[:2])
    job_id = inline_worker.plan_feed()
    inline_worker.advance(job_id)
    inline_worker.import_products(products)
    inline_worker.work()
    assert (
        "imported again" in failures(inline_worker, inline_worker.job(job_id))["SKU-002/image-1"][1]
    )
    inline_worker.rebuild_feed()
    assert len(inline_worker.indexed()) == 3


def test_a_job_shows_that_it_fetches_and_counts_addresses_then_images(
    inline_worker: FeedDesk,
) -> None:
    inline_worker.import_products(inline_worker.draw_products(30))
    job_id = inline_worker.plan_feed()
    assert (inline_worker.job(job_id).state, inline_worker.job(job_id).stage) == (
        "planned",
        "fetching",
    )
    assert inline_worker.progress(job_id).images == 30
    inline_worker.advance(job_id)
    task, args = inline_worker.messages.popleft()
    assert task == FETCH_SHARD

    fetch.fetch(inline_worker.resources, *args)
    job, progress = inline_worker.job(job_id), inline_worker.progress(job_id)
    assert (job.state, job.stage, job.plan_done) == ("running", "fetching", False)
    assert 0 < progress.looked_at == progress.fetched < progress.images == 30
    (listed, counted) = inline_worker.resources.jobs.list_with_progress()[0]
    assert (listed.stage, counted) == ("fetching", progress)
    inline_worker.work()
    assert inline_worker.job(job_id).state == "published"
    assert inline_worker.resources.jobs.list_with_progress()[0][1] == inline_worker.progress(job_id)
    assert inline_worker.resources.jobs.statistics()["images"]["embedded"] == 30


def test_messages_in_any_order_and_number_index_each_image_once(
    inline_worker: FeedDesk, server: FeedServer
) -> None:
    inline_worker.import_products(inline_worker.draw_products(45))
    job_id = inline_worker.plan_feed()
    inline_worker.advance(job_id)
    for n in range(6):  # also of shards that there are not, or not yet
        inline_worker.send(EMBED_SHARD, job_id, n)
        inline_worker.send(FETCH_SHARD, job_id, n)
        inline_worker.send(PLAN_FETCHED, job_id)
        inline_worker.send(MERGE_SHARDS, job_id)
    inline_worker.messages.extend(inline_worker.messages)
    inline_worker.messages.reverse()
    inline_worker.work()
    assert inline_worker.job(job_id).state == "published"
    assert set(server.counts().values()) == {1}
    assert len(inline_worker.indexed()) == 45


def test_lost_messages_of_every_stage_are_sent_again(
    inline_worker: FeedDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.reconcile.LOST_AFTER_S", 0.0)
    inline_worker.import_products(inline_worker.draw_products(10))
    job_id = inline_worker.plan_feed()
    lost: set[str] = set()
    while inline_worker.job(job_id).open:
        for keep in (False, True):
            time.sleep(0.01)  # a queued shard is lost a moment after it was queued
            reconcile(inline_worker.resources)
            if not keep:
                lost |= {task for task, _ in inline_worker.messages}
            elif inline_worker.messages:
                run_next(inline_worker.resources, inline_worker)
            inline_worker.messages.clear()
    assert inline_worker.job(job_id).state == "published"
    assert lost == {FETCH_SHARD, PLAN_FETCHED, EMBED_SHARD, MERGE_SHARDS}


def test_who_takes_over_a_shard_asks_for_nothing_that_was_recorded(
    inline_worker: FeedDesk, server: FeedServer
) -> None:
    inline_worker.import_products(inline_worker.draw_products(10))
    job_id = inline_worker.plan_feed()
    jobs = inline_worker.resources.jobs
    (n,) = jobs.shards.next_window(job_id, 1)
    claim = jobs.shards.claim(job_id, n, "dead", -1, "fetch")  # its lease has ended
    assert claim is not None
    assert len(claim.urls) == 10
    broken = {"/5-0.png": server.pages["/5-0.png"]}

    def die(handler: BaseHTTPRequestHandler) -> None:
        raise OSError

    inline_worker.start_again(fetch_attempts=1)
    server.put("/5-0.png", answer=die)

    fetch.fetch(inline_worker.resources, job_id, n)
    server.pages |= broken
    assert jobs.progress(job_id).shards_done == 1
    jobs_row = inline_worker.resources.feeds.known(claim.urls)
    assert Counter(row.outcome for row in jobs_row.values()) == {"fetched": 9, "failed": 1}
    with (
        inline_worker.resources.database.transaction() as tx
    ):  # as if the worker had died before its end
        tx.rows("UPDATE shards SET state = 'pending', lease_until = 0 WHERE job_id = ?", (job_id,))
    server.requests.clear()
    fetch.fetch(inline_worker.resources, job_id, n)
    assert server.requests == []
    inline_worker.work()
    assert len(inline_worker.indexed()) == 9


def test_a_planner_that_died_leaves_nothing_that_is_indexed_twice(
    inline_worker: FeedDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.rebuild.plan.SHARDS_AT_ONCE", 1)
    inline_worker.import_products(inline_worker.draw_products(40))
    job_id = inline_worker.plan_feed()
    inline_worker.advance(job_id)
    while inline_worker.messages[0][0] == FETCH_SHARD:
        run_next(inline_worker.resources, inline_worker)
    jobs = inline_worker.resources.jobs
    dead = jobs.claim_plan(job_id, "dead", 1000)
    assert dead is not None
    jobs.shards.add(job_id, [(dead.first, "embed", [["x.png", 1, 1, "0" * 64]])], [], 0, "dead")
    assert jobs.claim_plan(job_id, "second", 1000) is not None  # the lease of 0 s has ended

    with pytest.raises(PlanLost):
        jobs.shards.add(job_id, [(90, "embed", [["y.png", 1, 1, "0" * 64]])], [], 1000, "dead")
    with inline_worker.resources.database.transaction() as tx:
        tx.rows("UPDATE jobs SET lease_until = 0 WHERE id = ?", (job_id,))
    inline_worker.work()
    assert inline_worker.job(job_id).state == "published"
    assert len(inline_worker.indexed()) == 40


def test_a_database_that_is_away_counts_no_attempt_of_a_plan(
    inline_worker: FeedDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    inline_worker.import_products(inline_worker.draw_products(5))
    job_id = inline_worker.plan_feed()
    inline_worker.advance(job_id)
    while inline_worker.messages[0][0] == FETCH_SHARD:
        run_next(inline_worker.resources, inline_worker)
    jobs, away = inline_worker.resources.jobs, ServerUnavailable("It is away.")
    release, n_released = jobs.release_plan, 0

    def fail(*args: object, **options: object) -> None:
        raise away

    def release_in_the_end(claim: PlanClaim, *, count_attempt: bool) -> bool:
        nonlocal n_released
        n_released += 1
        if n_released % 3:
            raise away
        return release(claim, count_attempt=count_attempt)

    monkeypatch.setattr("workers.outage.RETRY_S", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "finish_plan", fail)
        patch.setattr(jobs, "release_plan", release_in_the_end)
        for _ in range(2 * inline_worker.resources.settings.shard_max_attempts):
            plan_fetched.plan(inline_worker.resources, job_id)
            assert inline_worker.job(job_id).error == "It is away."
    inline_worker.work()
    assert inline_worker.job(job_id).state == "published"


def test_a_file_that_vanished_is_fetched_again(inline_worker: FeedDesk, server: FeedServer) -> None:
    inline_worker.import_products(inline_worker.draw_products(3))
    inline_worker.rebuild_feed()
    files = sorted(inline_worker.resources.settings.fetched_dir.glob("??/??/*"))
    assert len(files) == 3
    files[0].unlink()
    server.requests.clear()
    job = inline_worker.rebuild_feed()
    assert job.state == "published"
    assert len(sorted(inline_worker.resources.settings.fetched_dir.glob("??/??/*"))) == 3
    conditional = ["if-none-match" in headers for _, _, headers in server.requests]
    assert Counter(conditional) == {True: 2, False: 1}


def test_a_file_that_was_damaged_is_mended_by_a_full_rebuild(inline_worker: FeedDesk) -> None:
    inline_worker.import_products(inline_worker.draw_products(3))
    inline_worker.rebuild_feed()
    damaged, *_ = inline_worker.resources.settings.fetched_dir.glob("??/??/*")
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-9])
    job = inline_worker.rebuild_feed(full=True)
    assert inline_worker.progress(job.id).skipped == 0
    assert damaged.read_bytes() == content


def test_a_retry_asks_again_and_indexes_what_has_come_since(
    inline_worker: FeedDesk, server: FeedServer
) -> None:
    products = inline_worker.draw_products(3)
    good = server.pages["/1-0.png"]
    server.put("/1-0.png", status=404)
    inline_worker.import_products(products)
    job = inline_worker.rebuild_feed()
    server.pages["/1-0.png"] = good
    resources = inline_worker.resources
    retry_id = plan_retry(
        job.id, resources.settings, resources.jobs, resources.versions, resources.feeds
    )
    inline_worker.advance(retry_id)
    inline_worker.work()
    progress = inline_worker.progress(retry_id)
    assert (progress.fetched, progress.unchanged, progress.reused) == (1, 2, 2)
    assert len(inline_worker.indexed()) == 3


def test_a_cancelled_job_stops_fetching(inline_worker: FeedDesk, server: FeedServer) -> None:
    inline_worker.import_products(inline_worker.draw_products(30))
    job_id = inline_worker.plan_feed()
    inline_worker.advance(job_id)
    inline_worker.resources.jobs.cancel(job_id)
    inline_worker.work()
    assert inline_worker.job(job_id).state == "cancelled"
    assert server.requests == []


def test_a_full_disk_waits_and_loses_nothing(
    inline_worker: FeedDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    inline_worker.import_products(inline_worker.draw_products(3))
    job_id = inline_worker.plan_feed()
    inline_worker.advance(job_id)
    with monkeypatch.context() as patch:

        def full(*args: object) -> str:
            raise OSError(
                28, "No space left on device", str(inline_worker.resources.settings.fetched_dir)
            )

        patch.setattr(FetchedFiles, "put", full)
        inline_worker.work()
    job = inline_worker.job(job_id)
    assert job.open
    assert "full" in str(job.error) or "space" in str(job.error)
    reconcile(inline_worker.resources)
    inline_worker.work()
    assert inline_worker.job(job_id).state == "published"
    assert inline_worker.job(job_id).error is None


def test_query_workers_show_the_images_of_a_feed(inline_worker: FeedDesk) -> None:
    inline_worker.import_products(inline_worker.draw_products(2))
    inline_worker.rebuild_feed()
    version = inline_worker.resources.versions.current().name
    found = product_images.thumbnails(
        inline_worker.resources, version, ["SKU-000/image-1.png", "other.png"]
    )
    assert list(found) == ["SKU-000/image-1.png"]
    assert base64.b64decode(found["SKU-000/image-1.png"]).startswith(b"\xff\xd8")
    assert (
        product_images.product_image(inline_worker.resources, "SKU-001", 64)["filename"]
        == "SKU-001/image-1.png"
    )


def test_files_that_nothing_leads_to_are_pruned_when_they_are_old(
    inline_worker: FeedDesk, server: FeedServer
) -> None:
    products = inline_worker.draw_products(4)
    inline_worker.import_products(products)
    inline_worker.rebuild_feed()
    folder = inline_worker.resources.settings.fetched_dir
    files = FetchedFiles(folder)

    def on_disk() -> int:
        return len(list(folder.glob("??/??/*")))

    def make_old() -> None:
        for file in folder.glob("??/??/*"):
            os.utime(file, (1, 1))

    inline_worker.import_products(products[:1], replace=True)
    make_old()
    assert prune(inline_worker.resources).fetched_files == 0  # the version still has them
    for number in range(inline_worker.resources.settings.keep_versions):
        server.put("/0-0.png", picture(1000 + number))
        inline_worker.rebuild_feed()
    assert on_disk() == inline_worker.resources.settings.keep_versions  # each publication prunes
    orphan = files.path(files.put(picture(5000)))
    os.utime(orphan, (1, 1))
    would = prune(inline_worker.resources, dry_run=True)
    assert (would.fetched_files, would.fetched_bytes) == (1, orphan.stat().st_size)
    assert prune(inline_worker.resources).fetched_files == 1
    assert not orphan.exists()
    for version in inline_worker.resources.versions.versions():
        assert all(files.has(digest.decode()) for digest in version.sha256)
    assert inline_worker.rebuild_feed().state == "published"


def test_a_file_that_nothing_leads_to_yet_is_not_pruned(inline_worker: FeedDesk) -> None:
    files = FetchedFiles(inline_worker.resources.settings.fetched_dir)
    digest = files.put(picture(1))
    assert prune(inline_worker.resources).fetched_files == 0
    os.utime(files.path(digest), (1, 1))
    files.put(picture(1))  # fetched again: about to be recorded
    assert prune(inline_worker.resources).fetched_files == 0
    assert files.has(digest)


def test_duplicates_are_found_in_the_index_of_a_feed(
    inline_worker: FeedDesk, server: FeedServer
) -> None:
    products = inline_worker.draw_products(3)
    products.append(("COPY", [server.put("/copy.png", picture(10))]))
    inline_worker.import_products(products)
    inline_worker.rebuild_feed()
    resources = inline_worker.resources
    search = resources.duplicates.plan(resources.versions.current().identity, 0.99)
    duplicates.find_duplicates(resources, search.id)
    found = resources.duplicates.published().result
    assert [pair.key for pair in found.pairs] == [("COPY/image-1.png", "SKU-001/image-1.png")]
    assert found.facts["COPY/image-1.png"].width == 24


def test_a_folder_is_rebuilt_as_before_beside_feeds(inline_worker: FeedDesk) -> None:
    toy: ToyPipeline = inline_worker.toy
    for number in range(5):
        toy.draw(f"{number}.png", number)
    inline_worker.import_products(inline_worker.draw_products(3))
    inline_worker.rebuild_feed()
    job_id = inline_worker.rebuild()
    assert inline_worker.job(job_id).state == "published"
    assert inline_worker.progress(job_id).embedded == 5
    assert inline_worker.job(job_id).form == 1
