"""The job table, on SQLite and on PostgreSQL: every claim, lease and result is conditional."""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from pipeline.embed.fingerprint import Fingerprint
from pipeline.errors import ImgrecError, ServerUnavailable, WrongUse
from pipeline.images.failure import Failure
from pipeline.store import jobs as jobs_module
from pipeline.store import shards as shards_module
from pipeline.store import webhooks as webhooks_module
from pipeline.store.database import Database
from pipeline.store.job import Progress
from pipeline.store.jobs import Jobs
from pipeline.store.queries import QUERIES
from pipeline.store.shards import Claim, PlanLost, StageTimings

MODEL = Fingerprint("f1", {"model": "toy", "preprocessing": {"rembg_model": None, "size": (8, 8)}})
LONG_S = 1000.0


@pytest.fixture
def jobs(database: Database) -> Jobs:
    return Jobs(database)


def plan(jobs: Jobs, shards: int = 3, fingerprint: Fingerprint | None = MODEL) -> str:
    job_id = jobs.create(
        Path("/products"),
        full=False,
        save_preprocessed=False,
        fingerprint=fingerprint,
        base_version=None,
        lease_s=LONG_S,
    )
    rows = [(n, "embed", [[f"{n}-{i}.jpg", 10, 20] for i in range(2)]) for n in range(shards)]
    jobs.shards.add(job_id, rows, [], LONG_S)
    jobs.finish_plan(job_id)
    return job_id


def claim(jobs: Jobs, job_id: str, n: int, lease_s: float = LONG_S) -> Claim:
    found = jobs.shards.claim(job_id, n, f"worker-{n}", lease_s)
    assert found is not None
    return found


def finish(jobs: Jobs, taken: Claim, failures: list[Failure] | None = None) -> bool:
    return jobs.shards.finish(
        taken, file="f.npz", sha256="0", embedded=2, reused=0, failures=failures or []
    )


def test_the_schema_is_made_once_by_any_number_of_processes(database_url: str) -> None:
    errors: list[BaseException] = []

    def use() -> None:
        try:
            Jobs(Database(database_url)).list_with_progress()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with Database(database_url).transaction() as tx:
        versions = tx.rows("SELECT version FROM schema_version ORDER BY version")
    assert [row["version"] for row in versions] == [1, 2, 3, 4, 5]  # each section once


def test_a_database_of_a_later_imgrec_is_refused(database_url: str) -> None:
    with Database(database_url).transaction() as tx:
        tx.rows("INSERT INTO schema_version VALUES (999)")
    with pytest.raises(ImgrecError, match="schema version 999"):
        Jobs(Database(database_url)).list_with_progress()


def test_every_statement_is_used_and_every_used_one_is_there() -> None:
    modules = (jobs_module, shards_module, webhooks_module)
    code = "".join(Path(module.__file__).read_text() for module in modules)
    assert set(re.findall(r'QUERIES\["(\w+)"\]', code)) == set(QUERIES)


