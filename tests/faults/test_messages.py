"""Mutated task messages against live workers: each is answered by an error, and no worker ends."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fuzz_messages import NOTHING_MORE, Sent, envelope, mutated
from kombu import Connection
from live_stack import LiveStack, draw_folder, draw_product, until
from preloaded import Process

from pipeline import errors
from pipeline.errors import WrongUse
from workers import transport
from workers.routes import QUEUE_OF, QUEUES

LIMIT = 2 * 1024**3
AT_ONCE = 500


@contextmanager
def workers(stack: LiveStack) -> Iterator[None]:
    """A worker of each queue; none ends, none goes beyond its memory, all work afterwards."""
    stack.environment["WORKER_MAX_MEMORY"] = "2GiB"
    names = draw_folder(stack.products, 12)
    started = [stack.worker(queue) for queue in QUEUES]
    stack.rebuild()
    yield
    for queue in QUEUE_OF.values():
        until(lambda queue=queue: not stack.redis().llen(f"imgrec:{queue}"), "all is taken")
    answer = stack.query(stack.products / names[3])
    assert answer["matches"][0]["filename"] == names[3]
    draw_product(stack.products / "kind0" / "new.jpg", seed=901)
    assert stack.rebuild()["state"] == "published"
    assert len(stack.indexed()) == 13
    for worker in started:
        assert worker.poll() is None, "a worker has ended"
        assert peak(worker) < LIMIT
    # A message that was taken but not acknowledged would come back in a minute, for ever.
    until(lambda: not stack.redis().hlen("imgrec:unacked"), "nothing is left to come back", 20)


def peak(worker: Process) -> int:
    """The most memory that a process has held: the kernel keeps count."""
    status = Path(f"/proc/{worker.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def stored(stack: LiveStack, ids: list[str], patience_s: float) -> dict[str, dict[str, Any]]:
    """Wait until each id has an answer; return them as Celery stores them."""
    found: dict[str, dict[str, Any]] = {}

    def all_there() -> bool:
        missing = [each for each in ids if each not in found]
        raw = stack.redis().mget([f"imgrec:celery-task-meta-{each}" for each in missing])
        there = {each: json.loads(data) for each, data in zip(missing, raw, strict=True) if data}
        found.update(there)
        return len(found) == len(set(ids))

    try:
        until(all_there, "every message is answered", patience_s)
    except AssertionError as error:
        raise AssertionError(f"no answer: {sorted(set(ids) - set(found))}") from error
    return found


def answered(stack: LiveStack, messages: list[Sent], patience_s: float = 120) -> None:
    """Put messages into their queues; each with an id gets an error that can be read."""
    pipe = stack.redis().pipeline(transaction=False)
    for message in messages:
        pipe.lpush(f"imgrec:{message.queue}", message.raw)
    pipe.execute()
    by_id = {message.task_id: message for message in messages if message.task_id}
    for task_id, answer in stored(stack, list(by_id), patience_s).items():
        told = (by_id[task_id].kind, by_id[task_id].raw[:2000], answer)
        if by_id[task_id].kind == "raw" and answer["status"] == "SUCCESS":
            continue  # a flipped bit may mend a call
        assert answer["status"] == "FAILURE", told
        name = answer["result"]["exc_type"]
        assert name == "NotRegistered" or issubclass(getattr(errors, name, int), WrongUse), told
        assert 8 < len(str(answer["result"]["exc_message"])) < 700, told


def send_mutated(stack: LiveStack, seed: int, count: int) -> None:
    trap = stack.folder / "trap"
    with workers(stack):
        picture = next(stack.products.rglob("*.jpg")).read_bytes()
        job_id = stack.answer("jobs")["jobs"][0]["job_id"]
        messages = list(mutated(seed, count, picture, job_id, trap))
        assert sum(message.task_id is not None for message in messages) > count / 2
        for start in range(0, count, AT_ONCE):
            answered(stack, messages[start : start + AT_ONCE])
    assert not trap.exists(), "code from a message was run"
    assert "Refusing to deserialize" in stack.log("query")
    assert "Refused a message: it is not a JSON object" in stack.log("query")


def test_mutated_messages_are_answered_by_errors_and_no_worker_ends(stack: LiveStack) -> None:
    send_mutated(stack, seed=1, count=300)


@pytest.mark.slow
def test_5_000_mutated_messages(stack: LiveStack) -> None:
    send_mutated(stack, seed=5_000, count=5_000)


@pytest.mark.parametrize(
    "queues", [("query",), pytest.param(QUEUES, marks=pytest.mark.slow)], ids=["query", "all"]
)
def test_bodies_of_50_mb_are_answered_and_larger_ones_dropped_unread(
    stack: LiveStack, queues: tuple[str, ...]
) -> None:
    with workers(stack):
        # One task of each queue: bodies are read before anybody asks which task it is.
        tasks = {queue: task for task, queue in QUEUE_OF.items()}
        for queue, task in ((queue, tasks[queue]) for queue in queues):
            for serializer in ("msgpack", "json"):
                data = "x" * 50_000_000
                message = envelope(task, queue, [[data, 3], {}, NOTHING_MORE], serializer)
                raw = json.dumps(message).encode()
                answered(stack, [Sent("large", queue, raw, message["headers"]["id"])])
        stack.redis().lpush("imgrec:query", b'"' + base64.b64encode(bytes(90_000_000)) + b'"')
        until(lambda: "bytes unread" in stack.log("query"), "the giant is dropped")


def test_a_broadcast_shutdown_is_refused_and_inspection_answered(stack: LiveStack) -> None:
    """Whoever can write to Redis could end every worker at once."""
    with workers(stack):
        control = stack.sender().control
        for command in ("shutdown", "pool_shrink", "rate_limit", "no_such_command"):
            control.broadcast(command)
        until(lambda: stack.log("query").count("Queue query-") >= 4, "the refusals")
        assert "the remote control command 'shutdown' is not accepted" in stack.log("query")
        replies = control.inspect(timeout=5).active_queues()
        assert {queue["name"] for queues in replies.values() for queue in queues} >= {"query"}


def test_a_worker_hears_what_other_workers_answer(
    stack: LiveStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it ends a job that it cannot do, it asks who else is there."""
    with workers(stack):
        for scheme in ("redis", "rediss"):  # monkeypatch undoes what `install` does
            monkeypatch.setitem(transport.transport.TRANSPORT_ALIASES, scheme, "")
            monkeypatch.delitem(transport.transport._transport_cache, scheme, raising=False)
        transport.install()
        replies = stack.sender().control.inspect(timeout=5).active_queues()
        assert {queue["name"] for queues in replies.values() for queue in queues} >= {"query"}
        transport.transport._transport_cache.pop("redis", None)


def test_a_message_whose_connection_was_lost_is_acknowledged_by_an_error_that_celery_knows(
    stack: LiveStack, caplog: pytest.LogCaptureFixture
) -> None:
    """Any other error ends the worker: a task may start while the connection is made anew."""
    for _ in range(2):
        stack.sender().send_task("imgrec.query_image", args=("x", 3), queue="query")
    prefix = {"global_keyprefix": "imgrec:"}
    url = f"redis://127.0.0.1:{stack.port}/0"
    connection = Connection(url, transport=transport.Transport, transport_options=prefix)
    first, second = (connection.default_channel.basic_get("query") for _ in range(2))
    known = connection.connection_errors
    connection.release()
    first.ack_log_error(logging.getLogger(), known)
    second.reject_log_error(logging.getLogger(), known)
    assert caplog.text.count("the connection that this message came by was lost") >= 2
