"""Redis dies at any instant: each question ends with its answer or a sentence, and none after."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from faults.proxy import Proxy
from live_stack import LiveStack, until

from pipeline.errors import Overloaded, ServerUnavailable, TimedOut
from web.answers import Answers
from web.shared_call import SharedCall
from workers.query_messages import QUEUE_KEY, result_key

CLIENTS = 32
STORM_S = 12.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveStack]:
    stack = LiveStack(tmp_path, tmp_path)
    stack.start_redis()
    yield stack
    stack.close()


class Worker:
    """Answers questions in a thread, as a query worker stores and publishes its results."""

    def __init__(self, server: LiveStack) -> None:
        self._redis = server.redis()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Worker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._ended.is_set():
            try:
                self._answer()
            except redis.RedisError:
                time.sleep(0.02)

    def _answer(self) -> None:
        message = self._redis.brpop([QUEUE_KEY], timeout=1)
        if message is not None:
            query_id = json.loads(message[1])["headers"]["id"]
            result = json.dumps({"status": "SUCCESS", "result": query_id})
            self._redis.set(result_key(query_id), result, ex=60)
            self._redis.publish(result_key(query_id), result)


def storm(server: LiveStack) -> None:
    """Kill Redis and start it again at random."""
    rng, end = random.Random(17), time.monotonic() + STORM_S
    while time.monotonic() < end:
        time.sleep(rng.uniform(0.02, 1.2))
        server.kill_redis()
        time.sleep(rng.choice([0, 0, 0.05, 0.5]))
        server.start_redis()


def make_answers(server: LiveStack, url: str = "") -> Answers:
    def look(patience_s: float) -> Counter[str]:
        return Counter(query=1)

    url = url or server.environment["REDIS_URL"]
    return Answers(url, look, lambda: True, 2 * CLIENTS)


def test_whenever_redis_dies_a_question_ends_with_its_answer_or_a_sentence(
    server: LiveStack,
) -> None:
    answers = make_answers(server)
    weather = threading.Thread(target=storm, args=(server,))
    outcomes = Counter[str]()

    async def ask_until_the_end() -> None:
        while weather.is_alive():
            try:
                query_id, result = await answers.ask("task", (1,), 10.0)
                assert result == query_id
                outcomes["answered"] += 1
            except (ServerUnavailable, TimedOut):  # anything else is a bug
                outcomes["refused"] += 1
                await asyncio.sleep(0.05)

    async def run() -> None:
        listener = asyncio.create_task(answers.run())
        weather.start()
        await asyncio.gather(*(ask_until_the_end() for _ in range(CLIENTS)))
        for _ in range(3):  # and the server is not deaf afterwards
            query_id, result = await answers.ask("task", (1,), 60.0)
            assert result == query_id
        assert answers.waiting == 0
        listener.cancel()
        await answers.close()

    with Worker(server):
        asyncio.run(run())
    assert outcomes["answered"] > CLIENTS
    assert outcomes["refused"] > 0


def test_an_answer_that_came_while_nobody_listened_is_heard(server: LiveStack) -> None:
    answers = make_answers(server)

    async def run() -> None:
        question = asyncio.create_task(answers.ask("task", (1,), 60.0))
        message = None
        while message is None:
            message = await asyncio.to_thread(server.redis().rpop, QUEUE_KEY)
        query_id = json.loads(message)["headers"]["id"]
        result = json.dumps({"status": "SUCCESS", "result": "early"})
        await asyncio.to_thread(server.redis().set, result_key(query_id), result)
        listener = asyncio.create_task(answers.run())
        assert await question == (query_id, "early")
        listener.cancel()
        await answers.close()

    asyncio.run(run())


def test_a_connection_that_went_silent_is_given_up_and_its_answers_are_read(
    server: LiveStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A firewall that forgets a connection tells nobody: TCP takes a quarter of an hour."""
    monkeypatch.setattr("web.answers.HEALTH_S", 0.2)
    monkeypatch.setattr("web.answers.DEAD_S", 0.4)
    monkeypatch.setattr("web.answers.COMMAND_S", 1.0)
    monkeypatch.setattr("workers.answer_wait.LOOK_AGAIN_S", 1000.0)  # so the listener must hear
    proxy = Proxy(server.port)
    address = server.environment["REDIS_URL"].replace(f":{server.port}/", f":{proxy.port}/")
    answers = make_answers(server, address)

    async def ask() -> None:
        query_id, result = await asyncio.wait_for(answers.ask("task", (1,), 600.0), 30)
        assert result == query_id

    async def run() -> None:
        listener = asyncio.create_task(answers.run())
        await ask()
        for _ in range(2):
            assert proxy.silence() >= 2
            with pytest.raises(ServerUnavailable):  # the connection for commands, as silent
                await ask()
            await ask()
        listener.cancel()
        await answers.close()

    with Worker(server):
        asyncio.run(run())
    proxy.close()


def test_an_answer_is_read_when_the_listener_is_deaf(server: LiveStack) -> None:
    answers = make_answers(server)

    async def run() -> None:
        assert (await answers.ask("task", (1,), 2.0))[1]  # nobody runs `answers.run`
        await answers.close()

    with Worker(server):
        asyncio.run(run())


def test_a_question_that_nobody_answers_ends_in_time_and_more_are_refused(
    server: LiveStack,
) -> None:
    answers = make_answers(server)

    async def run() -> None:
        listener = asyncio.create_task(answers.run())
        questions = [
            asyncio.create_task(answers.ask("task", (1,), 1.0)) for _ in range(2 * CLIENTS)
        ]
        await asyncio.sleep(0)  # all wait
        with pytest.raises(Overloaded, match=f"already serves {2 * CLIENTS} queries"):
            await answers.ask("task", (1,), 1.0)
        ended = await asyncio.gather(*questions, return_exceptions=True)
        assert {type(each) for each in ended} == {TimedOut}
        listener.cancel()
        await answers.close()

    asyncio.run(run())


def test_who_asks_meanwhile_shares_a_look_and_its_error() -> None:
    looks: list[int] = []
    release = threading.Event()

    def look() -> int:
        looks.append(1)
        release.wait(30)
        if len(looks) == 1:
            raise ServerUnavailable("away")
        return len(looks)

    async def run() -> None:
        shared = SharedCall(look, kept_s=0.0)
        first = [asyncio.create_task(shared.get()) for _ in range(5)]
        await asyncio.to_thread(until, lambda: looks, "somebody looks", 10)
        first[0].cancel()  # a client that went away
        release.set()
        ended = await asyncio.gather(*first, return_exceptions=True)
        assert isinstance(ended[0], asyncio.CancelledError)
        assert [str(each) for each in ended[1:]] == ["away"] * 4
        assert await shared.get() == 2

    asyncio.run(run())
