"""What a machine or a database does to a rebuild: clocks, rights, another release."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.fault_run import FaultRun
from last_release import Both, build_last_release
from live_stack import LiveStack, until
from postgres_server import Postgres

SMALL = {"SHARD_SIZE": "4", "EMBED_BATCH_SIZE": "4"}
REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN RAISE EXCEPTION ''not today''; END';
CREATE TRIGGER refuse BEFORE UPDATE ON shards FOR EACH ROW
    WHEN (NEW.state = 'done') EXECUTE FUNCTION refuse()
"""


@pytest.fixture
def postgres_server(stack: LiveStack) -> Iterator[Postgres]:
    """A PostgreSQL that the stack uses, as a role without more rights than it needs."""
    server = Postgres()
    server.admin("CREATE ROLE shop LOGIN PASSWORD 'pass'")
    server.admin("CREATE DATABASE shop OWNER shop")
    stack.environment["DATABASE_URL"] = f"postgresql://shop:pass@127.0.0.1:{server.port}/shop"
    yield server
    server.close()


@pytest.mark.fault(30, "a clock that jumps by {jump} s inside an embed worker")
@pytest.mark.short("-18000")
@pytest.mark.parametrize("jump", ["10800", "-18000", "3456000"])
def test_a_clock_that_jumps_inside_a_worker_costs_no_image(fault_run: FaultRun, jump: str) -> None:
    fault_run.draw()
    stack = fault_run.stack
    stack.worker("embed", **SMALL, **fault_run.armed(f"image!clock{jump}"))
    stack.worker("embed", **SMALL)
    stack.worker("index")
    job_id = fault_run.enqueue(**SMALL)
    fault_run.wait_for_failpoint()
    fault_run.publishes(job_id)
    assert stack.jobs.get(job_id).seconds >= 0


@pytest.mark.fault(31, "a PostgreSQL that is read-only for a while, as in a failover")
@pytest.mark.short
def test_a_database_that_is_read_only_for_a_while_is_waited_for(
    postgres_server: Postgres, fault_run: FaultRun
) -> None:
    fault_run.draw(120)
    stack = fault_run.stack
    stack.worker("embed", **SMALL, SHARD_MAX_ATTEMPTS="1")
    stack.worker("index")
    job_id = fault_run.enqueue(**SMALL)
    until(lambda: any((stack.data / "jobs").glob("*/shard-*.npz")), "the first shard is written")
    turn = "ALTER DATABASE shop SET default_transaction_read_only = {}"
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'shop'"
    postgres_server.admin(turn.format("on"))
    postgres_server.admin(end)
    until(lambda: "read-only" in stack.log("embed"), "the worker meets it")
    postgres_server.admin(turn.format("off"))
    postgres_server.admin(end)
    fault_run.hit()
    fault_run.publishes(job_id)


@pytest.mark.fault(32, "a PostgreSQL that refuses a statement until somebody mends it")
@pytest.mark.short
def test_a_statement_that_is_refused_ends_the_job_with_the_reason_and_the_next_one_publishes(
    postgres_server: Postgres, fault_run: FaultRun
) -> None:
    fault_run.draw()
    stack = fault_run.stack
    assert stack.imgrec("jobs").returncode == 0  # the tables are there
    postgres_server.admin(REFUSE, "shop")
    stack.worker("embed", **SMALL)
    stack.worker("index")
    job_id = fault_run.enqueue(**SMALL)
    fault_run.hit()
    until(lambda: not stack.jobs.get(job_id).open, "the job ends")
    refused = stack.jobs.get(job_id)
    assert refused.state == "failed"
    assert "not today" in str(refused.error)
    postgres_server.admin("DROP TRIGGER refuse ON shards", "shop")
    fault_run.publishes(fault_run.enqueue(**SMALL))


@pytest.fixture(scope="session")
def last_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_last_release(tmp_path_factory.mktemp("last-release"))


@pytest.mark.fault(33, "kill -9 of the {killed} release's embed worker beside the other release's")
@pytest.mark.parametrize("killed", ["old", "new"])
def test_an_embed_worker_of_one_release_takes_over_from_one_of_the_other(
    fault_run: FaultRun, last_release: Path, killed: str
) -> None:
    fault_run.draw()
    both = Both(fault_run.stack, last_release)
    fault_run.stack.environment |= SMALL
    workers = {release: both.worker(release, "embed") for release in ("old", "new")}
    both.worker("new", "index")
    job_id = fault_run.enqueue()
    until(lambda: fault_run.stack.jobs.progress(job_id).shards_done >= 1, "the first shard is done")
    os.kill(workers[killed].pid, signal.SIGKILL)
    fault_run.hit()
    fault_run.publishes(job_id)
