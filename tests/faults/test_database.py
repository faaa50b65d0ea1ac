"""A database that restarts or is locked in the middle: the rebuild ends, queries go on."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_stack import LiveStack, draw_folder, draw_product, until
from postgres_server import Postgres

SHARD = {"SHARD_SIZE": "20"}


@pytest.fixture
def postgres_server() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.close()


@pytest.fixture
def shop(tmp_path: Path, model: Path, postgres_server: Postgres) -> Iterator[LiveStack]:
    """A stack on its own PostgreSQL, with 12 products published and one worker a queue."""
    postgres_server.admin("CREATE ROLE shop LOGIN PASSWORD 'pass'")
    postgres_server.admin("CREATE DATABASE shop OWNER shop")
    url = f"postgresql://shop:pass@127.0.0.1:{postgres_server.port}/shop"
    stack = LiveStack(tmp_path, model, database_url=url)
    try:
        stack.start_redis()
        for queue in ("embed", "index", "query"):
            stack.worker(queue)
        draw_folder(stack.products, 12)
        stack.rebuild()
        ask(stack, 3)
        yield stack
    finally:
        stack.close()


def ask(stack: LiveStack, number: int) -> str:
    """Query with a product and see it found; return the query's id."""
    name = f"kind{number % 3}/product-{number:03d}.jpg"
    answer = stack.query(stack.products / name)
    assert answer["matches"][0]["filename"] == name
    return str(answer["query_id"])


