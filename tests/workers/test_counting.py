"""Nothing is met for ever without counting an attempt: no database error, no death, no loop."""

from __future__ import annotations

import errno
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from inline_worker import InlineWorker
from postgres_server import emptied
from psycopg_pool import PoolTimeout

from pipeline.errors import DatabaseFailed, ServerUnavailable, WrongUse
from pipeline.search.relevance_feedback import LoggedQuery
from pipeline.settings import Settings
from pipeline.store import sqlite as sqlite_module
from pipeline.store.database import Database
from pipeline.store.feedback import FeedbackLog
from pipeline.store.jobs import Jobs
from pipeline.store.postgresql import OUTAGES, is_outage
from workers import reconcile as reconcile_module
from workers.after_error import after_shard_error
from workers.embed import embed
from workers.error_policy import Attempt, Fail, Stage, Wait, decide
from workers.index import merge_shards
from workers.local import run_next
from workers.query_log import QueryLog
from workers.reconcile import reconcile
from workers.routes import EMBED_SHARD, MERGE_SHARDS
from workers.watchdog import Watchdog

# Every class of error that psycopg has for a SQLSTATE of PostgreSQL.
CLASSES = sorted(
    (
        kind
        for kind in vars(psycopg.errors).values()
        if isinstance(kind, type) and issubclass(kind, psycopg.Error) and kind.sqlstate
    ),
    key=lambda kind: str(kind.sqlstate),
)


def attempt(stage: Stage, settings: Settings) -> Attempt:
    return Attempt(stage, "it", settings, number=9, limit=3)


@contextmanager
def raising(backend: Any, error: Exception) -> Iterator[None]:
    """A transaction of PostgreSQL within which a statement raises."""
    with backend.transaction(read_only=False) as tx:
        tx.rows("SELECT 1 AS one")
        raise error
    yield


@pytest.fixture(scope="module")
def backend(postgres: str) -> Any:
    database = Database(emptied(postgres))
    database.revision("x")
    return database._backend


@pytest.mark.parametrize("stage", [Stage.SHARD, Stage.MERGE])
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: f"{kind.sqlstate} {kind.__name__}")
def test_an_error_of_postgresql_ends_a_job_in_the_end_unless_the_server_is_away(
    backend: Any, settings: Settings, stage: Stage, kind: type[psycopg.Error]
) -> None:
    with pytest.raises(Exception) as caught, raising(backend, kind("it happened")):  # noqa: PT011
        pass
    decision = decide(caught.value, attempt(stage, settings))
    if str(kind.sqlstate).startswith(OUTAGES):
        assert isinstance(decision, Wait)
    else:
        assert isinstance(decision, Fail)
        assert "it happened" in decision.reason


def test_the_outages_are_few_and_there() -> None:
    """So that the test above cannot pass by calling everything an outage."""
    outages = [kind for kind in CLASSES if str(kind.sqlstate).startswith(OUTAGES)]
    assert len(CLASSES) > 200
    assert len(outages) < 25
    for needed in ("AdminShutdown", "CannotConnectNow", "TooManyConnections", "ConnectionFailure"):
        assert needed in {kind.__name__ for kind in outages}


@pytest.mark.parametrize(
    ("error", "lost", "outage"),
    [
        (PoolTimeout("busy"), True, True),
        (psycopg.OperationalError("server closed the connection"), True, True),
        (psycopg.InterfaceError("the connection is closed"), True, True),
        # libpq's own refusals on a connection that lives: met again at each attempt.
        (
            psycopg.OperationalError("number of parameters must be between 0 and 65535"),
            False,
            False,
        ),
        (psycopg.InterfaceError("cannot do this now"), False, False),
    ],
)
def test_an_error_without_a_sqlstate_is_an_outage_where_the_connection_is_lost(
    error: psycopg.Error, lost: bool, outage: bool
) -> None:
    assert is_outage(error, lost=lost) is outage