def test_a_shard_is_claimed_by_one_worker_of_many(jobs: Jobs) -> None:
    job_id, won = plan(jobs, shards=1), []

    def take(name: str) -> None:
        if jobs.shards.claim(job_id, 0, name, LONG_S):
            won.append(name)

    threads = [threading.Thread(target=take, args=(str(n),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert jobs.get(job_id).state == "running"


def test_a_shard_whose_lease_has_ended_goes_to_another_and_the_late_result_is_dropped(
    jobs: Jobs,
) -> None:
    job_id = plan(jobs, shards=1)
    late = claim(jobs, job_id, 0, lease_s=-1)
    assert jobs.shards.free_expired(job_id) == [0]
    second = jobs.shards.claim(job_id, 0, "another", LONG_S)
    assert second is not None
    assert second.attempts == 2
    # The first owner learns that it lost the shard.
    assert jobs.renew_leases({late.owner: 1, second.owner: 1}, (), LONG_S) == {second.owner}
    assert finish(jobs, second, [Failure("0-0.jpg", "decode", "first")])
    assert not finish(jobs, late, [Failure("0-1.jpg", "decode", "late")])
    assert [failure.reason for failure in jobs.failures(job_id)] == ["first"]
    assert jobs.progress(job_id).embedded == 2


def test_a_shard_given_back_costs_no_attempt_and_a_failed_one_does(jobs: Jobs) -> None:
    job_id = plan(jobs, shards=1)
    jobs.shards.release(claim(jobs, job_id, 0), count_attempt=False)
    assert claim(jobs, job_id, 0).attempts == 1
    assert jobs.shards.claim(job_id, 0, "another", LONG_S) is None
    taken = Claim(job_id, 0, "worker-0", 1, [])
    assert jobs.shards.release(taken, count_attempt=True)
    assert not jobs.shards.release(taken, count_attempt=True)
    assert claim(jobs, job_id, 0).attempts == 2


def test_the_window_bounds_what_waits_in_the_queue(jobs: Jobs) -> None:
    job_id = plan(jobs, shards=10)
    assert jobs.shards.next_window(job_id, 4) == [0, 1, 2, 3]
    assert jobs.shards.next_window(job_id, 4) == []
    taken = claim(jobs, job_id, 1)
    assert jobs.shards.next_window(job_id, 4) == []  # running counts, too
    finish(jobs, taken)
    assert jobs.shards.next_window(job_id, 4) == [4]


def test_a_message_that_nobody_took_is_found_again_but_not_at_once(jobs: Jobs) -> None:
    job_id = plan(jobs)
    jobs.shards.next_window(job_id, 2)
    assert jobs.shards.requeue_lost(job_id, older_than_s=60) == []
    time.sleep(0.01)
    assert jobs.shards.requeue_lost(job_id, older_than_s=0.005) == [0, 1]
    with jobs._database.transaction() as tx:  # by a clock that was set back since
        tx.rows(
            "UPDATE shards SET queued_at = queued_at + 7200 WHERE job_id = ? AND n = 0", (job_id,)
        )
    assert jobs.shards.requeue_lost(job_id, older_than_s=60) == [0]


def test_a_merge_is_claimed_once_and_only_when_every_shard_is_done(jobs: Jobs) -> None:
    job_id = plan(jobs, shards=2)
    finish(jobs, claim(jobs, job_id, 0))
    assert not jobs.ready_to_merge(job_id)
    assert jobs.claim_merge(job_id, "me", LONG_S) is None
    finish(jobs, claim(jobs, job_id, 1))
    assert jobs.ready_to_merge(job_id)
    assert jobs.claim_merge(job_id, "me", LONG_S) is not None
    assert jobs.claim_merge(job_id, "me", LONG_S) is None
    assert not jobs.ready_to_merge(job_id)
    jobs.publish(job_id, "v0001")
    assert (jobs.get(job_id).state, jobs.get(job_id).index_version) == ("published", "v0001")
    assert not jobs.fail(job_id, "too late")
    assert not jobs.cancel(job_id)


def test_the_lease_of_a_merge_is_its_owner_s_until_it_ends(jobs: Jobs) -> None:
    job_id = plan(jobs, shards=1)
    finish(jobs, claim(jobs, job_id, 0))
    assert jobs.claim_merge(job_id, "first", -1) is not None
    assert jobs.renew_leases({}, ["first"], -1) == {"first"}
    assert jobs.claim_merge(job_id, "second", LONG_S) is not None
    assert jobs.renew_leases({}, ["first", "second"], LONG_S) == {"second"}
    jobs.cancel(job_id)
    assert jobs.renew_leases({}, ["second"], LONG_S) == set()


def test_a_heartbeat_renews_the_shards_of_several_jobs_and_a_merge(jobs: Jobs) -> None:
    first, second, merging = plan(jobs), plan(jobs), plan(jobs, shards=1)
    finish(jobs, claim(jobs, merging, 0))
    assert jobs.claim_merge(merging, "indexer", LONG_S) is not None
    for job_id, owner in ((first, "a"), (second, "b")):
        assert jobs.shards.claim(job_id, 0, owner, 0.001) is not None
    assert jobs.renew_leases({"a": 1, "b": 2, "gone": 3}, ["indexer"], LONG_S) == {
        *("a", "b", "indexer")
    }
    assert (jobs.progress(first).looked_at, jobs.progress(second).looked_at) == (1, 2)
    assert jobs.shards.free_expired(first) == jobs.shards.free_expired(second) == []


def test_the_list_of_jobs_counts_each_as_its_own_status_does(jobs: Jobs) -> None:
    empty, half, done = plan(jobs, shards=0), plan(jobs, shards=2), plan(jobs, shards=1)
    unlisted = Failure("pipe.jpg", "find", "no file")
    jobs.shards.add(half, [(2, "reuse", [0, 1, 2])], [unlisted], LONG_S)
    finish(jobs, claim(jobs, half, 0), [Failure("0-0.jpg", "read", "x", warning=True)])
    finish(jobs, claim(jobs, done, 0), [Failure("0-0.jpg", "decode", "broken")])
    listed = jobs.list_with_progress()
    assert [job.id for job, _ in listed] == [done, half, empty]
    for job, progress in listed:
        assert progress == jobs.progress(job.id)
    assert listed[1][1] == Progress(
        images=8, looked_at=6, embedded=2, reused=3, skipped=1, warnings=1, shards=3, shards_done=2
    )
    assert [job.id for job, _ in jobs.list_with_progress(limit=1)] == [done]


def test_a_cancelled_job_gives_no_more_work_and_stops_running_work(jobs: Jobs) -> None:
    job_id = plan(jobs)
    running = claim(jobs, job_id, 0)
    assert jobs.cancel(job_id)
    assert jobs.shards.claim(job_id, 1, "w", LONG_S) is None
    assert jobs.renew_leases({running.owner: 1}, (), LONG_S) == set()
    assert not finish(jobs, running)
    assert jobs.open_jobs() == []


def test_an_ended_job_keeps_its_counts_and_drops_its_list_of_images(jobs: Jobs) -> None:
    ended, running = plan(jobs, shards=2), plan(jobs, shards=1)
    finish(jobs, claim(jobs, ended, 0))
    jobs.cancel(ended)
    before = jobs.progress(ended)
    jobs.drop_items()
    assert jobs.progress(ended) == before
    assert all(shard.images == [] for shard in jobs.shards.done(ended))
    assert len(claim(jobs, running, 0).images) == 2


def test_a_plan_whose_writer_died_is_ended_with_a_sentence(jobs: Jobs) -> None:
    job_id = jobs.create(
        Path("/p"),
        full=False,
        save_preprocessed=False,
        fingerprint=None,
        base_version=None,
        lease_s=-1,
    )
    jobs.fail_abandoned_plans()
    assert jobs.get(job_id).state == "failed"
    assert "run it again" in str(jobs.get(job_id).error)


def test_the_first_fingerprint_holds(jobs: Jobs) -> None:
    job_id = plan(jobs, fingerprint=None)
    assert jobs.set_fingerprint(job_id, MODEL).fingerprint == "f1"
    other = Fingerprint("f2", MODEL.description)
    assert jobs.set_fingerprint(job_id, other).fingerprint == "f1"


def test_failures_and_warnings_are_counted_apart_and_hold_any_text(jobs: Jobs) -> None:
    job_id = plan(jobs, shards=1)
    rows = [
        Failure("0-0.jpg", "decode", "broken\0 100% 'quoted' ?"),
        Failure("0-1.jpg", "preprocess", "uncut", warning=True),
        Failure("caf\udce9/2.jpg", "decode", "broken in caf\udce9"),
    ]
    finish(jobs, claim(jobs, job_id, 0), rows)
    progress = jobs.progress(job_id)
    assert (progress.skipped, progress.warnings) == (2, 1)
    stored = {failure.path: failure.reason for failure in jobs.failures(job_id)}
    assert stored["0-0.jpg"] == "broken 100% 'quoted' ?"
    assert stored["caf\\udce9/2.jpg"] == "broken in caf\\udce9"


def test_the_time_of_finished_shards_is_summed_by_stage(jobs: Jobs) -> None:
    job_id = plan(jobs)
    assert jobs.timings(job_id) == StageTimings()
    result = {"file": "f", "sha256": "0", "embedded": 2, "reused": 0, "failures": []}
    timings = StageTimings(read_s=1, decode_s=2, cut_out_s=3, embed_s=4, write_s=0.5)
    first = claim(jobs, job_id, 0)
    jobs.shards.finish(first, **result, timings=timings)
    jobs.shards.finish(first, **result, timings=timings)  # it was done already
    jobs.shards.finish(claim(jobs, job_id, 1), **result, timings=StageTimings(embed_s=1))
    jobs.shards.finish(claim(jobs, job_id, 2), **result)  # by a worker that measures nothing
    assert jobs.timings(job_id) == StageTimings(1, 2, 3, 5, 0.5)
    merge = jobs.claim_merge(job_id, "indexer", LONG_S)
    assert merge is not None
    assert jobs.reopen_shards(merge, [0])
    jobs.shards.finish(claim(jobs, job_id, 0), **result, timings=StageTimings(read_s=7))
    assert jobs.timings(job_id) == StageTimings(read_s=7, embed_s=1)


def test_an_indexer_that_has_lost_its_merge_reopens_no_shard_of_it(jobs: Jobs) -> None:
    job_id = plan(jobs)
    for n in range(3):
        finish(jobs, claim(jobs, job_id, n))
    frozen = jobs.claim_merge(job_id, "frozen", 0.0)
    other = jobs.claim_merge(job_id, "other", LONG_S)
    assert frozen is not None
    assert other is not None
    assert not jobs.reopen_shards(frozen, [1, 2])
    assert [shard.n for shard in jobs.shards.done(job_id)] == [0, 1, 2]
    assert jobs.reopen_shards(other, [1, 2])
    assert [shard.n for shard in jobs.shards.done(job_id)] == [0]
    assert jobs.get(job_id).state == "running"


def test_images_that_run_alone_are_counted_until_they_end(jobs: Jobs) -> None:
    job_id = plan(jobs, shards=1)
    taken = claim(jobs, job_id, 0)
    assert [jobs.shards.mark_started(taken, 1), jobs.shards.mark_started(taken, 1)] == [1, 2]
    jobs.shards.clear_suspect(taken, 1)
    assert jobs.shards.mark_started(taken, 1) == 1


def test_an_unknown_job_is_wrong_use(jobs: Jobs) -> None:
    with pytest.raises(WrongUse, match="no job 'nothing'"):
        jobs.get("nothing")


def test_an_error_rolls_the_transaction_back(database: Database) -> None:
    jobs = Jobs(database)
    job_id = plan(jobs)

    def change_and_fail() -> None:
        with database.transaction() as tx:
            tx.rows("UPDATE jobs SET state = 'failed' WHERE id = ?", (job_id,))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        change_and_fail()
    assert jobs.get(job_id).state == "planned"


def test_a_database_that_is_away_is_a_sentence_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(ServerUnavailable, match="does not answer") as caught:
        Jobs(Database("postgresql://shop:secret@127.0.0.1:9/imgrec")).list_with_progress()
    assert "secret" not in str(caught.value)
    (tmp_path / "file").write_text("no database")
    with pytest.raises(ServerUnavailable, match="not a usable database"):
        Jobs(Database(f"sqlite:///{tmp_path}/file")).list_with_progress()
    with pytest.raises(ServerUnavailable, match="cannot be used: Not a directory"):
        Jobs(Database(f"sqlite:///{tmp_path}/file/app.db")).list_with_progress()


def test_a_process_that_ends_a_transaction_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    """SQLite's last connection empties the log into the file, with two fsyncs: not each of ours."""
    file = tmp_path / "app.db"
    plan(Jobs(Database(f"sqlite:///{file}")))
    assert file.with_name("app.db-wal").stat().st_size > 0


def test_reads_do_not_wait_for_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "app.db"
    url = f"sqlite:///{file}"
    job_id = plan(Jobs(Database(url)))
    monkeypatch.setattr("pipeline.store.sqlite.LOCKED_S", 0.0)
    with closing(sqlite3.connect(file, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        jobs = Jobs(Database(url))  # a new process: it reads the schema's version, too
        assert jobs.get(job_id).state == "planned"
        assert [job.id for job, _ in jobs.list_with_progress()] == [job_id]
        assert jobs.progress(job_id).images == 6
        assert jobs.failures(job_id) == []
        assert [job.id for job in jobs.open_jobs()] == [job_id]
        assert not jobs.ready_to_merge(job_id)
        assert list(jobs.shards.done(job_id)) == []
        assert jobs.referenced_versions() == set()
        with pytest.raises(ServerUnavailable, match="locked"):
            jobs.cancel(job_id)


def test_a_broken_constraint_is_a_bug_and_no_unusable_database(jobs: Jobs) -> None:
    job_id = plan(jobs)
    with pytest.raises((sqlite3.IntegrityError, psycopg.IntegrityError)):
        jobs.shards.add(job_id, [(0, "embed", [])], [], LONG_S)  # there is a shard 0


def test_shards_and_failures_belong_to_a_job(jobs: Jobs) -> None:
    with pytest.raises(PlanLost):
        jobs.shards.add("nobody", [(0, "embed", [])], [], LONG_S)
    of_nobody = (
        "INSERT INTO shards (job_id, n, kind, state, items, images)"
        " VALUES ('nobody', 0, 'embed', 'pending', '[]', 0)",
        "INSERT INTO failures (job_id, n, path, stage, reason)"
        " VALUES ('nobody', 0, 'a.jpg', 'decode', 'broken')",
    )
    for statement in of_nobody:
        with (
            pytest.raises((sqlite3.IntegrityError, psycopg.IntegrityError), match=r"(?i)foreign"),
            jobs.database.transaction() as tx,
        ):
            tx.rows(statement)


def test_a_file_from_before_foreign_keys_were_checked_still_works(tmp_path: Path) -> None:
    file = tmp_path / "app.db"
    jobs = Jobs(Database(f"sqlite:///{file}"))
    job_id = plan(jobs)
    with closing(sqlite3.connect(file)) as old, old:
        old.execute("UPDATE shards SET job_id = 'nobody' WHERE n = 2")
    finish(jobs, claim(jobs, job_id, 0), [Failure("0-0.jpg", "decode", "broken")])
    finish(jobs, claim(jobs, job_id, 1))
    jobs.drop_items()
    assert jobs.claim_merge(job_id, "me", LONG_S) is not None
    jobs.publish(job_id, "v0001")
    assert jobs.get(job_id).state == "published"
    assert [shard.n for shard in jobs.shards.done("nobody")] == []
    assert jobs.progress("nobody").shards == 1
