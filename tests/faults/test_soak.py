"""A long rebuild under constant fire."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from faults.fault_run import FaultRun
from live_stack import draw_folder, until

SHARDS = 2000
KILL_EVERY_S = 3.0
REDIS_DEATHS = 3
PATIENCE_S = 1200.0


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.slow
@pytest.mark.fault(25, f"{SHARDS} shards, a worker killed every 3 s, Redis killed {REDIS_DEATHS}x")
def test_a_long_rebuild_under_fire_loses_nothing_and_leaks_nothing(fault_run: FaultRun) -> None:
    stack = fault_run.stack
    fault_run.good = draw_folder(stack.products, 2 * SHARDS, 10_000 * fault_run.seed)
    small = {"SHARD_SIZE": "2"}
    victims = [stack.supervise("embed"), stack.supervise("embed"), stack.supervise("index")]
    survivor = stack.worker("embed")
    job_id = fault_run.enqueue(**small)
    assert stack.jobs.progress(job_id).shards == SHARDS
    until(lambda: stack.jobs.progress(job_id).shards_done > 20, "the work has begun")
    fault_run.hit()
    sizes, files, redis_deaths = [], [], 0
    deadline = time.monotonic() + PATIENCE_S
    while stack.jobs.get(job_id).open:
        assert time.monotonic() < deadline, stack.jobs.progress(job_id)
        time.sleep(KILL_EVERY_S)  # the fire itself
        fault_run.rng.choice(victims).process.kill()
        done = stack.jobs.progress(job_id).shards_done
        if redis_deaths < REDIS_DEATHS and done > (redis_deaths + 1) * SHARDS // 4:
            redis_deaths += 1
            stack.kill_redis()
            stack.start_redis()
        sizes.append(resident_mib(survivor.pid))
        files.append(open_files(survivor.pid))
    fault_run.recovered()
    job = stack.jobs.get(job_id)
    assert job.state == "published", job.error
    fault_run.account(job_id)
    assert redis_deaths == REDIS_DEATHS
    assert sum(victim.restarts for victim in victims) >= len(sizes) // 2
    assert survivor.poll() is None
    until(lambda: stack.redis().hlen("imgrec:unacked") == 0, "no message is left unacknowledged")
    until(lambda: stack.redis().llen("imgrec:embed") == 0, "no message is left over")
    # The survivor has its model from the first sample on; a leak grows with each shard and outage.
    first = len(sizes) // 3
    assert max(sizes[first:]) <= 1.1 * max(sizes[:first]) + 20, sizes
    assert max(files[first:]) <= max(files[:first]) + 8, files
