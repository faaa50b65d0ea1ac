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
def proxy(stack: LiveStack) -> Iterator[Proxy]:
    """A network between every process and Redis."""
    proxy = Proxy(stack.port)
    stack.environment["REDIS_URL"] = f"redis://127.0.0.1:{proxy.port}/0"
    yield proxy
    proxy.close()


def shards(fault_run: FaultRun, job_id: str) -> int:
    return fault_run.stack.jobs.progress(job_id).shards_done


def midway(fault_run: FaultRun, job_id: str) -> None:
    """Wait for a moment in the middle of a job, chosen at random."""
    wanted = fault_run.rng.randrange(1, 6)
    until(lambda: shards(fault_run, job_id) >= wanted, f"{wanted} shards are done")
    fault_run.hit()


@pytest.mark.fault(8, "kill -9 of Redis with its append-only file, in the middle of a shard")
@pytest.mark.short
def test_a_redis_killed_within_a_shard_is_outlived_by_its_workers(fault_run: FaultRun) -> None:
    fault_run.draw(MANY)
    stack = fault_run.stack
    workers = [stack.worker("embed", **SLOW), stack.worker("index")]
    job_id = fault_run.enqueue(**SMALL)
    midway(fault_run, job_id)
    stack.kill_redis()
    assert stack.jobs.get(job_id).open
    stack.start_redis()
    fault_run.publishes(job_id)
    assert [worker.poll() for worker in workers] == [None, None]


@pytest.mark.fault(9, "Redis {how} in the middle of a rebuild")
@pytest.mark.short("flushed")
@pytest.mark.parametrize("how", ["killed and back without its data", "flushed"])
def test_a_redis_that_forgets_everything_stops_no_rebuild(fault_run: FaultRun, how: str) -> None:
    fault_run.draw(MANY)
    stack = fault_run.stack
    workers = [stack.worker("embed", **SLOW), stack.worker("index")]
    job_id = fault_run.enqueue(**SMALL)
    midway(fault_run, job_id)
    if how == "flushed":
        stack.redis().flushall()
    else:
        stack.kill_redis()
        shutil.rmtree(stack.folder / "redis")
        stack.start_redis("--appendonly", "no")
    assert stack.jobs.get(job_id).open
    fault_run.publishes(job_id)
    assert [worker.poll() for worker in workers] == [None, None]


@pytest.mark.fault(9, "Redis flushed before any worker has started")
def test_messages_that_nobody_had_taken_are_sent_again(fault_run: FaultRun) -> None:
    fault_run.draw()
    job_id = fault_run.enqueue()
    assert fault_run.stack.redis().llen("imgrec:embed") > 0
    fault_run.stack.redis().flushall()
    fault_run.hit()
    fault_run.stack.workers("embed", "index")
    fault_run.publishes(job_id)


@pytest.mark.fault(10, "no Redis when the workers start")
def test_workers_that_start_before_redis_wait_for_it(fault_run: FaultRun) -> None:
    fault_run.draw()
    stack = fault_run.stack
    stack.kill_redis()
    workers = [stack.worker("embed"), stack.worker("index")]
    until(lambda: "Trying again" in stack.log("embed"), "the worker looks for Redis")
    stack.start_redis()
    fault_run.hit()
    fault_run.publishes(fault_run.enqueue())
    assert [worker.poll() for worker in workers] == [None, None]


def test_no_redis_is_exit_code_4_and_nothing_is_planned(stack: LiveStack) -> None:
    draw_folder(stack.products, 3)
    stack.kill_redis()
    image = str(next(stack.products.rglob("*.jpg")))
    for command in (["enqueue-rebuild", str(stack.products)], ["query", image]):
        done = stack.imgrec(*command, "--wait")
        assert done.returncode == 4
        assert done.stderr.startswith("Error: Redis does not answer at")
        assert "Traceback" not in done.stderr
    assert stack.answer("jobs") == {"jobs": []}


@pytest.mark.fault(11, "every connection to Redis goes silent, without a FIN")
def test_a_connection_that_went_silent_is_given_up(fault_run: FaultRun, proxy: Proxy) -> None:
    fault_run.draw(MANY)
    stack = fault_run.stack
    workers = [stack.worker("embed", **SLOW), stack.worker("index")]
    job_id = fault_run.enqueue(**SMALL)
    midway(fault_run, job_id)
    assert proxy.silence() > 0
    assert stack.jobs.get(job_id).open
    fault_run.publishes(job_id)
    assert [worker.poll() for worker in workers] == [None, None]


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.fault(12, "every connection to Redis reset every two seconds, for thirty")
def test_a_storm_of_resets_loses_no_shard_and_leaks_no_connection(
    fault_run: FaultRun, proxy: Proxy
) -> None:
    fault_run.draw(MANY)
    stack = fault_run.stack
    slow = {"IMGREC_FAILPOINT": "embed.after_claim!sleep2.5"}  # 12 shards: they outlast the storm
    workers = [stack.worker("embed", **SMALL, **slow), stack.worker("index")]
    job_id = fault_run.enqueue(**SMALL)
    until(lambda: shards(fault_run, job_id) >= 1, "the first shard is done")
    before = [open_files(worker.pid) for worker in workers]
    storm = threading.Event()
    resets = 0
    for _ in range(15):
        storm.wait(2.0)
        resets += proxy.reset()
    assert resets > 15
    fault_run.hit()
    fault_run.publishes(job_id)
    assert [worker.poll() for worker in workers] == [None, None]
    after = [open_files(worker.pid) for worker in workers]
    # The first shard opened what there is to open; each reset would leave one more if it leaked.
    assert all(late <= early + 8 for early, late in zip(before, after, strict=True)), (
        before,
        after,
    )


