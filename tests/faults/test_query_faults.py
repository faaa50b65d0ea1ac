"""Queries whose worker dies, that come beside broken ones, or while the index changes."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import Celery
from faults.fault_run import FaultRun
from live_stack import LiveStack, draw_product, until

CLIENTS, VERSIONS = 32, 20
ANSWER_S = 60.0


def ask(app: Celery, picture: bytes, top_k: int) -> Any:
    """Send a query as the command line does."""
    return app.send_task(
        "imgrec.query_image", args=(picture, top_k), queue="query", serializer="msgpack"
    )


def published(fault_run: FaultRun) -> LiveStack:
    """Return the stack of the run with 20 products indexed."""
    fault_run.draw(20)
    fault_run.stack.workers("embed", "index")
    fault_run.publishes(fault_run.enqueue())
    return fault_run.stack


@pytest.mark.fault(22, "kill -9 of a query worker at {line}, while the command waits")
@pytest.mark.short("query.start")
@pytest.mark.parametrize("line", ["query.start", "query.before_answer"])
def test_a_query_lost_with_its_worker_is_answered_by_another(
    fault_run: FaultRun, line: str
) -> None:
    stack = published(fault_run)
    victims = [stack.worker("query", **fault_run.armed(line)) for _ in range(2)]
    name = fault_run.rng.choice(fault_run.good)
    fault_run.hit()
    answer = stack.query(stack.products / name)
    fault_run.recovered()
    assert answer["matches"][0]["filename"] == name
    assert sum(victim.poll() == -signal.SIGKILL for victim in victims) == 1


@pytest.mark.fault(22, "kill -9 of each of two query workers at its first query")
def test_a_query_lost_with_each_of_its_workers_is_answered_once_they_are_back(
    fault_run: FaultRun,
) -> None:
    stack = published(fault_run)
    victims = []
    for number in range(2):
        once = {"IMGREC_FAILPOINT_ONCE": str(stack.folder / f"once-{number}")}
        victims.append(stack.supervise("query", IMGREC_FAILPOINT="query.start", **once))
    name = fault_run.rng.choice(fault_run.good)
    fault_run.hit()
    assert stack.query(stack.products / name)["matches"][0]["filename"] == name
    fault_run.recovered()
    # Two where the second message goes to the other worker, and not to the first, started again.
    assert sum(victim.restarts for victim in victims) in (1, 2)


@pytest.mark.fault(22, "kill -9 of the only query worker, while the command waits")
def test_a_query_that_nobody_can_answer_is_a_sentence_and_leaves_no_listener(
    fault_run: FaultRun,
) -> None:
    stack = published(fault_run)
    victim = stack.worker("query", **fault_run.armed("query.start"))
    fault_run.hit()
    done = stack.imgrec("query", str(stack.products / fault_run.good[0]), "--wait")
    fault_run.recovered()
    assert victim.poll() == -signal.SIGKILL
    assert done.returncode == 4
    assert "No worker listens on queue 'query'" in done.stderr
    assert "Traceback" not in done.stderr
    assert stack.redis().pubsub_channels("imgrec:celery-task-meta-*") == []


@pytest.mark.fault(23, "one broken picture among 16 queries at once")
@pytest.mark.short
def test_one_bad_query_fails_alone(fault_run: FaultRun) -> None:
    fault_run.draw(20)
    stack = fault_run.stack
    stack.workers("embed", "index", "query")
    fault_run.publishes(fault_run.enqueue())
    names = fault_run.good[:16]
    bad = fault_run.rng.randrange(16)
    app = stack.sender()
    fault_run.hit()
    asked = []
    for number, name in enumerate(names):
        data = (stack.products / name).read_bytes()
        if number == bad:
            place = len(data) // 2
            data = data[:place]
        asked.append(ask(app, data, 3))
    for number, (name, pending) in enumerate(zip(names, asked, strict=True)):
        if number == bad:
            with pytest.raises(Exception, match="cut off"):
                pending.get(timeout=ANSWER_S)
        else:
            assert pending.get(timeout=ANSWER_S)["matches"][0]["filename"] == name
    fault_run.recovered()


def id_map(stack: LiveStack) -> tuple[str, frozenset[str]]:
    version = (stack.data / "faiss_index" / "CURRENT").read_text().strip()
    file = stack.data / "faiss_index" / version / "id_to_filename.json"
    return version, frozenset(json.loads(file.read_bytes()).values())


@pytest.mark.fault(27, f"{VERSIONS} versions published under {CLIENTS} query clients")
def test_queries_during_publications_get_whole_versions_and_none_fails(fault_run: FaultRun) -> None:
    stack = published(fault_run)
    stack.worker("query")
    pictures = [(stack.products / name).read_bytes() for name in fault_run.good]
    ended = threading.Event()

    def client(number: int) -> list[tuple[str, frozenset[str]]]:
        """Ask until the last version is out; return what each answer named and held."""
        app, answers, turn = stack.sender(), [], number
        while not ended.is_set():
            turn += 1
            found = ask(app, pictures[turn % len(pictures)], 100).get(timeout=ANSWER_S)
            names = [match["filename"] for match in found["matches"]]
            assert len(names) == len(set(names))
            answers.append((found["index_version"], frozenset(names)))
        return answers

    versions = dict([id_map(stack)])
    fault_run.hit()
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(client, number) for number in range(CLIENTS)]
        try:
            for number in range(1, VERSIONS):
                # One product comes and one goes: each version has a set of its own.
                draw_product(
                    stack.products / "kind0" / f"new-{number}.jpg", fault_run.seed + number
                )
                fault_run.good.append(f"kind0/new-{number}.jpg")
                gone = fault_run.good.pop(fault_run.rng.randrange(10))
                (stack.products / gone).unlink()
                fault_run.publishes(fault_run.enqueue())
                versions |= dict([id_map(stack)])
        finally:
            ended.set()
        answers = [answer for each in clients for answer in each.result()]
    fault_run.recovered()
    assert len(versions) == VERSIONS
    for version, names in answers:
        assert names == versions[version], f"an answer that is no answer of {version}"
    # Most versions live a second or two: queries have met more than the first and the last.
    assert len({version for version, _ in answers}) > VERSIONS // 2


@pytest.mark.fault(7, "SIGSTOP of a query worker with a query in its hands")
def test_a_query_in_a_frozen_worker_is_answered_by_another(fault_run: FaultRun) -> None:
    stack = published(fault_run)
    frozen = stack.worker("query", **fault_run.armed("query.start!stop"))
    until(lambda: "ready" in stack.log("query"), "it takes queries")
    stack.supervise("query")
    until(lambda: stack.log("query").count("ready") == 2, "and another one")
    app, name = stack.sender(), fault_run.good[0]
    picture = (stack.products / name).read_bytes()
    # Both workers are asked until the armed one has met its line.
    while not fault_run.once.exists():
        ask(app, picture, 1)
        time.sleep(0.05)
    fault_run.hit()
    answer = stack.query(stack.products / name)
    fault_run.recovered()
    assert answer["matches"][0]["filename"] == name
    os.killpg(frozen.pid, signal.SIGCONT)
