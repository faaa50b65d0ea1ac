"""Feeds, their addresses and what was fetched of them, in each kind of database."""

from __future__ import annotations

import pytest

from pipeline.errors import NotFound
from pipeline.rebuild.plan_feed import FetchedFeed
from pipeline.store import feeds as module
from pipeline.store.database import Database
from pipeline.store.feeds import Feeds, FetchedUrl, Origin
from pipeline.store.job import FEED_FORM
from pipeline.store.jobs import Jobs
from pipeline.store.shards import PlanLost

SHA = "ab" * 32
IDS = ["a", "A", "a-b", "a/b", "ab", "é", "Z", "10", "9", "ß", "日本"]


@pytest.fixture
def feeds(database: Database, monkeypatch: pytest.MonkeyPatch) -> Feeds:
    monkeypatch.setattr(module, "BATCH", 3)  # several pages of everything
    return Feeds(database)


def list_urls(database: Database, feed: str, products: dict[str, list[str]]) -> None:
    with database.transaction() as tx:
        Origin(feed, "p.csv").write(tx)
        tx.many(
            "INSERT INTO product_urls (product_id, position, url, feed) VALUES (?, ?, ?, ?)",
            [(name, n, url, feed) for name, urls in products.items() for n, url in enumerate(urls)],
        )


def fetched(url: str, digest: str = SHA, job_id: str = "job") -> FetchedUrl:
    return FetchedUrl(url, "fetched", "", digest, 10, ".png", '"1"', "then", job_id)


def test_each_address_of_a_feed_is_listed_once(database: Database, feeds: Feeds) -> None:
    urls = {name: [f"http://x/{name}/{n}" for n in range(2)] + ["http://x/same"] for name in IDS}
    list_urls(database, "shop", urls)
    list_urls(database, "other", {"x": ["http://x/other"]})
    found = list(feeds.urls("shop"))
    assert len(found) == 2 * len(IDS) + 1
    assert set(found) == {url for some in urls.values() for url in some}
    assert list(feeds.urls("nothing")) == []


def test_images_come_with_what_was_fetched_whatever_order_the_database_has(
    database: Database, feeds: Feeds
) -> None:
    list_urls(database, "shop", {name: [f"http://x/{name}", "http://x/same"] for name in IDS})
    feeds.record(fetched("http://x/same"))
    images = list(feeds.images("shop"))
    assert {(image.product_id, image.number) for image in images} == {
        (name, number) for name in IDS for number in (1, 2)
    }
    assert len(images) == 2 * len(IDS)
    assert all((image.fetched is not None) == (image.number == 2) for image in images)
    listed = [item.path for item in FetchedFeed("feed:shop", feeds).find()]
    assert listed == sorted(listed)
    assert "a/b/image-2.png" in listed


def test_the_last_answer_of_an_address_counts(feeds: Feeds) -> None:
    feeds.record(fetched("http://x/a"))
    feeds.record(FetchedUrl("http://x/a", "failed", "status 404", job_id="next"))
    known = feeds.known(["http://x/a", "http://x/b"])
    assert list(known) == ["http://x/a"]
    row = known["http://x/a"]
    assert (row.outcome, row.reason, row.sha256, row.job_id) == ("failed", "status 404", "", "next")
    assert 0 <= row.age_s < 60


def test_what_no_feed_lists_is_forgotten_and_its_file_not_needed(
    database: Database, feeds: Feeds
) -> None:
    list_urls(database, "shop", {"a": ["http://x/a"]})
    feeds.record(fetched("http://x/a"))
    feeds.record(fetched("http://x/b", "cd" * 32))
    assert feeds.needed([SHA, "cd" * 32, "ef" * 32]) == {SHA, "cd" * 32}
    feeds.forget_unlisted()
    assert feeds.needed([SHA, "cd" * 32]) == {SHA}


def test_an_origin_is_the_one_of_the_last_import(database: Database, feeds: Feeds) -> None:
    with pytest.raises(NotFound, match="Feeds: none yet"):
        feeds.get("shop")
    with database.transaction() as tx:
        Origin("shop", "a.csv", "digest", SHA, '"1"', "then").write(tx)
        Origin("shop", "b.csv").write(tx)
    assert feeds.get("shop") == Origin("shop", "b.csv")
    assert feeds.find("other") is None


def test_a_job_counts_its_addresses_then_its_images(database: Database) -> None:
    jobs = Jobs(database)
    job_id = jobs.create(
        "feed:shop",
        full=False,
        save_preprocessed=False,
        fingerprint=None,
        base_version=None,
        lease_s=60,
        form=FEED_FORM,
    )
    pieces = [(n, "fetch", [f"http://x/{n}/{i}" for i in range(5)]) for n in range(2)]
    jobs.shards.add(job_id, pieces, [], 60)
    jobs.start_fetching(job_id)
    assert jobs.any_fetching()
    assert not jobs.ready_to_plan(job_id)
    assert jobs.shards.next_window(job_id, 10) == [0, 1]
    assert jobs.shards.claim(job_id, 0, "me", 60) is None  # not a shard of images
    for n in range(2):
        claim = jobs.shards.claim(job_id, n, f"me{n}", 60, "fetch")
        assert claim is not None
        assert (claim.images, claim.urls) == ([], pieces[n][2])
        jobs.shards.finish(claim, file="", sha256="", embedded=3, reused=1, failures=[])
    progress = jobs.progress(job_id)
    assert (progress.images, progress.looked_at, progress.fetched) == (10, 10, 6)
    assert (progress.unchanged, progress.embedded, progress.reused) == (2, 0, 0)
    assert not jobs.ready_to_merge(job_id)
    assert jobs.ready_to_plan(job_id)
    dead = jobs.claim_plan(job_id, "dead", -1)
    assert dead is not None
    assert dead.first == 2
    items = [["a.png", 1, 1, SHA]]
    jobs.shards.add(job_id, [(2, "embed", items)], [], -1, "dead")
    assert jobs.shards.next_window(job_id, 10) == []  # a plan that is not whole
    claim_plan = jobs.claim_plan(job_id, "alive", 60)
    assert claim_plan is not None
    with pytest.raises(PlanLost):
        jobs.shards.add(job_id, [(3, "embed", items)], [], 60, "dead")
    with pytest.raises(PlanLost):
        jobs.set_base_version(dead, "v0001")
    with pytest.raises(PlanLost):
        jobs.finish_plan(job_id, owner="dead")
    jobs.set_base_version(claim_plan, "v0002")
    jobs.shards.add(job_id, [(2, "embed", items)], [], 60, "alive")
    assert jobs.claim_plan(job_id, "late", 60) is None
    jobs.finish_plan(job_id, owner="alive")
    assert jobs.get(job_id).base_version == "v0002"
    assert not jobs.any_fetching()
    progress = jobs.progress(job_id)
    assert (progress.images, progress.looked_at, progress.fetched, progress.shards) == (1, 0, 6, 1)
    assert jobs.list_with_progress()[0][1] == progress
    assert jobs.shards.next_window(job_id, 10) == [2]
    claim = jobs.shards.claim(job_id, 2, "me", 60)
    assert claim is not None
    assert claim.images[0].sha256 == SHA
    jobs.shards.finish(claim, file="f", sha256="s", embedded=1, reused=0, failures=[])
    assert jobs.ready_to_merge(job_id)
    assert [shard.n for shard in jobs.shards.done(job_id)] == [2]
    assert jobs.statistics()["images"]["embedded"] == 1
    jobs.fail_abandoned_plans()
    assert jobs.get(job_id).open
