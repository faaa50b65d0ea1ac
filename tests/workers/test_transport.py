"""What a worker accepts from Redis, before Celery sees it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from workers import lifecycle, transport

assert lifecycle  # imports every task


def envelope() -> dict[str, Any]:
    """Return a message as the command line sends it."""
    return {
        "headers": {
            "id": "0f1e-2d",
            "task": "imgrec.embed_shard",
            "timelimit": [None, None],
            "stamps": {},
            "expires": "2026-01-01T00:00:00+00:00",
            "retries": 0,
            "traceparent": "added by a tracing tool",
        },
        "properties": {
            "delivery_tag": "tag",
            "delivery_info": {"routing_key": "embed"},
            "body_encoding": "base64",
        },
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "body": "e30=",
    }


def test_a_valid_message_passes_and_loses_the_headers_that_nobody_reads() -> None:
    message = envelope()
    transport.check_envelope(message, "embed")
    assert "traceparent" not in message["headers"]
    assert message["headers"]["id"] == "0f1e-2d"


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "headers": lambda m: m.update(headers=["a"]),
    "properties": lambda m: m.pop("properties"),
    "headers.id": lambda m: m["headers"].pop("id"),
    "headers.id: String": lambda m: m["headers"].update(id="id\nof two lines\n"),
    "headers.task": lambda m: m["headers"].update(task="celery.chain"),
    "headers.eta": lambda m: m["headers"].update(eta="2030-01-01T00:00:00"),
    "headers.expires: it is not an ISO 8601 time": lambda m: m["headers"].update(expires="soon"),
    "headers.timelimit": lambda m: m["headers"].update(timelimit=[1, None]),
    "headers.stamps": lambda m: m["headers"].update(stamps={"a": 1}),
    "headers.retries": lambda m: m["headers"].update(retries="1"),
    "headers.origin": lambda m: m["headers"].update(origin="x" * 10_001),
    "compressed": lambda m: m["headers"].update(compression="gzip"),
    "properties.delivery_tag": lambda m: m["properties"].pop("delivery_tag"),
    "properties.body_encoding": lambda m: m["properties"].update(body_encoding="utf-8"),
    "content-type": lambda m: m.pop("content-type"),
    "body": lambda m: m.update(body=["e30="]),
    "bytes, the limit is": lambda m: m.update(body="A" * (transport.MAX_BODY + 1)),
    "does not belong to queue": lambda m: m["headers"].update(task="imgrec.query_image"),
}


@pytest.mark.parametrize("reason", CHANGES)
def test_a_message_that_imgrec_does_not_send_is_refused_with_the_reason(reason: str) -> None:
    message = envelope()
    CHANGES[reason](message)
    with pytest.raises(transport.Refused, match=reason):
        transport.check_envelope(message, "embed")


@pytest.mark.parametrize("message", [None, [], "text", 7])
def test_what_is_not_an_object_is_refused(message: Any) -> None:
    with pytest.raises(transport.Refused):
        transport.check_envelope(message, "embed")


def control(command: Any) -> dict[str, Any]:
    return {"body": base64.b64encode(json.dumps({"method": command}).encode()).decode()}


def test_only_remote_control_that_inspects_is_accepted() -> None:
    for command in ("ping", "active_queues", "stats"):
        transport.check_control(control(command))
    for command in ("shutdown", "pool_grow", "revoke", "add_consumer", "unknown", None, ["ping"]):
        with pytest.raises(transport.Refused):
            transport.check_control(control(command))
    for body in ("", "not base64!", base64.b64encode(b"[]").decode(), 3):
        with pytest.raises(transport.Refused):
            transport.check_control({"body": body})


def test_only_what_is_a_reply_comes_by_the_queue_of_replies() -> None:
    def body(content: Any) -> dict[str, Any]:
        return {"body": base64.b64encode(json.dumps(content).encode()).decode()}

    transport.check_reply(body({"query@host": [{"name": "query"}]}))
    for content in ([], "x", None, {"method": "shutdown"}):
        with pytest.raises(transport.Refused):
            transport.check_reply(body(content))
    for broken in ({}, {"body": "not base64!"}, {"body": 3}):
        with pytest.raises(transport.Refused):
            transport.check_reply(broken)


def test_a_command_that_a_monitor_repeats_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Flower asks each worker for task events every five seconds."""
    doorman = transport.Transport(SimpleNamespace(transport_options={}))
    for _ in range(3):
        for queue in ("embed@host.celery.pidbox", "embed"):
            doorman._refuse(control("enable_events"), queue, transport.Refused("not accepted"))
    lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert sum("pidbox" in line for line in lines) == 1
    assert sum("Queue embed:" in line for line in lines) == 3
