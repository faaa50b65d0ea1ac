"""What rebuilds leave behind keeps within its bounds, and what is needed stays."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
from inline_worker import InlineWorker

from pipeline.errors import WrongUse
from pipeline.images.failure import Failure
from pipeline.store.shards import UNLISTED, _add_failures
from workers.dispatch import InlineDispatcher
from workers.prune import prune
from workers.reconcile import advance
from workers.resources import Resources

TABLES = ("jobs", "shards", "failures", "suspects", "shard_timings", "refusals")


def rows(inline_worker: InlineWorker) -> dict[str, int]:
    with inline_worker.resources.database.transaction(read_only=True) as tx:
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


def ids(inline_worker: InlineWorker) -> list[str]:
    return [job.id for job, _ in inline_worker.resources.jobs.list_with_progress(limit=1000)]


def bounded(inline_worker: InlineWorker, n_rebuilds: int) -> list[dict[str, int]]:
    """Rebuild so often, each time another photo and one that is broken; measure on the way."""
    (inline_worker.toy.root / "broken.png").write_bytes(b"no image")
    measures = []
    for number in range(n_rebuilds):
        inline_worker.toy.draw("kind0/00.png", seed=1000 + number)
        inline_worker.rebuild()
        if number in (n_rebuilds // 4, n_rebuilds - 1):
            counts = rows(inline_worker)
            measures.append(
                {
                    "rebuilds": number + 1,
                    **counts,
                    "bytes": folder_bytes(inline_worker.toy.settings.data_dir),
                    "rss": rss_bytes(),
                    "open_files": open_files(),
                }
            )
    return measures


def test_rows_files_and_versions_stay_within_their_bounds_over_many_rebuilds(
    inline_worker: InlineWorker,
) -> None:
    inline_worker.start_again(keep_jobs=5)
    first, last = bounded(inline_worker, 40)
    for measure in (first, last):
        assert measure["jobs"] <= 5 + inline_worker.toy.settings.keep_versions
        assert measure["failures"] <= measure["jobs"]
        assert measure["shards"] <= 2 * measure["jobs"]
    assert {table: last[table] for table in TABLES} == {table: first[table] for table in TABLES}
    assert len(inline_worker.toy.versions.versions()) == inline_worker.toy.settings.keep_versions
    assert last["open_files"] <= first["open_files"]


@pytest.mark.slow
def test_two_thousand_rebuilds_grow_nothing(inline_worker: InlineWorker) -> None:
    inline_worker.start_again(keep_jobs=100)
    first, last = bounded(inline_worker, 2000)
    print(f"\n{first}\n{last}")
    assert {table: last[table] for table in TABLES} == {table: first[table] for table in TABLES}
    assert last["bytes"] <= 1.1 * first["bytes"]
    assert last["rss"] <= 1.1 * first["rss"]
    assert last["open_files"] <= first["open_files"]


def test_a_dry_run_names_what_the_next_run_deletes_and_deletes_nothing(
    inline_worker: InlineWorker,
) -> None:
    for number in range(6):
        inline_worker.toy.draw("kind0/00.png", seed=1000 + number)
        inline_worker.rebuild()
    inline_worker.start_again(keep_jobs=1, keep_versions=2)
    before, all_ids = rows(inline_worker), ids(inline_worker)
    plan = prune(inline_worker.resources, dry_run=True)
    assert rows(inline_worker) == before
    assert plan.versions == ["v0004"]
    pruned = prune(inline_worker.resources)
    # Before v0004 was deleted, the dry run still protected its job.
    assert set(plan.jobs) <= set(pruned.jobs)
    assert pruned.versions == plan.versions
    assert ids(inline_worker) == [job for job in all_ids if job not in pruned.jobs]
    assert len(ids(inline_worker)) == 2  # of the two versions that a rollback may need


def test_rows_count_as_well_as_jobs_and_the_newest_job_stays_whole(
    inline_worker: InlineWorker,
) -> None:
    for number in range(3):
        inline_worker.toy.draw("kind0/00.png", seed=1000 + number)
        inline_worker.rebuild()
    broken = [Failure(f"{number}.png", "decode", "no image") for number in range(50)]
    jobs = inline_worker.resources.jobs
    with jobs.database.transaction() as tx:
        for job_id in ids(inline_worker):
            _add_failures(tx, job_id, UNLISTED, broken)
    newest, *older = ids(inline_worker)
    assert jobs.prunable(1000, 60, set()).keys() == set(older)
    assert jobs.prunable(1000, 110, set()).keys() == {older[-1]}
    assert jobs.prunable(1, 1, set()).keys() == set(older)
    assert newest not in jobs.prunable(1, 1, set())


def test_jobs_that_an_open_one_must_know_of_stay(inline_worker: InlineWorker) -> None:
    """By these rows an older job sees that a newer one has published, and does not replace it."""
    inline_worker.rebuild()
    going = inline_worker.toy.plan()
    advance(inline_worker.resources, going)
    for number in range(8):
        inline_worker.toy.draw("kind0/00.png", seed=1000 + number)
        inline_worker.toy.rebuild()
    inline_worker.start_again(keep_jobs=1)
    newer = ids(inline_worker)[:8]
    prune(inline_worker.resources)
    assert set(newer) <= set(ids(inline_worker))
    assert going in ids(inline_worker)
    inline_worker.work()
    assert inline_worker.job(going).state == "failed"
    assert "has already published" in str(inline_worker.job(going).error)
    prune(inline_worker.resources)
    assert len(ids(inline_worker)) <= 1 + inline_worker.toy.settings.keep_versions


def test_a_job_that_a_worker_still_holds_stays(inline_worker: InlineWorker) -> None:
    job_id = inline_worker.toy.plan()
    (n,) = inline_worker.toy.jobs.shards.next_window(job_id, 1)[:1]
    assert inline_worker.toy.jobs.shards.claim(job_id, n, "slow", 1000) is not None
    inline_worker.toy.jobs.cancel(job_id)
    for number in range(4):
        inline_worker.toy.draw("kind0/00.png", seed=1000 + number)
        inline_worker.rebuild()
    assert job_id not in inline_worker.resources.jobs.prunable(1, 1, set())
    assert inline_worker.resources.jobs.prunable(1, 1, set())


def test_a_command_with_another_database_deletes_nothing_of_a_running_rebuild(
    inline_worker: InlineWorker, tmp_path: Path
) -> None:
    shop = inline_worker.toy
    for seed in range(5):
        shop.draw("kind0/00.png", seed=2000 + seed)
        inline_worker.rebuild()
    shop.draw("kind0/00.png", seed=3000)
    running = shop.plan()
    shop.embed(running)
    files = sorted(shop.settings.data_dir.rglob("*"))
    elsewhere = shop.settings.model_copy(update={"database_url": f"sqlite:///{tmp_path}/other.db"})
    other = Resources(elsewhere, InlineDispatcher())
    with pytest.raises(WrongUse, match=r"other\.db does not have job .* published v0005"):
        prune(other)
    assert sorted(shop.settings.data_dir.rglob("*")) == files
    assert shop.merge(running).version == "v0006"


def test_after_another_database_has_published_its_jobs_keep_their_files(
    inline_worker: InlineWorker, tmp_path: Path
) -> None:
    shop = inline_worker.toy
    inline_worker.rebuild()
    shop.draw("kind0/00.png", seed=3000)
    running = shop.plan()
    shop.embed(running)
    elsewhere = shop.settings.model_copy(update={"database_url": f"sqlite:///{tmp_path}/other.db"})
    inline_worker.resources = inline_worker._made(elsewhere, shop)
    inline_worker.toy.jobs = inline_worker.resources.jobs
    published = inline_worker.rebuild()
    assert inline_worker.job(published).state == "published"
    assert list((shop.settings.jobs_dir / running).iterdir())
    assert not (shop.settings.jobs_dir / published).exists()
