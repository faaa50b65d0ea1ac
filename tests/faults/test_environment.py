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
def postgres_server(stand: LiveStack) -> Iterator[Postgres]:
    """A PostgreSQL that the stand uses, as a role without more rights than it needs."""
    server = Postgres()
    server.admin("CREATE ROLE shop LOGIN PASSWORD 'pass'")
    server.admin("CREATE DATABASE shop OWNER shop")
    stand.environment["DATABASE_URL"] = f"postgresql://shop:pass@127.0.0.1:{server.port}/shop"
    yield server
    server.close()


@pytest.mark.fault(30, "a clock that jumps by {jump} s inside an embed worker")
@pytest.mark.short("-18000")
@pytest.mark.parametrize("jump", ["10800", "-18000", "3456000"])
def test_a_clock_that_jumps_inside_a_worker_costs_no_image(trial: FaultRun, jump: str) -> None:
    trial.draw()
    stand = trial.stand
    stand.worker("embed", **SMALL, **trial.armed(f"image!clock{jump}"))
    stand.worker("embed", **SMALL)
    stand.worker("index")
    job_id = trial.enqueue(**SMALL)
    trial.strikes()
    trial.publishes(job_id)
    assert stand.jobs.get(job_id).seconds >= 0


@pytest.mark.fault(31, "a PostgreSQL that is read-only for a while, as in a failover")
@pytest.mark.short
def test_a_database_that_is_read_only_for_a_while_is_waited_for(
    postgres_server: Postgres, trial: FaultRun
) -> None:
    trial.draw(120)
    stand = trial.stand
    stand.worker("embed", **SMALL, SHARD_MAX_ATTEMPTS="1")
    stand.worker("index")
    job_id = trial.enqueue(**SMALL)
    until(lambda: any((stand.data / "jobs").glob("*/shard-*.npz")), "the first shard is written")
    turn = "ALTER DATABASE shop SET default_transaction_read_only = {}"
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'shop'"
    postgres_server.admin(turn.format("on"))
    postgres_server.admin(end)
    until(lambda: "read-only" in stand.log("embed"), "the worker meets it")
    postgres_server.admin(turn.format("off"))
    postgres_server.admin(end)
    trial.hit()
    trial.publishes(job_id)


@pytest.mark.fault(32, "a PostgreSQL that refuses a statement until somebody mends it")
@pytest.mark.short
def test_a_statement_that_is_refused_ends_the_job_with_the_reason_and_the_next_one_publishes(
    postgres_server: Postgres, trial: FaultRun
) -> None:
    trial.draw()
    stand = trial.stand
    assert stand.imgrec("jobs").returncode == 0  # the tables are there
    postgres_server.admin(REFUSE, "shop")
    stand.worker("embed", **SMALL)
    stand.worker("index")
    job_id = trial.enqueue(**SMALL)
    trial.hit()
    until(lambda: not stand.jobs.get(job_id).open, "the job ends")
    refused = stand.jobs.get(job_id)
    assert refused.state == "failed"
    assert "not today" in str(refused.error)
    postgres_server.admin("DROP TRIGGER refuse ON shards", "shop")
    trial.publishes(trial.enqueue(**SMALL))


@pytest.fixture(scope="session")
def last_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_last_release(tmp_path_factory.mktemp("last-release"))


@pytest.mark.fault(33, "kill -9 of the {killed} release's embed worker beside the other release's")
@pytest.mark.parametrize("killed", ["old", "new"])
def test_an_embed_worker_of_one_release_takes_over_from_one_of_the_other(
    trial: FaultRun, last_release: Path, killed: str
) -> None:
    trial.draw()
    both = Both(trial.stand, last_release)
    trial.stand.environment |= SMALL
    workers = {release: both.worker(release, "embed") for release in ("old", "new")}
    both.worker("new", "index")
    job_id = trial.enqueue()
    until(lambda: trial.stand.jobs.progress(job_id).shards_done >= 1, "the first shard is done")
    os.kill(workers[killed].pid, signal.SIGKILL)
    trial.hit()
    trial.publishes(job_id)
