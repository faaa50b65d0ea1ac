"""The way of a question: what is put into Redis is Celery's, and every answer finds its asker."""

from __future__ import annotations

import subprocess
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from inline_worker import InlineWorker
from live_stack import LiveStack, until

from cli import celery_protocol
from pipeline.errors import BadImage, ServerUnavailable
from pipeline.settings import load_settings
from workers.query_messages import RemoteError
from workers.routes import FORM_HEADER

ANSWER = {"matches": [{"rank": 1, "product_id": "häßlich"}]}


@pytest.fixture
def stack(
    inline_worker: InlineWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LiveStack]:
    """A Redis alone; this process is its client."""
    stack = LiveStack(tmp_path / "stack", tmp_path)
    stack.folder.mkdir()
    stack.start_redis()
    monkeypatch.setenv("REDIS_URL", stack.environment["REDIS_URL"])
    load_settings.cache_clear()
    yield stack
    while celery_protocol._idle:
        celery_protocol._idle.pop().close()
    stack.close()


def store(stack: LiveStack, query_id: str, result: Any, state: str = "SUCCESS") -> None:
    """Store a result as a worker does."""
    stack.sender().backend.store_result(query_id, result, state)


def wait(query_id: str, seconds: float = 10.0) -> Any:
    with celery_protocol.listening(query_id) as listener:
        return listener.wait(seconds)


def test_celery_reads_the_message_as_one_of_its_own(stack: LiveStack) -> None:
    celery_protocol.send("imgrec.query_image", "the-id", (b"\xff\x00", 5, {"text": "ä"}), 60.0)
    app: Celery = stack.sender()
    with app.connection_for_read() as connection:
        message = connection.SimpleQueue("query", accept=["msgpack"]).get(timeout=5)
        args, kwargs, more = message.decode()
        message.ack()
    assert (args, kwargs) == ([b"\xff\x00", 5, {"text": "ä"}], {})
    assert not any(more.values())
    own = app.amqp.as_task_v2("the-id", "imgrec.query_image", (b"\xff\x00", 5), expires=60.0)
    same = {"task", "id", "root_id", "lang", "retries", "timelimit", "ignore_result"}
    assert {key: message.headers[key] for key in same} == {key: own.headers[key] for key in same}
    # Both say the time in UTC, a moment apart.
    assert message.headers["expires"][:13] == own.headers["expires"][:13]
    assert message.headers["expires"][-6:] == own.headers["expires"][-6:] == "+00:00"
    # Ours says when it was sent; Celery passes on headers that it does not know.
    assert message.headers.keys() - {"sent_at", FORM_HEADER} <= own.headers.keys()
    assert message.properties["correlation_id"] == own.properties["correlation_id"]


@pytest.mark.parametrize("after", [False, True])
def test_an_answer_is_found_whether_it_came_before_or_comes_after(
    stack: LiveStack, after: bool
) -> None:
    late = threading.Timer(0.5 if after else 0.0, store, (stack, "the-id", ANSWER))
    late.start()
    if not after:
        late.join()
    start = time.monotonic()
    assert wait("the-id", 60.0) == ANSWER
    assert time.monotonic() - start < 30  # it was heard, not found when the wait had ended
    late.join()
    assert wait("the-id", 0.0) == ANSWER


def test_a_wait_in_vain_is_none_and_a_task_that_runs_is_no_answer(stack: LiveStack) -> None:
    store(stack, "the-id", None, "STARTED")
    assert wait("the-id", 0.2) is None


def test_a_connection_serves_one_question_after_the_other(stack: LiveStack) -> None:
    channels = stack.redis().pubsub_channels
    for number in range(5):
        store(stack, f"id-{number}", number)
        assert wait(f"id-{number}") == number
    # A word about an earlier question that comes late is none for the next one.
    with celery_protocol.listening("id-9") as listener:
        assert listener.wait(0.2) is None
        stack.redis().publish("imgrec:celery-task-meta-id-0", b"{}")
        store(stack, "id-9", "mine")
        assert listener.wait(10) == "mine"
    until(lambda: channels("imgrec:*") == [], "nothing is listened to")
    assert len(celery_protocol._idle) == 1


