"""An old database goes on working, and so do workers of the last release beside the new ones."""

from __future__ import annotations

import json
import time

import pytest

from pipeline.store import database as database_module
from pipeline.store.database import Database
from pipeline.store.jobs import Jobs

LAST_RELEASE = 3  # its schema version


@pytest.fixture
def old(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Database:
    """A database as the last release made and left it, opened by a worker of that release."""
    sections = database_module._sections()
    with monkeypatch.context() as patch:
        patch.setattr(
            database_module,
            "_sections",
            lambda: sections[:LAST_RELEASE],
        )
        database = Database(database_url)
        add_job(database, "20260101-000000-aaaa", created_at=4e9, state="running")
        add_job(database, "20260102-000000-bbbb", created_at=1e9, state="published")
        add_shard(database, "20260101-000000-aaaa", 0)
        add_shard(database, "20260101-000000-aaaa", 1)
        take(database, "20260101-000000-aaaa", 0, "old-worker", until=time.time() + 60)
    return database


# The statements of the last release.


def add_job(database: Database, job_id: str, created_at: float, state: str = "planned") -> None:
    options = json.dumps({"full": False, "save_preprocessed": False})
    with database.transaction() as tx:
        tx.rows(
            "INSERT INTO jobs (id, root, state, options, fingerprint, fingerprint_summary,"
            " base_version, lease_until, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (job_id, "/p", state, options, None, None, None, 0.0, created_at),
        )
        tx.rows(
            "UPDATE jobs SET plan_done = 1, finished_at = CASE WHEN state = 'published' THEN 2e9"
            " END WHERE id = ?",
            (job_id,),
        )


def add_shard(database: Database, job_id: str, n: int) -> None:
    items = json.dumps([["a.jpg", 1, 1], ["b.jpg", 1, 1]])
    with database.transaction() as tx:
        tx.many(
            "INSERT INTO shards (job_id, n, kind, state, items, images, progress, reused)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(job_id, n, "embed", "pending", items, 2, 0, 0)],
        )


def take(database: Database, job_id: str, n: int, owner: str, until: float) -> None:
    with database.transaction() as tx:
        assert tx.rows(
            "UPDATE shards SET state = 'running', owner = ?, lease_until = ?,"
            " attempts = attempts + 1, progress = 0 WHERE job_id = ? AND n = ?"
            " AND state IN ('pending', 'queued') RETURNING items, attempts",
            (owner, until, job_id, n),
        )


def renew(database: Database, job_id: str, n: int, owner: str) -> bool:
    with database.transaction() as tx:
        return bool(
            tx.rows(
                "UPDATE shards SET lease_until = ?, progress = ? WHERE job_id = ? AND n = ?"
                " AND state = 'running' AND owner = ? AND (SELECT state FROM jobs WHERE id = ?)"
                " IN ('planned', 'running', 'merging') RETURNING n",
                (time.time() + 60, 1, job_id, n, owner, job_id),
            )
        )


def finish(database: Database, job_id: str, n: int) -> bool:
    with database.transaction() as tx:
        return bool(
            tx.rows(
                "UPDATE shards SET state = 'done', progress = images, file = ?, sha256 = ?,"
                " embedded = ?, reused = ?, lease_until = 0 WHERE job_id = ? AND n = ?"
                " AND state <> 'done' AND (SELECT state FROM jobs WHERE id = ?)"
                " IN ('planned', 'running', 'merging') RETURNING n",
                ("f", "0", 2, 0, job_id, n, job_id),
            )
        )


def test_jobs_of_the_last_release_keep_their_order_and_go_on(
    old: Database, database_url: str
) -> None:
    jobs = Jobs(Database(database_url))
    running, published = "20260101-000000-aaaa", "20260102-000000-bbbb"
    assert [job.id for job, _ in jobs.list_with_progress()] == [running, published]
    assert [job.id for job in jobs.open_jobs()] == [running]
    assert jobs.shards.free_expired(running) == []
    claim = jobs.shards.claim(running, 1, "new-worker", 60)
    assert claim is not None
    assert renew(old, running, 0, "old-worker")
    assert jobs.renew_leases({"new-worker": 1}, (), 60) == {"new-worker"}
    assert finish(old, running, 0)
    jobs.shards.finish(claim, file="g", sha256="1", embedded=2, reused=0, failures=[])
    assert jobs.claim_merge(running, "indexer", 60) is not None


def test_a_job_that_the_last_release_adds_to_the_new_schema_is_a_job_like_any_other(
    old: Database, database_url: str
) -> None:
    jobs = Jobs(Database(database_url))
    jobs.open_jobs()  # the schema is migrated
    add_job(old, "20260103-000000-cccc", created_at=4.5e9)
    add_shard(old, "20260103-000000-cccc", 0)
    take(old, "20260103-000000-cccc", 0, "old-worker", until=time.time() + 60)
    assert [job.id for job in jobs.open_jobs()] == ["20260103-000000-cccc", "20260101-000000-aaaa"]
    assert jobs.created_after("20260101-000000-aaaa").keys() == {"20260103-000000-cccc"}
    assert jobs.created_after("20260103-000000-cccc") == {}
    assert finish(old, "20260103-000000-cccc", 0)
    assert jobs.claim_merge("20260103-000000-cccc", "indexer", 60) is not None
