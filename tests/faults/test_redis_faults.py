"""Redis that dies, forgets, fills up, slows down, goes silent or cuts every line."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator

import pytest
from faults.fault_run import FaultRun
from faults.proxy import Proxy
from live_stack import LiveStack, draw_folder, until

SMALL = {"SHARD_SIZE": "20"}
MANY = 240  # images: twelve shards of 20
# A third of a second a shard, so that a fault in the middle of the job comes in its middle.
SLOW = {**SMALL, "IMGREC_FAILPOINT": "embed.after_claim!sleep0.3"}


@pytest.fixture
def proxy(stand: LiveStack) -> Iterator[Proxy]:
    """A network between every process and Redis."""
    proxy = Proxy(stand.port)
    stand.environment["REDIS_URL"] = f"redis://127.0.0.1:{proxy.port}/0"
    yield proxy
    proxy.close()


def shards(trial: FaultRun, job_id: str) -> int:
    return trial.stand.jobs.progress(job_id).shards_done


def midway(trial: FaultRun, job_id: str) -> None:
    """Wait for a moment in the middle of a job that the dice choose."""
    wanted = trial.dice.randrange(1, 6)
    until(lambda: shards(trial, job_id) >= wanted, f"{wanted} shards are done")
    trial.hit()


@pytest.mark.fault(8, "kill -9 of Redis with its append-only file, in the middle of a shard")
@pytest.mark.short
def test_a_redis_killed_within_a_shard_is_outlived_by_its_workers(trial: FaultRun) -> None:
    trial.draw(MANY)
    stand = trial.stand
    workers = [stand.worker("embed", **SLOW), stand.worker("index")]
    job_id = trial.enqueue(**SMALL)
    midway(trial, job_id)
    stand.kill_redis()
    assert stand.jobs.get(job_id).open
    stand.start_redis()
    trial.publishes(job_id)
    assert [worker.poll() for worker in workers] == [None, None]


@pytest.mark.fault(9, "Redis {how} in the middle of a rebuild")
@pytest.mark.short("flushed")
@pytest.mark.parametrize("how", ["killed and back without its data", "flushed"])
def test_a_redis_that_forgets_everything_stops_no_rebuild(trial: FaultRun, how: str) -> None:
    trial.draw(MANY)
    stand = trial.stand
    workers = [stand.worker("embed", **SLOW), stand.worker("index")]
    job_id = trial.enqueue(**SMALL)
    midway(trial, job_id)
    if how == "flushed":
        stand.redis().flushall()
    else:
        stand.kill_redis()
        shutil.rmtree(stand.folder / "redis")
        stand.start_redis("--appendonly", "no")
    assert stand.jobs.get(job_id).open
    trial.publishes(job_id)
    assert [worker.poll() for worker in workers] == [None, None]


@pytest.mark.fault(9, "Redis flushed before any worker has started")
def test_messages_that_nobody_had_taken_are_sent_again(trial: FaultRun) -> None:
    trial.draw()
    job_id = trial.enqueue()
    assert trial.stand.redis().llen("imgrec:embed") > 0
    trial.stand.redis().flushall()
    trial.hit()
    trial.stand.workers("embed", "index")
    trial.publishes(job_id)


@pytest.mark.fault(10, "no Redis when the workers start")
def test_workers_that_start_before_redis_wait_for_it(trial: FaultRun) -> None:
    trial.draw()
    stand = trial.stand
    stand.kill_redis()
    workers = [stand.worker("embed"), stand.worker("index")]
    until(lambda: "Trying again" in stand.log("embed"), "the worker looks for Redis")
    stand.start_redis()
    trial.hit()
    trial.publishes(trial.enqueue())
    assert [worker.poll() for worker in workers] == [None, None]


def test_no_redis_is_exit_code_4_and_nothing_is_planned(stand: LiveStack) -> None:
    draw_folder(stand.products, 3)
    stand.kill_redis()
    image = str(next(stand.products.rglob("*.jpg")))
    for command in (["enqueue-rebuild", str(stand.products)], ["query", image]):
        done = stand.imgrec(*command, "--wait")
        assert done.returncode == 4
        assert done.stderr.startswith("Error: Redis does not answer at")
        assert "Traceback" not in done.stderr
    assert stand.answer("jobs") == {"jobs": []}


@pytest.mark.fault(11, "every connection to Redis goes silent, without a FIN")
def test_a_connection_that_went_silent_is_given_up(trial: FaultRun, proxy: Proxy) -> None:
    trial.draw(MANY)
    stand = trial.stand
    workers = [stand.worker("embed", **SLOW), stand.worker("index")]
    job_id = trial.enqueue(**SMALL)
    midway(trial, job_id)
    assert proxy.silence() > 0
    assert stand.jobs.get(job_id).open
    trial.publishes(job_id)
    assert [worker.poll() for worker in workers] == [None, None]


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.fault(12, "every connection to Redis reset every two seconds, for thirty")
def test_a_storm_of_resets_loses_no_shard_and_leaks_no_connection(
    trial: FaultRun, proxy: Proxy
) -> None:
    trial.draw(MANY)
    stand = trial.stand
    slow = {"IMGREC_FAILPOINT": "embed.after_claim!sleep2.5"}  # 12 shards: they outlast the storm
    workers = [stand.worker("embed", **SMALL, **slow), stand.worker("index")]
    job_id = trial.enqueue(**SMALL)
    until(lambda: shards(trial, job_id) >= 1, "the first shard is done")
    before = [open_files(worker.pid) for worker in workers]
    storm = threading.Event()
    resets = 0
    for _ in range(15):
        storm.wait(2.0)
        resets += proxy.reset()
    assert resets > 15
    trial.hit()
    trial.publishes(job_id)
    assert [worker.poll() for worker in workers] == [None, None]
    after = [open_files(worker.pid) for worker in workers]
    # The first shard opened what there is to open; each reset would leave one more if it leaked.
    assert all(late <= early + 8 for early, late in zip(before, after, strict=True)), (
        before,
        after,
    )


@pytest.mark.fault(13, "a Redis that takes 0.2 s longer each way")
def test_a_slow_redis_makes_things_slow_and_nothing_wrong(trial: FaultRun, proxy: Proxy) -> None:
    trial.draw()
    stand = trial.stand
    stand.workers("embed", "index", "query")
    proxy.delay_s = 0.2
    trial.hit()
    job_id = trial.enqueue()
    trial.publishes(job_id)
    with stand.jobs._database.transaction() as tx:
        rows = tx.rows("SELECT attempts FROM shards WHERE job_id = ?", (job_id,))
    assert {row["attempts"] for row in rows} == {1}
    name = trial.dice.choice(trial.good)
    assert stand.query(stand.products / name)["matches"][0]["filename"] == name


@pytest.mark.fault(14, "a Redis without memory for one more message")
@pytest.mark.short
def test_a_full_redis_says_so_and_the_job_goes_on_when_there_is_room(trial: FaultRun) -> None:
    trial.draw()
    stand = trial.stand
    stand.workers("embed", "index")
    until(lambda: stand.imgrec("health", "index").returncode == 0, "the index worker runs")
    stand.redis().set("ballast", b"x" * 3_000_000)
    stand.redis().config_set("maxmemory", "2mb")
    done = stand.imgrec("enqueue-rebuild", str(stand.products))
    assert done.returncode == 4
    assert "is full and accepts no messages" in done.stderr
    assert "Traceback" not in done.stderr
    ((job, _),) = stand.jobs.list_with_progress()
    assert job.state == "planned"
    stand.redis().config_set("maxmemory", "0")
    trial.hit()
    # Nobody sends it again by hand: the reconciler of the index worker does.
    trial.publishes(job.id)


@pytest.mark.fault(14, "a Redis that is full when the workers start")
def test_workers_that_meet_a_full_redis_wait_for_room(trial: FaultRun) -> None:
    trial.draw()
    stand = trial.stand
    stand.redis().set("ballast", b"x" * 3_000_000)
    stand.redis().config_set("maxmemory", "2mb")
    workers = [stand.worker("embed"), stand.worker("index")]
    for queue in ("embed", "index"):
        until(lambda queue=queue: "maxmemory" in stand.log(queue), f"{queue} meets the full Redis")
    stand.redis().config_set("maxmemory", "0")
    trial.hit()
    trial.publishes(trial.enqueue())
    assert [worker.poll() for worker in workers] == [None, None]


@pytest.mark.fault(14, "a Redis that is full for a while in the middle of a rebuild")
def test_a_redis_that_fills_up_in_the_middle_stops_no_rebuild(trial: FaultRun) -> None:
    trial.draw(MANY)
    stand = trial.stand
    window = {"MAX_SHARDS_IN_FLIGHT": "2"}  # most messages are still to be sent
    workers = [stand.worker("embed", **SLOW, **window), stand.worker("index", **window)]
    job_id = trial.enqueue(**SMALL, **window)
    midway(trial, job_id)
    stand.redis().set("ballast", b"x" * 3_000_000)
    stand.redis().config_set("maxmemory", "2mb")
    until(lambda: "is full" in stand.log("embed") + stand.log("index"), "it is noticed")
    stand.redis().config_set("maxmemory", "0")
    trial.hit()
    trial.publishes(job_id)
    assert [worker.poll() for worker in workers] == [None, None]


@pytest.mark.fault(7, "SIGSTOP of Redis for ten seconds")
def test_a_frozen_redis_is_waited_for(trial: FaultRun) -> None:
    trial.draw(MANY)
    stand = trial.stand
    workers = [stand.worker("embed", **SLOW), stand.worker("index")]
    job_id = trial.enqueue(**SMALL)
    midway(trial, job_id)
    assert stand.server is not None
    stand.server.send_signal(signal.SIGSTOP)
    threading.Event().wait(10)  # the fault itself lasts so long
    stand.server.send_signal(signal.SIGCONT)
    trial.hit()
    trial.publishes(job_id)
    assert [worker.poll() for worker in workers] == [None, None]
