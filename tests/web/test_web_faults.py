"""Redis, the database or the query worker dies under requests: each request ends, and says why."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from live_stack import LiveStack, until
from web_stand import Answer, WebServer, shop, start_web

CLIENTS = 32


@pytest.fixture
def stack(tmp_path: Path, model: Path) -> Iterator[LiveStack]:
    yield from shop(tmp_path / "shop", model)


@pytest.fixture
def web(stack: LiveStack) -> WebServer:
    return start_web(stack, RATE_LIMIT="0", WEB_TIMEOUT_S="20")


def crowd(web: WebServer, enough: threading.Event) -> list[Future[list[Answer]]]:
    """Let many clients ask without a pause; each question is one that no cache knows."""

    def ask(number: int) -> list[Answer]:
        answers = []
        while not enough.is_set():
            answers.append(web.search(text=f"shoe {number} {len(answers)}", limit=3))
            if answers[-1].status != 200:
                time.sleep(0.2)
        return answers

    pool = ThreadPoolExecutor(CLIENTS)
    return [pool.submit(ask, number) for number in range(CLIENTS)]


def settle(clients: list[Future[list[Answer]]]) -> Counter[int]:
    """Wait for all clients; return how often each status came, every error a problem."""
    answers = [answer for client in clients for answer in client.result(120)]
    for answer in answers:
        if answer.status != 200:
            assert answer.detail
            if answer.status == 503:
                assert int(answer.headers["Retry-After"]) > 0
    statuses = Counter(answer.status for answer in answers)
    assert statuses.keys() <= {200, 503, 504}, statuses
    assert statuses[200] > 0
    return statuses


def readiness(web: WebServer) -> tuple[int, list[str]]:
    answer = web.get("/readyz")
    return answer.status, answer.json["missing"]


def test_redis_is_killed_and_back(web: WebServer, stack: LiveStack) -> None:
    assert readiness(web) == (200, [])
    enough = threading.Event()
    clients = crowd(web, enough)
    time.sleep(1)
    stack.kill_redis()
    until(lambda: "redis" in readiness(web)[1], "it is not ready", 30)
    assert web.get("/healthz").status == 200
    time.sleep(2)
    stack.start_redis()
    until(lambda: readiness(web) == (200, []), "it is ready again", 60)
    time.sleep(1)
    enough.set()
    settle(clients)
    assert web.search(text="boot").status == 200


def test_the_query_worker_is_killed_under_its_queries(web: WebServer, stack: LiveStack) -> None:
    worker = stack.processes[2]
    enough = threading.Event()
    clients = crowd(web, enough)
    time.sleep(1)
    os.killpg(worker.pid, signal.SIGKILL)
    until(lambda: readiness(web) == (503, ["query_worker"]), "it is not ready", 30)
    stack.worker("query")
    until(lambda: readiness(web) == (200, []), "it is ready again", 60)
    time.sleep(1)
    enough.set()
    settle(clients)
    assert web.search(text="boot").status == 200


def test_without_a_query_worker_each_request_ends_with_a_sentence(
    web: WebServer, stack: LiveStack
) -> None:
    os.killpg(stack.processes[2].pid, signal.SIGKILL)
    answer = web.search(text="boot")
    assert answer.status == 503
    assert "No worker listens on queue 'query'" in answer.detail


def test_the_database_is_lost_and_back(web: WebServer, stack: LiveStack) -> None:
    assert web.search(text="boot").status == 200  # it has read the keys: there are none
    file = stack.data / "app.db"
    away = stack.data / "away"
    away.mkdir()
    moved = [each.rename(away / each.name) for each in stack.data.glob("app.db*")]
    file.mkdir()  # nothing can be opened under this name
    until(lambda: readiness(web)[1] == ["database"], "it is not ready", 60)
    answer = web.get("/v1/jobs")
    assert answer.status == 503
    assert str(stack.folder) not in answer.detail
    assert web.search(text="boot").status == 200  # queries need no database
    file.rmdir()
    for each in moved:
        each.rename(stack.data / each.name)
    until(lambda: readiness(web) == (200, []), "it is ready again", 60)
    assert web.get("/v1/jobs").status == 200


def test_without_an_index_it_says_so(tmp_path: Path, model: Path) -> None:
    stack = LiveStack(tmp_path / "empty", model)
    stack.folder.mkdir()
    stack.start_redis()
    try:
        stack.workers("query")
        web = start_web(stack)
        until(lambda: readiness(web) == (503, ["index"]), "only the index is missing", 60)
        answer = web.search(text="boot")
        assert (answer.status, "enqueue-rebuild" in answer.detail) == (503, True)
    finally:
        stack.close()
