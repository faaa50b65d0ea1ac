"""A job that tries again what another one left out, beside other jobs."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_pipeline import ToyPipeline

from pipeline.errors import Conflict
from pipeline.rebuild.retry import plan_retry
from pipeline.settings import Settings
from pipeline.store.feeds import Feeds


@pytest.fixture
def shop(settings: Settings, tmp_path: Path) -> ToyPipeline:
    shop = ToyPipeline(settings, tmp_path)
    shop.draw("good.png", 1)
    (shop.root / "bad.png").write_bytes(b"not an image")
    return shop


def published(shop: ToyPipeline) -> str:
    job_id = shop.plan()
    shop.embed(job_id)
    shop.merge(job_id)
    return job_id


def retry(shop: ToyPipeline, job_id: str) -> str:
    feeds = Feeds(shop.jobs.database)
    return plan_retry(job_id, shop.settings, shop.jobs, shop.versions, feeds)


def test_a_retry_beside_an_open_rebuild_is_refused_or_it_would_take_its_images_away(
    shop: ToyPipeline,
) -> None:
    first = published(shop)
    shop.draw("new.png", 2)
    rebuild = shop.plan()
    with pytest.raises(Conflict, match=f"Job {rebuild} is open"):
        retry(shop, first)
    assert [job.id for job in shop.jobs.open_jobs()] == [rebuild]


def test_a_rebuild_that_publishes_while_a_retry_is_planned_ends_the_retry(
    shop: ToyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = published(shop)
    shop.draw("new.png", 2)
    create = shop.jobs.create

    def publish_first(*args: object, **options: object) -> str:
        monkeypatch.undo()
        published(shop)
        return create(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(shop.jobs, "create", publish_first)
    with pytest.raises(Conflict, match="start a rebuild"):
        retry(shop, first)
    assert shop.jobs.open_jobs() == []
    assert sorted(shop.versions.current().paths) == ["good.png", "new.png"]


def test_of_two_retries_at_once_one_is_planned(shop: ToyPipeline) -> None:
    first = published(shop)
    one = retry(shop, first)
    with pytest.raises(Conflict, match=f"Job {one} is open"):
        retry(shop, first)
    shop.draw("bad.png", 3)
    shop.embed(one)
    shop.merge(one)
    assert shop.jobs.get(one).state == "published"