@pytest.mark.fault(13, "a Redis that takes 0.2 s longer each way")
def test_a_slow_redis_makes_things_slow_and_nothing_wrong(
    fault_run: FaultRun, proxy: Proxy
) -> None:
    fault_run.draw()
    stack = fault_run.stack
    stack.workers("embed", "index", "query")
    proxy.delay_s = 0.2
    fault_run.hit()
    job_id = fault_run.enqueue()
    fault_run.publishes(job_id)
    with stack.jobs._database.transaction() as tx:
        rows = tx.rows("SELECT attempts FROM shards WHERE job_id = ?", (job_id,))
    assert {row["attempts"] for row in rows} == {1}
    name = fault_run.rng.choice(fault_run.good)
    assert stack.query(stack.products / name)["matches"][0]["filename"] == name


@pytest.mark.fault(14, "a Redis without memory for one more message")
@pytest.mark.short
def test_a_full_redis_says_so_and_the_job_goes_on_when_there_is_room(fault_run: FaultRun) -> None:
    fault_run.draw()
    stack = fault_run.stack
    stack.workers("embed", "index")
    until(lambda: stack.imgrec("health", "index").returncode == 0, "the index worker runs")
    stack.redis().set("ballast", b"x" * 3_000_000)
    stack.redis().config_set("maxmemory", "2mb")
    done = stack.imgrec("enqueue-rebuild", str(stack.products))
    assert done.returncode == 4
    assert "is full and accepts no messages" in done.stderr
    assert "Traceback" not in done.stderr
    ((job, _),) = stack.jobs.list_with_progress()
    assert job.state == "planned"
    stack.redis().config_set("maxmemory", "0")
    fault_run.hit()
    # Nobody sends it again by hand: the reconciler of the index worker does.
    fault_run.publishes(job.id)


@pytest.mark.fault(14, "a Redis that is full when the workers start")
def test_workers_that_meet_a_full_redis_wait_for_room(fault_run: FaultRun) -> None:
    fault_run.draw()
    stack = fault_run.stack
    stack.redis().set("ballast", b"x" * 3_000_000)
    stack.redis().config_set("maxmemory", "2mb")
    workers = [stack.worker("embed"), stack.worker("index")]
    for queue in ("embed", "index"):
        until(lambda queue=queue: "maxmemory" in stack.log(queue), f"{queue} meets the full Redis")
    stack.redis().config_set("maxmemory", "0")
    fault_run.hit()
    fault_run.publishes(fault_run.enqueue())
    assert [worker.poll() for worker in workers] == [None, None]


@pytest.mark.fault(14, "a Redis that is full for a while in the middle of a rebuild")
def test_a_redis_that_fills_up_in_the_middle_stops_no_rebuild(fault_run: FaultRun) -> None:
    fault_run.draw(MANY)
    stack = fault_run.stack
    window = {"MAX_SHARDS_IN_FLIGHT": "2"}  # most messages are still to be sent
    workers = [stack.worker("embed", **SLOW, **window), stack.worker("index", **window)]
    job_id = fault_run.enqueue(**SMALL, **window)
    midway(fault_run, job_id)
    stack.redis().set("ballast", b"x" * 3_000_000)
    stack.redis().config_set("maxmemory", "2mb")
    until(lambda: "is full" in stack.log("embed") + stack.log("index"), "it is noticed")
    stack.redis().config_set("maxmemory", "0")
    fault_run.hit()
    fault_run.publishes(job_id)
    assert [worker.poll() for worker in workers] == [None, None]


@pytest.mark.fault(7, "SIGSTOP of Redis for ten seconds")
def test_a_frozen_redis_is_waited_for(fault_run: FaultRun) -> None:
    fault_run.draw(MANY)
    stack = fault_run.stack
    workers = [stack.worker("embed", **SLOW), stack.worker("index")]
    job_id = fault_run.enqueue(**SMALL)
    midway(fault_run, job_id)
    assert stack.server is not None
    stack.server.send_signal(signal.SIGSTOP)
    threading.Event().wait(10)  # the fault itself lasts so long
    stack.server.send_signal(signal.SIGCONT)
    fault_run.hit()
    fault_run.publishes(job_id)
    assert [worker.poll() for worker in workers] == [None, None]
