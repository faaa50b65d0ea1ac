"""Health is true: a worker is ill when what it needs is dead or stuck, not when Redis is away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_stack import LiveStack, draw_folder, draw_product, until

pytestmark = pytest.mark.long


def health(stack: LiveStack, *args: str) -> tuple[int, dict[str, Any]]:
    done = stack.imgrec("health", *args, "--json")
    found: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, found


def ill(stack: LiveStack, queue: str) -> str:
    """Return why the worker of a queue is ill; empty while it is well."""
    code, found = health(stack, queue)
    assert (code == 1) == bool(found["unhealthy"] or not found["alive"])
    return "; ".join(found["unhealthy"].values())


def well(stack: LiveStack, queue: str) -> bool:
    return health(stack, queue)[0] == 0


def ready(stack: LiveStack, queue: str) -> bool:
    done = stack.imgrec("health", queue)
    return done.returncode == 0 and "waiting for Redis" not in done.stderr


def touched(stack: LiveStack, queue: str) -> int:
    (file,) = (stack.data / "run").glob(f"{queue}-*.alive")
    return file.stat().st_mtime_ns


def test_an_index_worker_without_its_reconciler_is_ill(stack: LiveStack) -> None:
    worker = stack.worker("index", IMGREC_FAILPOINT="reconcile!end")
    until(lambda: ill(stack, "index"), "the illness is told", 60)
    assert ill(stack, "index") == "the thread 'reconciler' is dead"
    assert worker.poll() is None  # it looks as if it worked
    assert "This worker is unhealthy" in stack.log("index")


def test_a_worker_whose_loop_hangs_is_ill(stack: LiveStack) -> None:
    once = stack.folder / "once"
    stack.worker(
        "embed", IMGREC_FAILPOINT="loop!hang", IMGREC_FAILPOINT_ONCE=str(once), HUNG_AFTER_S="3"
    )
    until(once.exists, "the loop hangs", 60)
    until(lambda: "the loop that takes messages has not moved" in ill(stack, "embed"), "told", 60)


def test_a_stuck_shard_makes_its_worker_ill_and_another_worker_does_it(stack: LiveStack) -> None:
    good = draw_folder(stack.products, 20)
    once = stack.folder / "once"
    more = {"IMGREC_FAILPOINT": f"image:{good[4]}!hang", "IMGREC_FAILPOINT_ONCE": str(once)}
    stack.worker("embed", **more, HUNG_AFTER_S="3")
    job_id = stack.answer("enqueue-rebuild", str(stack.products))["job_id"]
    until(once.exists, "a thread is stuck within the shard", 60)
    until(lambda: f"shard 0 of job {job_id} has not moved" in ill(stack, "embed"), "told", 60)
    stack.workers("embed", "index")
    assert stack.answer("status", job_id, "--wait", "--timeout", "90")["state"] == "published"
    assert stack.indexed() == good


def test_a_worker_that_hangs_before_it_claims_a_shard_is_ill_and_another_worker_does_it(
    stack: LiveStack,
) -> None:
    """As in the download of a model, or at a lock: there is no lease yet that could end."""
    good = draw_folder(stack.products, 20)
    once = stack.folder / "once"
    more = {"IMGREC_FAILPOINT": "embed.before_claim!hang", "IMGREC_FAILPOINT_ONCE": str(once)}
    stack.worker("embed", **more, HUNG_AFTER_S="3")
    job_id = stack.answer("enqueue-rebuild", str(stack.products))["job_id"]
    until(once.exists, "the task hangs", 60)
    until(
        lambda: f"the start of shard 0 of job {job_id} has not moved" in ill(stack, "embed"),
        "told",
        60,
    )
    stack.workers("embed", "index")
    assert stack.answer("status", job_id, "--wait", "--timeout", "90")["state"] == "published"
    assert stack.indexed() == good


def test_a_misconfigured_worker_is_unhealthy_and_the_others_do_the_job(stack: LiveStack) -> None:
    good = draw_folder(stack.products, 40)
    misconfigured = stack.worker("embed", PREPROCESS_SIZE="64,64")
    stack.workers("embed", "index")
    until(lambda: stack.log("embed").count(" ready.") == 2, "both take messages")
    job_id = stack.answer("enqueue-rebuild", str(stack.products), SHARD_SIZE="2")["job_id"]
    assert stack.answer("status", job_id, "--wait", "--timeout", "120")["state"] == "published"
    assert stack.indexed() == good
    assert "is refused" in stack.log("embed")
    until(lambda: "64x64" in ill(stack, "embed"), "it says why it is unhealthy", 60)
    assert misconfigured.poll() is None


def test_a_job_that_the_only_worker_cannot_do_ends_with_a_sentence_for_who_waits(
    stack: LiveStack,
) -> None:
    draw_folder(stack.products, 4)
    stack.worker("embed", PREPROCESS_SIZE="64,64")
    stack.worker("index")
    done = stack.imgrec("enqueue-rebuild", str(stack.products), "--wait", "--timeout", "120")
    assert done.returncode == 1
    assert "Waiting: Worker embed@" in done.stderr  # at once
    assert "cannot do this job" in done.stderr
    assert "64x64" in done.stderr
    assert "224x224" in done.stderr
    assert "failed" in done.stdout
    assert not (stack.data / "faiss_index" / "CURRENT").exists()
    until(lambda: "64x64" in ill(stack, "embed"), "it says why it is unhealthy", 60)


@pytest.mark.slow
def test_a_query_worker_tells_of_its_batches_and_of_its_log(stack: LiveStack) -> None:
    good = draw_folder(stack.products, 6)
    stack.workers("embed", "index")
    stack.rebuild()
    query = stack.worker("query", IMGREC_FAILPOINT="query_log.write!end")
    until(lambda: ready(stack, "query"), "it takes messages", 60)
    stack.query(stack.products / good[0])
    until(lambda: ill(stack, "query") == "the thread 'query-log' is dead", "told", 60)
    os.killpg(query.pid, signal.SIGKILL)
    query.wait()
    until(
        lambda: health(stack, "query")[1] == {"alive": {}, "unhealthy": {}, "ill": {}},
        "it is gone, not ill",
        20,
    )

    stack.worker("query", IMGREC_FAILPOINT="batch!hang", HUNG_AFTER_S="3")
    draw_product(stack.folder / "unknown.jpg", seed=77)  # so that the model is asked
    stack.imgrec("query", str(stack.folder / "unknown.jpg"))
    until(lambda: "a batch of queries has not moved" in ill(stack, "query"), "told", 60)


def test_a_redis_that_is_away_makes_no_worker_ill(stack: LiveStack) -> None:
    stack.worker("embed", HUNG_AFTER_S="3")  # a loop that nobody expects to turn must not be blamed
    stack.worker("index")
    for queue in ("embed", "index"):
        until(lambda queue=queue: well(stack, queue), "it is well", 60)
    stack.kill_redis()
    until(lambda: "waiting for Redis" in stack.imgrec("health", "embed").stderr, "it is told", 60)
    # A worker that starts meanwhile is as well as they are.
    stack.worker("query")
    until(lambda: well(stack, "query"), "the new one is well", 60)
    before = {queue: touched(stack, queue) for queue in ("embed", "index", "query")}
    for queue, then in before.items():
        until(
            lambda queue=queue, then=then: touched(stack, queue) > then and well(stack, queue),
            "signs of life go on",
            60,
        )
    stack.start_redis()
    until(lambda: "waiting" not in stack.imgrec("health").stderr, "they are connected again", 60)
    assert stack.imgrec("health").returncode == 0


@pytest.fixture
def up(stack: LiveStack) -> Iterator[LiveStack]:
    """A stack whose workers `imgrec up` starts."""
    stack.kill_redis()
    yield stack
    stack.imgrec("down")


def start(stack: LiveStack, hung_s: float, **more: str) -> None:
    """Run `imgrec up` with another patience."""
    program = f"import cli.supervisor as s; s.HUNG_S, s.STOP_S = {hung_s}, 3.0; "
    program += "from cli.main import main; main(['up'])"
    with (stack.folder / "up-0.log").open("wb") as log:
        stack.processes.append(
            subprocess.Popen(
                [sys.executable, "-c", program],
                cwd=stack.folder,
                env=stack.env(**more),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        )
    until(lambda: "Ready." in stack.log("up"), "everything runs")


def pid_of(stack: LiveStack, name: str) -> int | None:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            names = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        mine = f"DATA_DIR={stack.data}".encode() in names
        if mine and any(word.startswith(f"{name}@".encode()) for word in words):
            return int(entry.name)
    return None


@pytest.mark.slow
def test_up_replaces_a_worker_that_is_frozen_and_the_job_ends(up: LiveStack) -> None:
    good = draw_folder(up.products, 60)
    once = up.folder / "once"
    more = {"IMGREC_FAILPOINT": "embed.after_claim!stop", "IMGREC_FAILPOINT_ONCE": str(once)}
    start(up, 13.0, **more)
    first = pid_of(up, "embed")
    job_id = up.answer("enqueue-rebuild", str(up.products))["job_id"]
    until(once.exists, "the worker froze with a shard in its hands", 60)
    until(lambda: "embed is unhealthy (no heartbeat for" in up.log("up"), "it is noticed", 60)
    assert up.answer("status", job_id, "--wait", "--timeout", "90")["state"] == "published"
    assert up.indexed() == good
    assert "embed ended (killed by SIGKILL)" in up.log("up")
    assert pid_of(up, "embed") != first
    for name in ("index", "query"):
        assert f"{name} is unhealthy" not in up.log("up")


@pytest.mark.slow
def test_up_replaces_a_worker_that_is_ill_and_leaves_those_that_wait_for_redis(
    up: LiveStack,
) -> None:
    once = up.folder / "once"
    more = {"IMGREC_FAILPOINT": "reconcile!end", "IMGREC_FAILPOINT_ONCE": str(once)}
    up.start_redis()
    start(up, 25.0, **more)
    first = {name: pid_of(up, name) for name in ("embed", "index", "query")}
    until(lambda: "index is unhealthy (the thread 'reconciler' is dead)" in up.log("up"), "told")
    until(lambda: pid_of(up, "index") not in (None, first["index"]), "another one runs")
    until(lambda: well(up, "index"), "it is well", 60)
    up.kill_redis()
    until(lambda: "waiting for Redis" in up.imgrec("health", "embed").stderr, "it is away", 60)
    signs = {name: touched_of_up(up, name) for name in ("embed", "query")}
    for name, then in signs.items():  # four signs: longer than `up` waits for one
        for _ in range(4):
            last = touched_of_up(up, name)
            until(lambda name=name, last=last: touched_of_up(up, name) > last, "a sign", 60)
        assert touched_of_up(up, name) > then
    assert {name: pid_of(up, name) for name in ("embed", "query")} == {
        name: first[name] for name in ("embed", "query")
    }
    up.start_redis()
    draw_folder(up.products, 6)
    assert up.rebuild()["state"] == "published"


def touched_of_up(stack: LiveStack, name: str) -> int:
    (file,) = (stack.data / "run").glob(f"{name}@*.alive")
    return file.stat().st_mtime_ns


@pytest.mark.slow
def test_up_with_its_real_patience_replaces_a_frozen_worker(up: LiveStack) -> None:
    assert up.imgrec("up", "--detach").returncode == 0
    first = pid_of(up, "query")
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    log = up.data / "run" / "up.log"
    until(lambda: "query is unhealthy (no heartbeat for" in log.read_text(), "noticed", 120)
    until(lambda: "query ended (killed by SIGKILL)" in log.read_text(), "it is killed", 60)
    until(lambda: pid_of(up, "query") not in (None, first), "another one runs", 60)
    until(lambda: well(up, "query"), "it is well", 120)