def begin(stack: LiveStack, *options: str) -> subprocess.Popen[str]:
    """Start a rebuild whose command waits in the background."""
    return subprocess.Popen(
        ["imgrec", "enqueue-rebuild", str(stack.products), "--wait", "--json", *options],
        cwd=stack.folder,
        env=stack.env(**SHARD),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(command: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    out, err = command.communicate(timeout=120)
    assert command.returncode == 0, err
    return json.loads(out), err


def shard_written(stack: LiveStack) -> bool:
    return any((stack.data / "jobs").glob("*/shard-*.npz"))


def count(stack: LiveStack, queue: str, words: str) -> int:
    return stack.log(queue).count(words)


@pytest.mark.parametrize("mode", ["immediate", pytest.param("fast", marks=pytest.mark.slow)])
def test_a_postgresql_that_restarts_while_shards_are_embedded_costs_no_image(
    shop: LiveStack, postgres_server: Postgres, mode: str
) -> None:
    good = draw_folder(shop.products, 200)
    command = begin(shop)
    until(lambda: shard_written(shop), "the first shard is written")
    postgres_server.stop(mode)
    asked = ask(shop, 5)  # while it is away
    until(lambda: count(shop, "embed", "does not answer"), "the embed worker meets the outage")
    until(lambda: count(shop, "index", "The job table is unavailable"), "so does the reconciler")
    ask(shop, 7)
    assert command.poll() is None  # the person waits on, too
    assert not (shop.data / "faiss_index" / "v0002").exists()
    postgres_server.start()
    done, told = ended(command)
    assert done["state"] == "published"
    assert done["embedded"] + done["reused"] == 200
    assert shop.indexed() == good
    assert "Waiting for it." in told
    assert [worker.poll() for worker in shop.processes] == [None, None, None]
    assert shop.imgrec("health").returncode == 0
    # What was asked in the outage is in the log of queries.
    until(
        lambda: shop.imgrec("feedback", asked, "kind2/product-005", "--like").returncode == 0,
        "feedback on it is taken",
        30,
    )


@pytest.mark.parametrize(
    ("line", "mode"),
    [
        ("merge.after_pointer", "immediate"),
        pytest.param("merge.before_commit", "fast", marks=pytest.mark.slow),
        pytest.param("merge.before_pointer", "immediate", marks=pytest.mark.slow),
    ],
)
def test_a_postgresql_that_restarts_while_the_merge_publishes_leaves_one_version(
    shop: LiveStack, postgres_server: Postgres, line: str, mode: str
) -> None:
    indexer = shop.processes[1]
    indexer.terminate()
    indexer.wait(60)
    once = shop.folder / "once"
    frozen = shop.worker("index", IMGREC_FAILPOINT=f"{line}!stop", IMGREC_FAILPOINT_ONCE=str(once))
    good = draw_folder(shop.products, 30)
    command = begin(shop)
    until(once.exists, "the merge stands at the line")
    postgres_server.stop(mode)
    os.killpg(frozen.pid, signal.SIGCONT)
    until(lambda: count(shop, "index", "The merge of job"), "the merge meets the outage")
    ask(shop, 5)
    postgres_server.start()
    done, _ = ended(command)
    assert (done["state"], done["index_version"]) == ("published", "v0002")
    assert shop.indexed() == good
    versions = sorted(child.name for child in (shop.data / "faiss_index").glob("v*"))
    assert versions == ["v0001", "v0002"]
    assert not list((shop.data / "faiss_index").glob(".build-*"))
    assert frozen.poll() is None


@pytest.mark.slow
def test_a_postgresql_that_hangs_and_goes_on_is_outlived(
    shop: LiveStack, postgres_server: Postgres
) -> None:
    good = draw_folder(shop.products, 120)
    command = begin(shop)
    until(lambda: shard_written(shop), "the first shard is written")
    postgres_server.freeze()
    try:
        ask(shop, 5)
        until(lambda: count(shop, "embed", "does not answer"), "nobody waits for ever", 60)
    finally:
        postgres_server.thaw()
    done, _ = ended(command)
    assert done["state"] == "published"
    assert shop.indexed() == good


class Lock:
    """Another process's hold on an SQLite file, that lets nobody write."""

    def __init__(self, file: Path) -> None:
        self._connection = sqlite3.connect(file, timeout=30, isolation_level=None)
        self._connection.execute("BEGIN EXCLUSIVE")

    def release(self) -> None:
        self._connection.execute("ROLLBACK")
        self._connection.close()


@pytest.mark.parametrize("held_s", [5.0, pytest.param(40.0, marks=pytest.mark.slow)])
def test_an_sqlite_file_that_another_process_locks_stops_nothing_for_good(
    stack: LiveStack, held_s: float
) -> None:
    """For longer than a lease, and for longer than anybody waits for the file."""
    draw_folder(stack.products, 12)
    stack.workers("embed", "index", "query")
    stack.rebuild()
    ask(stack, 3)
    good = draw_folder(stack.products, 200)
    command = begin(stack)
    until(lambda: shard_written(stack), "the first shard is written")
    lock = Lock(stack.data / "app.db")
    release_at = time.monotonic() + held_s
    ask(stack, 5)
    until(lambda: time.monotonic() > release_at, "the lock was held so long")
    if held_s > 30:
        assert "database is locked" in stack.log("embed") + stack.log("index")
    assert not (stack.data / "faiss_index" / "v0002").exists()
    lock.release()
    done, _ = ended(command)
    assert done["state"] == "published"
    assert done["embedded"] + done["reused"] == 200
    assert stack.indexed() == good
    assert [worker.poll() for worker in stack.processes] == [None, None, None]


def test_a_database_that_is_away_is_a_sentence_and_nothing_is_planned(
    stack: LiveStack, postgres_server: Postgres
) -> None:
    stack.environment["DATABASE_URL"] = (
        f"postgresql://postgres@127.0.0.1:{postgres_server.port}/postgres"
    )
    postgres_server.stop("fast")
    draw_product(stack.products / "a.jpg", 1)
    for command in (["enqueue-rebuild", str(stack.products), "--wait"], ["jobs"], ["status", "J"]):
        done = stack.imgrec(*command)
        assert done.returncode == 4
        assert "does not answer" in done.stderr
        assert "Traceback" not in done.stderr
    assert stack.redis().llen("imgrec:embed") == 0
