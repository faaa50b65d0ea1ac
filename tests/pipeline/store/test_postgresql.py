"""Connections to PostgreSQL are kept, and outlive restarts, forks and pools in front of it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from catalogue_files import import_text
from live_stack import free_port, until
from postgres_server import Postgres

from pipeline.errors import DatabaseFailed, ServerUnavailable, WrongUse
from pipeline.images.failure import Failure
from pipeline.index.live_changes import AddedImage
from pipeline.index.versions import Version
from pipeline.store import catalogue_import, postgresql
from pipeline.store import jobs as jobs_module
from pipeline.store.database import Database
from pipeline.store.job import MergeClaim
from pipeline.store.jobs import Jobs
from pipeline.store.live_changes import LiveChanges
from pipeline.store.products import Products
from pipeline.store.queries import QUERIES


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    server = Postgres()
    server.admin("CREATE USER shop PASSWORD 'secret'")
    server.admin("CREATE DATABASE shop OWNER shop ENCODING 'UTF8' TEMPLATE template0")
    server.admin(
        "CREATE DATABASE western OWNER shop ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'"
        " TEMPLATE template0"
    )
    yield server
    server.close()


@pytest.fixture
def url(server: Postgres) -> str:
    for name in ("shop", "western"):
        server.admin("DROP SCHEMA IF EXISTS public CASCADE", name)
        server.admin("CREATE SCHEMA public AUTHORIZATION shop", name)
    return f"postgresql://shop:secret@127.0.0.1:{server.port}/shop"


def western(url: str) -> str:
    return f"{url.removesuffix('/shop')}/western"


def create(database: Database) -> str:
    return Jobs(database).create(
        Path("/p"),
        full=False,
        save_preprocessed=False,
        fingerprint=None,
        base_version=None,
        lease_s=600,
    )


def sessions(server: Postgres) -> int:
    ((count,),) = server.admin("SELECT COUNT(*) FROM pg_stat_activity WHERE usename = 'shop'")
    assert isinstance(count, int)
    return count


def test_a_connection_is_used_again_and_threads_share_a_few(server: Postgres, url: str) -> None:
    database = Database(url)
    seen: set[int] = set()
    most = 0

    def work() -> None:
        nonlocal most
        for _ in range(10):
            with database.transaction() as tx:
                seen.add(tx.rows("SELECT pg_backend_pid() AS pid")[0]["pid"])
        most = max(most, sessions(server))

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) <= postgresql.POOL_SIZE
    assert most <= postgresql.POOL_SIZE


def test_a_server_that_restarts_is_found_again(server: Postgres, url: str) -> None:
    database = Database(url)
    job_id = create(database)
    server.stop("immediate")
    with pytest.raises(ServerUnavailable, match="does not answer"):
        Jobs(database).get(job_id)
    server.start()
    assert Jobs(database).get(job_id).open
    server.stop("fast")  # while the connection rests in the pool
    server.start()
    assert Jobs(database).get(job_id).open


def test_a_server_that_hangs_is_told_and_used_when_it_goes_on(server: Postgres, url: str) -> None:
    database = Database(url)
    job_id = create(database)
    server.freeze()
    try:
        with pytest.raises(ServerUnavailable, match="does not answer"):
            Jobs(database).get(job_id)
    finally:
        server.thaw()
    assert Jobs(database).get(job_id).open


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("secret", "wrong"), "refuses the login .password authentication failed for user"),
        (("shop", "none"), "refuses the login .database .none. does not exist"),
        (("127.0.0.1:", "127.0.0.1:1"), "does not answer"),
    ],
)
def test_the_reason_is_told_at_once_and_not_after_the_wait_for_a_connection(
    url: str, monkeypatch: pytest.MonkeyPatch, change: tuple[str, str], reason: str
) -> None:
    monkeypatch.setattr(postgresql, "WAIT_S", 1e9)
    if change[0] == "127.0.0.1:":
        url = f"postgresql://shop:secret@127.0.0.1:{free_port()}/shop"
    else:
        url = url.replace(*change) if change[0] == "secret" else f"{url.removesuffix('/shop')}/none"
    database = Database(url)
    for _ in range(2):
        with pytest.raises(ServerUnavailable, match=reason) as caught:
            Jobs(database).open_jobs()
        assert "secret" not in str(caught.value)
        assert "pool" not in str(caught.value)


def test_more_threads_than_connections_wait_and_then_say_so(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(url)
    create(database)
    release, inside = threading.Event(), threading.Semaphore(0)

    def hold() -> None:
        with database.transaction():
            inside.release()
            release.wait(30)

    threads = [threading.Thread(target=hold) for _ in range(postgresql.POOL_SIZE)]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:
            assert inside.acquire(timeout=30)
        monkeypatch.setattr(postgresql, "WAIT_S", 0.1)
        with pytest.raises(ServerUnavailable, match=r"all 4 connections .* in use"):
            Jobs(database).open_jobs()
    finally:
        release.set()
        for thread in threads:
            thread.join()
    assert len(Jobs(database).open_jobs()) == 1


def test_no_prepared_statement_is_left_behind_and_the_client_speaks_utf8(url: str) -> None:
    database = Database(f"{url}?client_encoding=LATIN1")
    for _ in range(20):
        Jobs(database).open_jobs()
    with database.transaction() as tx:
        assert tx.rows("SELECT name FROM pg_prepared_statements") == []
        assert tx.rows("SHOW client_encoding") == [{"client_encoding": "UTF8"}]


def run(script: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *args],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_forked_child_makes_connections_of_its_own_and_leaves_the_parent_s(url: str) -> None:
    script = """
