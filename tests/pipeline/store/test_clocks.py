"""Hosts whose clocks differ lose no lease, and order comes from the job table."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from live_stack import until
from postgres_server import emptied
from toy_pipeline import ToyPipeline

from pipeline.settings import Settings
from pipeline.store.database import Database
from pipeline.store.jobs import Jobs
from pipeline.store.shards import Claim
from workers.lease import Leases
from workers.watchdog import Watchdog

LEASE_S = 30.0
# Another host whose clock is wrong by argv[1] seconds: its process knows no other time.
HOST = """
import json, sys, time
right = time.time
time.time = lambda: right() + float(sys.argv[1])
from pipeline.store.database import Database
from pipeline.store.jobs import Jobs
jobs = Jobs(Database(sys.argv[2]))
for line in sys.stdin:
    print(json.dumps(eval(line)), flush=True)
"""


class Host:
    """A process whose clock is wrong; `run` evaluates an expression about `jobs` there."""

    def __init__(self, wrong_s: float, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", HOST, str(wrong_s), url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, expression: str) -> object:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(expression + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate(timeout=30)


@pytest.fixture
def url(postgres: str) -> str:
    return emptied(postgres)


def create(jobs: Jobs, lease_s: float = 600) -> str:
    return jobs.create(
        Path("/products"),
        full=False,
        save_preprocessed=False,
        fingerprint=None,
        base_version=None,
        lease_s=lease_s,
    )


@pytest.mark.parametrize("wrong_s", [3600, -3600])
def test_a_host_whose_clock_differs_by_an_hour_takes_no_lease_and_gives_real_ones(
    url: str, wrong_s: float
) -> None:
    jobs = Jobs(Database(url))
    job_id = create(jobs)
    jobs.shards.add(job_id, [(n, "embed", [["a.jpg", 1, 1]]) for n in range(3)], [], 600)
    other = Host(wrong_s, url)
    try:
        other.run("jobs.fail_abandoned_plans()")
        assert jobs.get(job_id).open
        jobs.finish_plan(job_id)
        mine = jobs.shards.claim(job_id, 0, "mine", LEASE_S)
        assert mine is not None
        assert other.run(f"jobs.shards.free_expired('{job_id}')") == []
        assert other.run(f"jobs.shards.claim('{job_id}', 0, 'theirs', 30) is None")
        assert jobs.renew_leases({"mine": 1}, (), LEASE_S) == {"mine"}
        # A message that was sent a moment ago is lost for nobody.
        assert jobs.shards.next_window(job_id, 2) == [1]
        assert other.run(f"jobs.shards.requeue_lost('{job_id}', 60)") == []
        # Their lease of 30 s is respected here, and one that has ended is not.
        assert other.run(f"jobs.shards.claim('{job_id}', 1, 'theirs', 30) is not None")
        assert jobs.shards.free_expired(job_id) == []
        assert other.run(f"jobs.shards.claim('{job_id}', 2, 'dead', -1) is not None")
        assert jobs.shards.free_expired(job_id) == [2]
        assert jobs.get(job_id).seconds < 600
        again = jobs.shards.claim(job_id, 2, "again", LEASE_S)
        assert again is not None
        for claim in (mine, Claim(job_id, 1, "theirs", 1, []), again):
            jobs.shards.finish(claim, file="f", sha256="0", embedded=1, reused=0, failures=[])
        assert other.run(f"jobs.claim_merge('{job_id}', 'theirs', 30) is not None")
        assert not jobs.ready_to_merge(job_id)
        assert jobs.claim_merge(job_id, "mine", LEASE_S) is None
    finally:
        other.close()


def test_a_worker_beside_a_reconciler_an_hour_ahead_keeps_its_shard(url: str) -> None:
    jobs = Jobs(Database(url))
    job_id = create(jobs)
    jobs.shards.add(job_id, [(0, "embed", [["a.jpg", 1, 1]])], [], 600)
    jobs.finish_plan(job_id)
    leases = Leases(jobs, LEASE_S, 100, threading.Event(), Watchdog())
    claim = jobs.shards.claim(job_id, 0, "mine", LEASE_S)
    assert claim is not None
    other = Host(3600, url)
    try:
        with leases.hold(claim) as lease:
            lease.check(3)
            until(
                lambda: (
                    other.run(f"jobs.shards.free_expired('{job_id}')") == []
                    and jobs.progress(job_id).looked_at == 3
                ),
                "a heartbeat beside the reconciler",
                30,
            )
            assert not lease.lost
    finally:
        other.close()


def test_jobs_are_ordered_by_their_creation_and_not_by_their_times(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(Database(database_url))
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: 4e9)  # what SQLite takes for the time
        first = create(jobs)
    second, third = create(jobs), create(jobs)
    assert [job.id for job, _ in jobs.list_with_progress()] == [third, second, first]
    assert [job.id for job in jobs.open_jobs()] == [first, second, third]
    assert jobs.created_after(first) == {second: None, third: None}
    assert jobs.created_after(third) == {}


def test_a_rebuild_after_one_by_a_clock_that_was_ahead_is_published(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = ToyPipeline(settings, tmp_path)
    toy.draw("a.png", 1)
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: 4e9)
        assert toy.rebuild()[0] == "v0001"
    toy.draw("b.png", 2)
    assert toy.rebuild()[0] == "v0002"
    assert toy.versions.current_name() == "v0002"


def test_versions_whose_jobs_are_in_no_job_table_hide_nothing(
    settings: Settings, tmp_path: Path
) -> None:
    """A new database beside an old index: its sequence begins at one again."""
    (tmp_path / "old").mkdir()
    old = ToyPipeline(settings, tmp_path / "old")
    old.draw("a.png", 1)
    assert [old.rebuild(full=True)[0] for _ in range(3)][-1] == "v0003"
    for file in settings.data_dir.glob("app.db*"):
        file.unlink()
    (tmp_path / "new").mkdir()
    new = ToyPipeline(settings, tmp_path / "new")
    new.draw("b.png", 2)
    assert new.rebuild()[0] == "v0004"


def test_a_clock_that_is_set_back_makes_no_negative_duration(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/app.db")
    jobs = Jobs(database)
    job_id = create(jobs)
    with database.transaction() as tx:
        tx.rows("UPDATE jobs SET created_at = created_at + 7200", ())
    assert jobs.get(job_id).seconds == 0
