"""What rebuilds leave behind keeps within its bounds, and what is needed stays."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
from inline_worker import InlineWorker

from pipeline.images.failure import Failure
from workers.prune import prune
from workers.reconcile import advance

TABLES = ("jobs", "shards", "failures", "suspects", "shard_timings", "refusals")


def rows(desk: InlineWorker) -> dict[str, int]:
    with desk.resources.database.transaction(read_only=True) as tx:
        return {
            table: int(tx.rows(f"SELECT COUNT(*) AS n FROM {table}")[0]["n"]) for table in TABLES
        }


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def ids(desk: InlineWorker) -> list[str]:
    return [job.id for job, _ in desk.resources.jobs.list_with_progress(limit=1000)]


def bounded(desk: InlineWorker, n_rebuilds: int) -> list[dict[str, int]]:
    """Rebuild so often, each time another photo and one that is broken; measure on the way."""
    (desk.shop.root / "broken.png").write_bytes(b"no image")
    measures = []
    for number in range(n_rebuilds):
        desk.shop.draw("kind0/00.png", seed=1000 + number)
        desk.rebuild()
        if number in (n_rebuilds // 4, n_rebuilds - 1):
            counts = rows(desk)
            measures.append(
                {
                    "rebuilds": number + 1,
                    **counts,
                    "bytes": folder_bytes(desk.shop.settings.data_dir),
                    "rss": rss_bytes(),
                    "open_files": open_files(),
                }
            )
    return measures


def test_rows_files_and_versions_stay_within_their_bounds_over_many_rebuilds(
    desk: InlineWorker,
) -> None:
    desk.start_again(keep_jobs=5)
    first, last = bounded(desk, 40)
    for measure in (first, last):
        assert measure["jobs"] <= 5 + desk.shop.settings.keep_versions
        assert measure["failures"] <= measure["jobs"]
        assert measure["shards"] <= 2 * measure["jobs"]
    assert {table: last[table] for table in TABLES} == {table: first[table] for table in TABLES}
    assert len(desk.shop.versions.versions()) == desk.shop.settings.keep_versions
    assert last["open_files"] <= first["open_files"]


@pytest.mark.slow
def test_two_thousand_rebuilds_grow_nothing(desk: InlineWorker) -> None:
    desk.start_again(keep_jobs=100)
    first, last = bounded(desk, 2000)
    print(f"\n{first}\n{last}")
    assert {table: last[table] for table in TABLES} == {table: first[table] for table in TABLES}
    assert last["bytes"] <= 1.1 * first["bytes"]
    assert last["rss"] <= 1.1 * first["rss"]
    assert last["open_files"] <= first["open_files"]


def test_a_dry_run_names_what_the_next_run_deletes_and_deletes_nothing(desk: InlineWorker) -> None:
    for number in range(6):
        desk.shop.draw("kind0/00.png", seed=1000 + number)
        desk.rebuild()
    desk.start_again(keep_jobs=1, keep_versions=2)
    before, all_ids = rows(desk), ids(desk)
    plan = prune(desk.resources, dry_run=True)
    assert rows(desk) == before
    assert plan.versions == ["v0004"]
    pruned = prune(desk.resources)
    # Before v0004 was deleted, the dry run still protected its job.
    assert set(plan.jobs) <= set(pruned.jobs)
    assert pruned.versions == plan.versions
    assert ids(desk) == [job for job in all_ids if job not in pruned.jobs]
    assert len(ids(desk)) == 2  # of the two versions that a rollback may need


def test_rows_count_as_well_as_jobs_and_the_newest_job_stays_whole(desk: InlineWorker) -> None:
    for number in range(3):
        desk.shop.draw("kind0/00.png", seed=1000 + number)
        desk.rebuild()
    broken = [Failure(f"{number}.png", "decode", "no image") for number in range(50)]
    jobs = desk.resources.jobs
    for job_id in ids(desk):
        jobs.shards.add(job_id, [], broken, 60)
    newest, *older = ids(desk)
    assert jobs.prunable(1000, 60, set()).keys() == set(older)
    assert jobs.prunable(1000, 110, set()).keys() == {older[-1]}
    assert jobs.prunable(1, 1, set()).keys() == set(older)
    assert newest not in jobs.prunable(1, 1, set())


def test_jobs_that_an_open_one_must_know_of_stay(desk: InlineWorker) -> None:
    """By these rows an older job sees that a newer one has published, and does not replace it."""
    desk.rebuild()
    going = desk.shop.plan()
    advance(desk.resources, going)
    for number in range(8):
        desk.shop.draw("kind0/00.png", seed=1000 + number)
        desk.shop.rebuild()
    desk.start_again(keep_jobs=1)
    newer = ids(desk)[:8]
    prune(desk.resources)
    assert set(newer) <= set(ids(desk))
    assert going in ids(desk)
    desk.work()
    assert desk.job(going).state == "failed"
    assert "has already published" in str(desk.job(going).error)
    prune(desk.resources)
    assert len(ids(desk)) <= 1 + desk.shop.settings.keep_versions


def test_a_job_that_a_worker_still_holds_stays(desk: InlineWorker) -> None:
    job_id = desk.shop.plan()
    (n,) = desk.shop.jobs.shards.next_window(job_id, 1)[:1]
    assert desk.shop.jobs.shards.claim(job_id, n, "slow", 1000) is not None
    desk.shop.jobs.cancel(job_id)
    for number in range(4):
        desk.shop.draw("kind0/00.png", seed=1000 + number)
        desk.rebuild()
    assert job_id not in desk.resources.jobs.prunable(1, 1, set())
    assert desk.resources.jobs.prunable(1, 1, set())