# https://sqlite.org/rescode.html
WAITED_FOR = {"BUSY", "LOCKED", "PROTOCOL", "CANTOPEN", "IOERR", "FULL", "READONLY", "PERM", "AUTH"}
WAITED_FOR |= {"NOLFS", "CORRUPT", "NOTADB"}
PRIMARY_CODES = (
    *("ERROR", "INTERNAL", "PERM", "ABORT", "BUSY", "LOCKED", "NOMEM", "READONLY", "INTERRUPT"),
    *("IOERR", "CORRUPT", "NOTFOUND", "FULL", "CANTOPEN", "PROTOCOL", "SCHEMA", "TOOBIG"),
    *("CONSTRAINT", "MISMATCH", "MISUSE", "NOLFS", "AUTH", "RANGE", "NOTADB"),
)


def sqlite_error(name: str) -> sqlite3.Error:
    kind = sqlite3.DatabaseError if name in ("CORRUPT", "NOTADB") else sqlite3.OperationalError
    error = kind("it happened")
    error.sqlite_errorcode = getattr(sqlite3, f"SQLITE_{name}")
    return error


@pytest.mark.parametrize("name", PRIMARY_CODES)
def test_an_error_of_sqlite_ends_a_job_in_the_end_unless_the_file_is_away(
    settings: Settings, name: str
) -> None:
    backend = sqlite_module.Sqlite(settings.data_dir / "app.db")
    with pytest.raises(Exception) as caught, backend.transaction(read_only=True):  # noqa: PT011
        raise sqlite_error(name)
    decision = decide(caught.value, attempt(Stage.SHARD, settings))
    assert isinstance(decision, Wait if name in WAITED_FOR else Fail)


def test_an_extended_code_counts_as_its_primary_one(settings: Settings) -> None:
    backend = sqlite_module.Sqlite(settings.data_dir / "app.db")
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
    with pytest.raises(ServerUnavailable), backend.transaction(read_only=True):
        raise error


def test_a_table_that_is_gone_is_no_outage_and_the_schema_is_made_anew(database_url: str) -> None:
    """The file was deleted and made again, or the database dropped, under a running worker."""
    database = Database(database_url)
    jobs = Jobs(database)
    assert jobs.open_jobs() == []
    with database.transaction() as tx:
        for row in tx.rows(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
            if database_url.startswith("sqlite")
            else "SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public'"
        ):
            cascade = "" if database_url.startswith("sqlite") else " CASCADE"
            tx.rows(f"DROP TABLE IF EXISTS {row['name']}{cascade}")
    with pytest.raises(DatabaseFailed, match=r"cannot do this: .*jobs"):
        jobs.open_jobs()
    assert jobs.open_jobs() == []


UNSTORABLE = {
    "NUL": "broken\0file",
    "half a surrogate pair": "shoe-\udcff.jpg",
    "another script": "鞋.jpg",
}


@pytest.mark.parametrize("text", UNSTORABLE.values(), ids=UNSTORABLE)
def test_a_reason_of_any_characters_ends_a_job_and_is_told(database_url: str, text: str) -> None:
    jobs = Jobs(Database(database_url))
    job_id = create(jobs)
    jobs.set_waiting_reason(job_id, text)
    assert jobs.get(job_id).error
    jobs.add_refusal(job_id, "host:1", text, 60)
    assert jobs.fail(job_id, text)
    assert "file" in str(jobs.get(job_id).error) or "jpg" in str(jobs.get(job_id).error)
    other = create(jobs)
    assert jobs.fail_refused(other, text)
    assert jobs.get(other).state == "failed"


def create(jobs: Jobs) -> str:
    return jobs.create(
        Path("/products"),
        full=False,
        save_preprocessed=False,
        fingerprint=None,
        base_version=None,
        lease_s=600,
    )


def embedded(inline_worker: InlineWorker) -> str:
    """A job whose shards are all done."""
    job_id = inline_worker.toy.plan()
    inline_worker.toy.embed(job_id)
    return job_id