import os, sys
from pipeline.store.database import Database
database = Database(sys.argv[1])
def pid():
    with database.transaction() as tx:
        return tx.rows("SELECT pg_backend_pid() AS pid")[0]["pid"]
mine = pid()
child = os.fork()
if child == 0:
    print("child", pid() != mine, flush=True)
    sys.exit()  # with all that runs at an exit
os.waitpid(child, 0)
print("parent", pid() == mine)
"""
    done = run(script, url)
    assert (done.stdout.split("\n")[:2], done.stderr) == (["child True", "parent True"], "")


@pytest.mark.parametrize("end", ["", "raise SystemExit(0)"])
def test_a_process_with_a_pool_ends_at_once_and_says_nothing(
    server: Postgres, url: str, end: str
) -> None:
    script = f"""
import sys
from pipeline.store.database import Database
from pipeline.store.job import MergeClaim
from pipeline.store.jobs import Jobs
from pipeline.store.live_changes import LiveChanges
from pipeline.store.products import Products
from pipeline.store.queries import QUERIES
database = Database(sys.argv[1])
Jobs(database).open_jobs()
{end}
"""
    done = run(script, f"{url}?application_name=ends")
    assert (done.returncode, done.stderr) == (0, "")
    sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'ends'"
    until(lambda: server.admin(sql) == [], "its connections are closed", 20)


def test_a_new_database_that_cannot_hold_every_name_is_refused(url: str) -> None:
    database = Database(western(url))
    with pytest.raises(WrongUse, match=r"encoding LATIN1, .* ENCODING 'UTF8'"):
        create(database)
    assert Jobs(database).list_with_progress() == []


def test_an_old_database_of_another_encoding_goes_on_and_a_name_it_cannot_hold_is_no_outage(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(jobs_module, "UNICODE", ("UTF8", "LATIN1"))
        create(Database(western(url)))
    database = Database(western(url))
    with database.transaction(read_only=True) as tx:
        assert tx.encoding() == "LATIN1"
    jobs, job_id = Jobs(database), create(database)
    jobs.shards.add(job_id, [(0, "embed", [["鞋.jpg", 1, 1]])], [], 600)  # JSON is ASCII
    claim = jobs.shards.claim(job_id, 0, "me", 600)
    assert claim is not None
    failures = [Failure("鞋.jpg", "decode", "broken")]
    with pytest.raises(WrongUse, match="cannot hold this text") as caught:
        jobs.shards.finish(claim, file="f", sha256="0", embedded=0, reused=0, failures=failures)
    assert "secret" not in str(caught.value)
    assert jobs.fail(job_id, "The name 鞋.jpg is in no plan.")
    assert jobs.get(job_id).error == "The name \\u978b.jpg is in no plan."


def test_what_fails_each_time_is_not_taken_for_an_outage(url: str) -> None:
    """A path longer than an index entry is an OperationalError to psycopg."""
    database = Database(url)
    jobs, job_id = Jobs(database), create(database)
    letters = "".join(chr(0x4E00 + n) for n in range(1200))  # nothing that could be compressed
    with pytest.raises(DatabaseFailed, match="index row size"):
        jobs.shards.add(job_id, [], [Failure(letters, "find", "unreadable")], 600)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("pgbouncer=true", "knows no option 'pgbouncer'"),
        ("sslmode=disable&Timeout=5", "knows no option 'Timeout'"),
        ("", "is not of the form"),
    ],
)
def test_an_option_that_postgresql_does_not_know_is_named(option: str, reason: str) -> None:
    port = "5432" if option else "%zz"
    with pytest.raises(WrongUse, match=reason) as caught:
        Database(f"postgresql://shop:secret@127.0.0.1:{port}/shop?{option}")
    assert "secret" not in str(caught.value)


def test_statements_of_one_round_trip_are_one_transaction(url: str, server: Postgres) -> None:
    database = postgresql.Postgresql(url)
    text = "it's 100 % \\ of ?"
    rows = database.read_at_once(
        ("SELECT set_config(?, ?, true)", ["work_mem", "1MB"]),
        (
            "SELECT current_setting('work_mem') AS memory, ? AS text, ?::bytea AS data",
            [text, b"\0'"],
        ),
    )
    assert rows == [{"memory": "1MB", "text": text, "data": b"\0'"}]
    with database.transaction(read_only=True) as tx:  # on the same connection
        assert tx.rows("SHOW work_mem") != [{"work_mem": "1MB"}]
    with pytest.raises(DatabaseFailed):
        database.read_at_once(("CREATE TABLE half (n INTEGER)", ()), ("SELECT * FROM nothing", ()))
    with database.transaction(read_only=False) as tx:
        assert not tx.table_exists("half")
    server.admin("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'shop'")
    assert database.read_at_once(("SELECT 1 AS n", ())) == [{"n": 1}]


def test_a_merge_that_is_claimed_while_a_shard_is_reopened_is_not_begun(
    server: Postgres, url: str
) -> None:
    jobs = Jobs(Database(url))
    job_id = create(jobs.database)
    jobs.shards.add(job_id, [(0, "embed", [["a.jpg", 1, 2]])], [], 600)
    jobs.finish_plan(job_id)
    shard = jobs.shards.claim(job_id, 0, "worker", 600)
    assert shard is not None
    jobs.shards.finish(shard, file="f", sha256="0", embedded=1, reused=0, failures=[])
    frozen = jobs.claim_merge(job_id, "frozen", 0.0)
    assert frozen is not None
    claims = list[MergeClaim | None]()
    claiming = threading.Thread(
        target=lambda: claims.append(jobs.claim_merge(job_id, "other", 600))
    )
    with jobs.database.transaction() as tx:  # as `reopen_shards`, which the other one waits for
        tx.rows(QUERIES["reopen_job"], {"job_id": job_id, "owner": "frozen"})
        tx.rows(QUERIES["reopen_shard"], {"job_id": job_id, "n": 0})
        claiming.start()
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        until(lambda: server.admin(waiting), "the claim waits for the row of the job")
    claiming.join()
    assert claims == [None]
    assert jobs.get(job_id).state == "running"


def test_an_image_that_is_added_while_an_import_writes_its_product_ends_neither(
    server: Postgres, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = AddedImage("lamp/a.jpg", "lamp", 10, 1, "ab" * 32, "f1", np.ones(8, np.float32))
    version = Version(Path("/nowhere"), {"changes_seen": 0}, 0)
    added = list[str]()

    def add() -> None:
        LiveChanges(Database(url)).add(image, version)
        added.append("lamp")

    adding, write = threading.Thread(target=add), catalogue_import._write

    def write_beside(*args: Any) -> None:
        adding.start()
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        until(lambda: server.admin(waiting), "the other one waits")
        write(*args)

    monkeypatch.setattr(catalogue_import, "_write", write_beside)
    import_text(Products(Database(url)), "product_id,title,image\nlamp,Lamp,lamp/a.jpg\n")
    adding.join()
    assert added == ["lamp"]
    assert [each.path for each in LiveChanges(Database(url)).all().images] == ["lamp/a.jpg"]
