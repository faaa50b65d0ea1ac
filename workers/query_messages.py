"""The messages of queries and their stored results: Celery's protocol without Celery.

A message and a stored result have a shape that Celery documents for clients in other languages
(Message Protocol, version 2), in the envelope that kombu's virtual transports share. Clients that
ask a question, the command line and the web server, need nothing else of Celery: its import takes
0.2 s, and its client opens connections and polls for each question.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import uuid
from datetime import UTC, datetime
from typing import Any

import msgpack

from pipeline import errors
from pipeline.store.redis_client import PREFIX
from workers.routes import FORM, FORM_HEADER, QUERY

READY = ("SUCCESS", "FAILURE", "REVOKED")  # celery.states.READY_STATES
QUEUE_KEY = f"{PREFIX}{QUERY}"  # the list that holds the messages


def result_key(query_id: str) -> str:
    """Name the key of a stored result; it is published on the channel of the same name."""
    return f"{PREFIX}celery-task-meta-{query_id}"


def query_message(
    task: str, query_id: str, args: tuple[Any, ...], expires_s: float, now_s: float
) -> str:
    """Return the message that has a query worker run a task.

    Args:
        now_s: seconds since the epoch by Redis's clock, which worker and client have in common.
    """
    body = msgpack.packb(
        [args, {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    )
    headers = {
        "lang": "py",
        "task": task,
        "id": query_id,
        "root_id": query_id,
        "parent_id": None,
        "group": None,
        "eta": None,
        "expires": datetime.fromtimestamp(now_s + expires_s, UTC).isoformat(),
        "retries": 0,
        "timelimit": [None, None],
        "ignore_result": False,
        "argsrepr": "(<image>)",  # or a kilobyte of it stands in every log line
        "kwargsrepr": "{}",
        "origin": f"{os.getpid()}@{socket.gethostname()}",
        FORM_HEADER: FORM,
        "sent_at": now_s,  # ours: the age of the oldest message is a metric
    }
    message = {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "binary",
        "content-type": "application/x-msgpack",
        "headers": headers,
        "properties": {
            "correlation_id": query_id,
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": QUERY},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }
    return json.dumps(message)


class RemoteError(Exception):
    """An unexpected error in a worker: a bug, whose traceback is the worker's."""

    def __init__(self, name: str, message: str, traceback: str) -> None:
        super().__init__(name, message, traceback)
        self.name, self.message, self.traceback = name, message, traceback

    def __str__(self) -> str:
        return f"{self.name}: {self.message}" if self.message else self.name


def read_result(data: bytes | None) -> dict[str, Any] | None:
    """Return what a finished task has stored; None where there is nothing, or no end yet."""
    meta = None if data is None else json.loads(data)
    return meta if meta and meta["status"] in READY else None


def open_result(meta: dict[str, Any]) -> Any:
    """Return a task's result, or raise its error again.

    Only errors of ours become what they were: the name of any other class comes from outside.

    Raises:
        RemoteError: the task raised anything else.
    """
    result = meta["result"]
    if meta["status"] == "SUCCESS":
        return result
    name, words = str(result["exc_type"]), result["exc_message"]
    words = words if isinstance(words, list) else [words]
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, errors.ImgrecError):
        raise kind(*words)
    raise RemoteError(name, ", ".join(map(str, words)), str(meta.get("traceback") or ""))