def test_a_merge_whose_worker_dies_again_and_again_ends_the_job(
    inline_worker: InlineWorker,
) -> None:
    inline_worker.start_again(shard_max_attempts=2)
    job_id = embedded(inline_worker)
    for _ in range(3):
        assert (
            inline_worker.resources.jobs.claim_merge(job_id, "a worker that dies", -1) is not None
        )
    merge_shards(inline_worker.resources, job_id)
    job = inline_worker.job(job_id)
    assert job.state == "failed"
    assert "was begun 3 times and never ended: its worker died each time" in str(job.error)
    assert "WORKER_MAX_MEMORY" in str(job.error)


def test_a_merge_that_waits_or_is_given_back_counts_no_attempt(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = embedded(inline_worker)
    inline_worker.resources.stopping.set()
    for _ in range(9):
        merge_shards(inline_worker.resources, job_id)
    inline_worker.resources.stopping.clear()
    merge_shards(inline_worker.resources, job_id)
    assert inline_worker.job(job_id).state == "published"


def test_shard_files_that_vanish_each_time_end_the_job(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embed and index workers with two data folders would make the shards again for ever."""
    job_id = inline_worker.toy.plan()
    inline_worker.advance(job_id)
    for _ in range(100):
        if inline_worker.messages and inline_worker.messages[0][0] == MERGE_SHARDS:
            for file in inline_worker.toy.settings.jobs_dir.rglob("*.npz"):
                file.unlink()
        run_next(inline_worker.resources, inline_worker)
    assert inline_worker.job(job_id).state == "failed"
    assert "must share DATA_DIR" in str(inline_worker.job(job_id).error)


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


ERRORS = [DatabaseFailed("A statement timed out."), ValueError("a broken row"), MemoryError()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_fails_before_a_shard_is_claimed_ends_a_job_that_nobody_can_do(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    job_id = inline_worker.toy.plan()
    monkeypatch.setattr(inline_worker.resources.jobs, "get", failing(error))
    embed(inline_worker.resources, job_id, 0)
    monkeypatch.undo()
    job = inline_worker.job(job_id)
    assert job.state == "failed"
    assert "cannot do this job" in str(job.error)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_fails_before_a_merge_is_claimed_ends_a_job_that_nobody_can_do(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    job_id = embedded(inline_worker)
    monkeypatch.setattr(inline_worker.resources.jobs, "claim_merge", failing(error))
    merge_shards(inline_worker.resources, job_id)
    monkeypatch.undo()
    assert inline_worker.job(job_id).state == "failed"


@pytest.mark.parametrize("error", ERRORS[:2], ids=lambda error: type(error).__name__)
def test_what_fails_when_a_merge_is_recorded_is_counted(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    job_id = embedded(inline_worker)
    monkeypatch.setattr(inline_worker.resources.jobs, "publish", failing(error))
    for _ in range(inline_worker.resources.settings.shard_max_attempts + 2):
        merge_shards(inline_worker.resources, job_id)
    monkeypatch.undo()
    assert inline_worker.job(job_id).state == "failed"


@pytest.mark.parametrize("error", ERRORS[:2], ids=lambda error: type(error).__name__)
def test_what_fails_when_a_shard_is_recorded_is_counted(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    job_id = inline_worker.toy.plan()
    monkeypatch.setattr(inline_worker.resources.jobs.shards, "finish", failing(error))
    for _ in range(inline_worker.resources.settings.shard_max_attempts + 2):
        embed(inline_worker.resources, job_id, 0)
    monkeypatch.undo()
    job = inline_worker.job(job_id)
    assert job.state == "failed"
    assert "failed in 4 attempts" in str(job.error)


@pytest.mark.parametrize("step", ["shards.finish", "shards.done"])
def test_a_database_that_is_away_counts_no_attempt_of_a_shard_or_a_merge(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr("workers.outage.RETRY_S", 0.0)
    monkeypatch.setattr("workers.index.PAUSE", 0.0)
    jobs, away = inline_worker.resources.jobs, ServerUnavailable("It is away.")
    work = embed if step == "shards.finish" else lambda resources, *_: merge_shards(resources, job)
    job = inline_worker.toy.plan() if step == "shards.finish" else embedded(inline_worker)
    for _ in range(2 * inline_worker.resources.settings.shard_max_attempts):
        with monkeypatch.context() as patch:
            patch.setattr(jobs.shards, step.removeprefix("shards."), failing(away))
            for target, name in ((jobs.shards, "release"), (jobs, "release_merge")):
                fail_at_first(patch, target, name, [away, away])
            work(inline_worker.resources, job, 0)
        assert inline_worker.job(job).error == "It is away."
    inline_worker.advance(job)
    inline_worker.work()
    assert inline_worker.job(job).state == "published"


def test_a_worker_that_has_lost_its_shard_ends_no_job_with_its_error(
    inline_worker: InlineWorker,
) -> None:
    resources, job_id = inline_worker.resources, inline_worker.toy.plan()
    claims = [resources.jobs.shards.claim(job_id, 0, f"frozen-{n}", 0.0) for n in range(9)]
    assert resources.jobs.shards.claim(job_id, 0, "other", 600.0) is not None
    error = OSError(errno.ESTALE, "Stale file handle")
    after_shard_error(resources, EMBED_SHARD, job_id, 0, claims[-1], error)
    assert inline_worker.job(job_id).open


def test_an_indexer_that_has_lost_its_merge_ends_no_job_with_its_error(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = embedded(inline_worker)

    def frozen(*args: object, **options: object) -> None:
        with inline_worker.resources.database.transaction() as tx:
            tx.rows("UPDATE jobs SET lease_until = 0")
        assert inline_worker.resources.jobs.claim_merge(job_id, "other", 600.0) is not None
        raise ValueError("a broken row")

    monkeypatch.setattr("workers.index.merge", frozen)
    merge_shards(inline_worker.resources, job_id)
    assert inline_worker.job(job_id).open


def fail_at_first(
    monkeypatch: pytest.MonkeyPatch, target: Any, name: str, errors: list[Exception]
) -> None:
    call = getattr(target, name)

    def run(*args: object, **options: object) -> object:
        if errors:
            raise errors.pop()
        return call(*args, **options)

    monkeypatch.setattr(target, name, run)


def test_a_job_that_cannot_be_looked_after_ends_and_keeps_none_from_another(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken, good = inline_worker.toy.plan(), inline_worker.toy.plan()
    look_after = reconcile_module._look_after

    def look(resources: Any, job: Any) -> None:
        if job.id == broken:
            raise ValueError("a broken row")
        look_after(resources, job)

    monkeypatch.setattr(reconcile_module, "_look_after", look)
    for _ in range(reconcile_module.MAX_FAILED_LOOKS + 1):
        assert inline_worker.job(broken).open
        reconcile(inline_worker.resources)
    assert {args[0] for _, args in inline_worker.messages} == {good}
    assert inline_worker.job(broken).state == "failed"
    assert "ValueError: a broken row" in str(inline_worker.job(broken).error)


def test_a_database_that_is_away_counts_no_look(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = inline_worker.toy.plan()
    away = failing(ServerUnavailable("It is away."))
    monkeypatch.setattr(reconcile_module, "_look_after", away)
    for _ in range(30):
        with pytest.raises(ServerUnavailable):
            reconcile(inline_worker.resources)
    assert inline_worker.job(job_id).open


def test_a_row_that_the_query_log_cannot_hold_keeps_no_other_from_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    log = FeedbackLog(Database(settings.database_url))
    queries = QueryLog(log, 90, Watchdog(), 600)
    logged = LoggedQuery(
        "id", time.time(), "", "v0001", "f", (("p", 0.5),), np.zeros(3, np.float32)
    )
    monkeypatch.setattr(log, "put_queries", failing(DatabaseFailed("It cannot hold this.")))
    queries._waiting.append(logged)
    with pytest.raises(DatabaseFailed):
        queries.flush()
    monkeypatch.undo()
    queries._waiting.append(logged)
    queries.flush()
    assert [each.query_id for each in log.queries()] == ["id"]


def test_wrong_use_is_no_outage(settings: Settings) -> None:
    assert isinstance(decide(WrongUse("x"), attempt(Stage.SHARD, settings)), Fail)
