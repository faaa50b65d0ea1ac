"""A command or a worker whose clock is hours off does its work."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.classify.head import Head, HeadName
from pipeline.classify.head_store import load_head, save_head
from pipeline.search.relevance_feedback import LoggedQuery
from pipeline.settings import Settings
from pipeline.store.database import Database
from pipeline.store.feedback import FeedbackLog
from pipeline.store.heartbeat import STALE_S, Heartbeat, HeartbeatStatus, read_heartbeats
from pipeline.store.jobs import Jobs
from pipeline.store.redis_client import ASK_TIME_S, ServerClock
from workers.query_messages import query_message
from workers.transport import Transport

DAY_S = 86_400.0
TWO_DAYS = pytest.mark.parametrize("wrong_s", [-2 * DAY_S, -7200.0, 7200.0, 2 * DAY_S])


def set_clock(monkeypatch: pytest.MonkeyPatch, wrong_s: float) -> None:
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + wrong_s)


@TWO_DAYS
def test_a_query_expires_by_redis_s_clock_on_a_worker_of_any_clock(
    monkeypatch: pytest.MonkeyPatch, wrong_s: float
) -> None:
    right = time.time()
    message: dict[str, Any] = {
        "headers": {"expires": datetime.fromtimestamp(right + 3660, UTC).isoformat()}
    }
    set_clock(monkeypatch, wrong_s)
    client = SimpleNamespace(time=lambda: (int(right), 0))
    transport = SimpleNamespace(channels=[SimpleNamespace(client=client)])
    Transport._expire_by_redis(transport, message)  # type: ignore[arg-type]
    ends = datetime.fromisoformat(message["headers"]["expires"])
    mine = datetime.fromtimestamp(time.time(), UTC)
    assert timedelta(minutes=59) < ends - mine < timedelta(minutes=62)


def test_a_message_says_its_end_by_the_time_that_it_is_given() -> None:
    message = query_message("imgrec.query_image", "id", (), 60.0, 1_000_000.0)
    assert '"expires": "1970-01-12T13:47:40+00:00"' in message


def test_redis_s_time_goes_on_between_two_questions_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ServerClock()
    assert clock.now() is None
    assert clock.set(1_000_000.0) == 1_000_000.0
    set_clock(monkeypatch, 7200.0)  # of this host
    now = clock.now()
    assert now is not None
    assert 0 <= now - 1_000_000.0 < ASK_TIME_S
    right = time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda which: right(which) + 3600)  # it slept
    assert clock.now() is None
    monkeypatch.delattr(time, "CLOCK_BOOTTIME")
    clock.set(1_000_000.0)
    assert clock.now() is None


def logged(query_id: str) -> LoggedQuery:
    vector = np.zeros(3, np.float32)
    return LoggedQuery(query_id, time.time(), "", "v0001", "kind", (("p", 0.5),), vector)


@TWO_DAYS
def test_a_worker_of_a_wrong_clock_neither_loses_the_query_log_nor_confuses_its_order(
    database: Database, monkeypatch: pytest.MonkeyPatch, wrong_s: float
) -> None:
    log = FeedbackLog(database)
    log.put_queries([logged("before")])
    with monkeypatch.context() as patch:
        set_clock(patch, wrong_s)
        log.forget_queries(days=1)
        log.put_queries([logged("by the wrong clock")])
    log.put_queries([logged("after")])
    queries = log.queries()
    assert {query.query_id for query in queries} == {"before", "by the wrong clock", "after"}
    assert all(abs(query.asked_at - time.time()) < 30 for query in queries)
    assert abs(log.now() - time.time()) < 5


@TWO_DAYS
def test_a_head_that_is_trained_again_is_the_newer_one_whatever_the_clock_says(
    tmp_path: Path, wrong_s: float
) -> None:
    name = HeadName.parse("shoe", "color")

    def head(*classes: str) -> Head:
        weight, bias = np.zeros((2, 3), np.float32), np.zeros(2, np.float32)
        return Head(weight, bias, 1.0, classes, "kind", "kind", 1.0, 9)

    import pipeline.classify.head_store as module

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(seconds=wrong_s)

    original = module.datetime
    try:
        module.datetime = Wrong  # type: ignore[misc]
        first = save_head(tmp_path, name, head("red", "blue"), b"")
    finally:
        module.datetime = original  # type: ignore[misc]
    second = save_head(tmp_path, name, head("green", "blue"), b"")
    assert second.trained_at > first.trained_at
    assert load_head(tmp_path, name).classes == ("green", "blue")


def create(jobs: Jobs) -> str:
    return jobs.create(
        Path("/products"),
        full=False,
        save_preprocessed=False,
        fingerprint=None,
        base_version=None,
        lease_s=600,
    )


def test_a_lease_from_before_the_database_s_clock_was_set_back_holds_nothing_up(
    database: Database,
) -> None:
    """A machine was two days ahead, its worker died, and its clock was set right."""
    jobs = Jobs(database)
    job_id = create(jobs)
    jobs.shards.add(job_id, [(0, "embed", [["a.jpg", 1, 1]])], [], 600)
    jobs.finish_plan(job_id)
    assert jobs.shards.claim(job_id, 0, "dead", 2 * DAY_S) is not None
    assert jobs.shards.free_expired(job_id) == [0]
    claim = jobs.shards.claim(job_id, 0, "dead again", 2 * DAY_S)
    assert claim is not None
    assert jobs.shards.claim(job_id, 0, "another", 60) is not None
    assert jobs.shards.free_expired(job_id) == []  # a lease of today holds


def test_a_merge_and_a_plan_from_before_the_clock_was_set_back_hold_nothing_up(
    database: Database,
) -> None:
    jobs = Jobs(database)
    job_id = create(jobs)
    jobs.finish_plan(job_id)
    assert jobs.claim_merge(job_id, "dead", 2 * DAY_S) is not None
    assert jobs.ready_to_merge(job_id)
    assert jobs.claim_merge(job_id, "another", 60) is not None
    assert not jobs.ready_to_merge(job_id)
    planning = create(jobs)
    with database.transaction() as tx:
        tx.rows("UPDATE jobs SET lease_until = now_s() + ? WHERE id = ?", (2 * DAY_S, planning))
    jobs.fail_abandoned_plans()
    assert jobs.get(planning).state == "failed"


@TWO_DAYS
def test_processes_that_share_a_file_share_the_kernel_s_clock(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, wrong_s: float
) -> None:
    log = FeedbackLog(Database(settings.database_url))
    right = time.time()
    set_clock(monkeypatch, wrong_s)
    assert abs(log.now() - right) < 5


def test_a_heartbeat_from_the_future_is_told_and_a_living_worker_corrects_it(
    tmp_path: Path,
) -> None:
    heartbeat = Heartbeat(tmp_path, "embed@here")
    heartbeat.beat("ready", "")
    file = tmp_path / "embed@here.alive"
    ahead = time.time() + DAY_S
    os.utime(file, (ahead, ahead))  # the clock is set back by a day now
    status = HeartbeatStatus("embed@here", time.time() - file.stat().st_mtime, "ready", "")
    assert "in the future: the clock was set back" in status.problem
    heartbeat.beat("ready", "")
    assert abs(time.time() - file.stat().st_mtime) < STALE_S
    heartbeat.end()


def test_a_heartbeat_of_a_dead_clock_is_read_as_such(tmp_path: Path) -> None:
    file = tmp_path / "embed@here.alive"
    file.write_text("ready")
    ahead = time.time() + DAY_S
    os.utime(file, (ahead, ahead))
    (status,) = read_heartbeats(tmp_path, "here")
    assert "clock was set back" in status.problem
    soon = time.time() + 3
    os.utime(file, (soon, soon))
    (status,) = read_heartbeats(tmp_path, "here")
    assert status.problem == ""


@pytest.mark.parametrize(("code", "words"), [(9, "certificate is not yet valid"), (10, "expired")])
def test_a_certificate_that_is_not_valid_now_names_the_clock(code: int, words: str) -> None:
    import ssl

    from pipeline.store.redis_client import trouble

    error = ssl.SSLCertVerificationError(1, words)
    error.verify_code, error.verify_message = code, words
    sentence = str(trouble("rediss://:secret@h:6379/0", error))
    assert words in sentence
    assert f"the clock of this machine says {time.strftime('%Y-')}" in sentence
    assert "secret" not in sentence


def test_a_certificate_of_postgresql_that_is_not_valid_now_names_the_clock() -> None:
    import psycopg

    from pipeline.store.postgresql import _why

    error = psycopg.OperationalError(
        "SSL error: certificate verify failed: certificate has expired"
    )
    assert "the clock of this machine says" in _why("postgresql://h/n", error)