def test_our_errors_come_back_as_they_were_and_others_as_remote_errors(stack: LiveStack) -> None:
    store(stack, "bad", BadImage("it is cut off", "read"), "FAILURE")
    with pytest.raises(BadImage, match="it is cut off") as error:
        wait("bad")
    assert error.value.stage == "read"
    try:
        raise ZeroDivisionError("by nothing")
    except ZeroDivisionError as bug:
        trace = traceback.format_exc()
        stack.sender().backend.store_result("bug", bug, "FAILURE", traceback=trace)
    with pytest.raises(RemoteError, match=r"^ZeroDivisionError: by nothing$") as other:
        wait("bug")
    assert other.value.traceback == trace
    evil = {"exc_type": "system", "exc_module": "os", "exc_message": ["touch /tmp/evil"]}
    meta = {"status": "FAILURE", "result": evil}
    stack.redis().set("imgrec:celery-task-meta-evil", stack.sender().backend.encode(meta))
    with pytest.raises(RemoteError, match=r"^system: touch /tmp/evil$") as fake:
        wait("evil")
    assert fake.value.traceback == ""


def test_a_redis_that_restarts_meanwhile_was_never_away(stack: LiveStack) -> None:
    assert wait("warm", 0.1) is None
    with celery_protocol.listening("the-id") as listener:
        assert listener.wait(0.2) is None
        stack.kill_redis()
        back = threading.Timer(1.0, lambda: (stack.start_redis(), store(stack, "the-id", ANSWER)))
        back.start()
        assert listener.wait(60.0) == ANSWER
        back.join()


def test_a_redis_that_stays_away_is_a_sentence(
    stack: LiveStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(celery_protocol, "AWAY_S", 0.5)
    with celery_protocol.listening("the-id") as listener:
        assert listener.wait(0.2) is None
        stack.kill_redis()
        with pytest.raises(ServerUnavailable, match="Redis does not answer"):
            listener.wait(60.0)
    with pytest.raises(ServerUnavailable, match="Redis does not answer"):
        celery_protocol.send("imgrec.query_image", "the-id", (b"", 5), 60.0)


def test_a_look_without_waiting_says_at_once_that_redis_is_away(
    stack: LiveStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_pause(seconds: float) -> None:
        raise AssertionError(f"it waits for {seconds} s")

    stack.kill_redis()
    monkeypatch.setattr(celery_protocol.time, "sleep", no_pause)
    with pytest.raises(ServerUnavailable, match="Redis does not answer"):
        wait("the-id", 0.0)


def test_a_redis_that_says_nothing_is_given_up(
    stack: LiveStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(celery_protocol, "ANSWER_S", 0.5)
    monkeypatch.setattr(celery_protocol, "AWAY_S", 0.5)
    celery_protocol._connected.cache_clear()
    assert stack.server is not None
    subprocess.run(["kill", "-STOP", str(stack.server.pid)], check=True)
    try:
        with pytest.raises(ServerUnavailable):
            celery_protocol.send("imgrec.query_image", "the-id", (b"", 5), 60.0)
        with pytest.raises(ServerUnavailable):
            wait("the-id", 1.0)
    finally:
        subprocess.run(["kill", "-CONT", str(stack.server.pid)], check=True)
        celery_protocol._connected.cache_clear()


def test_a_full_redis_takes_no_question_and_says_so(stack: LiveStack) -> None:
    stack.redis().config_set("maxmemory", "1mb")
    stack.redis().config_set("maxmemory-policy", "noeviction")
    with pytest.raises(ServerUnavailable, match="is full"):
        celery_protocol.send("imgrec.query_image", "the-id", (bytes(900_000), 5), 60.0)


def test_a_wrong_password_is_not_waited_for(
    stack: LiveStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.redis().config_set("requirepass", "right")
    start = time.monotonic()
    for ask in (lambda: celery_protocol.send("t", "i", (), 60.0), lambda: wait("i", 60.0)):
        with pytest.raises(ServerUnavailable, match="refuses the login"):
            ask()
    assert time.monotonic() - start < celery_protocol.AWAY_S
