"""The gate of a worker: every message from Redis passes here before Celery sees it.

Celery trusts the shape of its messages. One that is no JSON, has a list for a header or no task id
ends the consumer, and with it the worker; one that was noted as taken before comes back a minute
later and ends the next; a compressed one may unpack to any size. So the transport of the workers
is Celery's own with three checks: of the envelope, of the body's form, and a net for whatever
neither foresaw. What is refused is logged, answered where it names a task id, and forgotten.
"""

from __future__ import annotations

import inspect
import logging
import re
from typing import Any

from celery import current_app
from celery.utils.time import maybe_iso8601
from kombu import transport
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.transport import redis, virtual
from redis.exceptions import ConnectionError as RedisAway
from redis.exceptions import DataError, OutOfMemoryError

from pipeline.errors import WrongUse
from pipeline.settings import MIB
from workers.routes import QUEUES

log = logging.getLogger(__name__)

# Of a body as it lies in Redis. The command line sends pictures of at most half a MiB, or the
# 1024 pixels that workers reduce them to; in JSON and base64 twice, a byte becomes 1.8.
MOST_TAKEN = 8 * MIB
MOST_READ = 96 * MIB  # larger ones are dropped before they are parsed, so without an answer
TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,199}")
MAX_TEXT = 10_000  # characters of a header

# The headers that go on to Celery; others, as tracing tools add them, are dropped. Those that make
# a worker wait, retry or send more tasks must say nothing: imgrec never sends any.
SILENT: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("eta", "shadow", "group", "group_index"), (None,)),
    "timelimit": (None, [None, None]),
    "stamped_headers": (None, []),
    "stamps": (None, {}),
}
TEXTS = ("lang", "root_id", "parent_id", "argsrepr", "kwargsrepr", "origin", "expires")
NUMBERS = ("retries", "replaced_task_nesting")
FLAGS = ("ignore_result", "redelivered")
KNOWN = {"id", "task", *SILENT, *TEXTS, *NUMBERS, *FLAGS}


def install() -> None:
    """Have this process read Redis through the gate; before its first connection."""
    for scheme in ("redis", "rediss"):
        transport.TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
        transport._transport_cache.pop(scheme, None)


class Refused(WrongUse):
    """A message that no imgrec has sent."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The message cannot be used: {reason}.")


def check_envelope(message: Any, queue: str) -> None:
    """Check everything around the body, and drop the headers that nobody here reads.

    Raises:
        Refused: Celery would stumble over it, or do more than run a task now.
    """
    _require(isinstance(message, dict), "it is no JSON object")
    headers, properties = message.get("headers"), message.get("properties")
    _require(isinstance(headers, dict), "its headers are no table")
    _require(isinstance(properties, dict), "its properties are no table")
    _require(_is_id(headers.get("id")), "it has no task id")
    task = headers.get("task")
    _require(isinstance(task, str), "it names no task")
    # Celery brings tasks of its own, which send others, or themselves again and again.
    _require(task.startswith("imgrec."), f"{task[:50]!r} is no task of imgrec")
    route = current_app.conf.task_routes.get(task)
    _require(route in (None, {"queue": queue}), f"{task} does not belong into queue '{queue}'")
    _require(_is_id(properties.get("delivery_tag")), "it has no delivery tag")
    _require(isinstance(properties.get("delivery_info"), dict), "its delivery_info is no table")
    _require(properties.get("body_encoding") == "base64", "its body is not in base64")
    for name in ("reply_to", "correlation_id"):
        _require(isinstance(properties.get(name), str | None), f"its {name} is no text")
    for name in ("content-type", "content-encoding"):
        _require(isinstance(message.get(name), str), f"its {name} is no text")
    _require(headers.get("compression") is None, "it is compressed, to who knows what size")
    body = message.get("body")
    _require(isinstance(body, str), "its body is no text")
    _require(
        len(body) <= MOST_TAKEN,
        f"its body has {len(body):,} bytes, the limit is {MOST_TAKEN:,}: send a smaller picture",
    )
    message["headers"] = {name: value for name, value in headers.items() if name in KNOWN}
    _check_headers(message["headers"])


def _check_headers(headers: dict[str, Any]) -> None:
    for name, silence in SILENT.items():
        _require(headers.get(name) in silence, f"its header '{name}' is not empty")
    for name in TEXTS:
        text = headers.get(name)
        _require(isinstance(text, str | None), f"its header '{name}' is no text")
        _require(len(text or "") <= MAX_TEXT, f"its header '{name}' is too long")
    for name in NUMBERS:
        _require(isinstance(headers.get(name), int | None), f"its header '{name}' is no number")
    for name in FLAGS:
        value = headers.get(name)
        _require(isinstance(value, bool | None), f"its header '{name}' is neither true nor false")
    try:
        maybe_iso8601(headers.get("expires"))
    except (ValueError, TypeError, AttributeError) as error:
        raise Refused("its header 'expires' is no time") from error


def check_body(task: str, body: Any) -> None:
    """Check that a decoded body calls a task that is there, and does nothing else.

    Raises:
        Refused: it does not.
    """
    _require(isinstance(body, list | tuple) and len(body) == 3, "its body is no call of a task")
    args, kwargs, more = body
    _require(isinstance(args, list | tuple), "its arguments are no list")
    _require(
        isinstance(kwargs, dict) and all(isinstance(name, str) for name in kwargs),
        "its named arguments are no table",
    )
    _require(
        isinstance(more, dict) and not any(more.values()),
        "it wants to send more tasks",
    )
    known = current_app.tasks.get(task)
    if known is not None:  # Celery answers for those that are not
        try:
            inspect.signature(known.run).bind(*args, **kwargs)
        except TypeError as error:
            raise Refused(f"{task}: {error}") from error


class Message(virtual.Message):
    """A message whose body is checked when it is decoded, which is once."""

    def _decode(self) -> Any:
        try:
            body = super()._decode()  # type: ignore[no-untyped-call]
        except ContentDisallowed as error:
            raise Refused(str(error)) from error
        except DecodeError as error:
            raise Refused("its body cannot be decoded") from error
        if "task" in self.headers:  # the others are for Celery's remote control
            check_body(self.headers["task"], body)
        return body


class Channel(redis.Channel):
    """Read messages from the queues; let no unreadable one through."""

    Message = Message

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)  # type: ignore[no-untyped-call]
        self.client.set_response_callback("BRPOP", _leave_out_giants)

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            # `Transport._deliver` lets none of these out: this one could not even be parsed.
            log.error("Refused a message: it is no JSON object (%s).", type(error).__name__)
            return True
        except MemoryError as error:
            # Perhaps in the middle of an answer: this connection cannot be read any further.
            self.client.connection.disconnect()
            log.error("Refused a message: it does not fit into this worker's memory.")
            raise RedisAway("an answer was too large") from error


class Transport(redis.Transport):
    """Celery's transport over Redis, behind the gate.

    A Redis without memory is waited for as one that is away: to Celery it is an error of the
    program, which ends the worker (celery 5.7.0).
    """

    Channel = Channel
    connection_errors = (*redis.Transport.connection_errors, OutOfMemoryError)

    def _deliver(self, message: Any, queue: str) -> None:
        try:
            if queue in QUEUES:
                check_envelope(message, queue)
            super()._deliver(message, queue)  # type: ignore[no-untyped-call]
        except Refused as refusal:
            self._refuse(message, queue, refusal)
        except (KeyError, DataError) as error:  # kombu takes them for an outage
            self._refuse(message, queue, _unforeseen(error), error)
        except (*self.connection_errors, *self.channel_errors):
            raise
        except Exception as error:
            self._refuse(message, queue, _unforeseen(error), error)

    def _refuse(
        self, message: Any, queue: str, refusal: Refused, cause: Exception | None = None
    ) -> None:
        log.error("Queue %s: %s", queue, refusal, exc_info=cause)
        headers = message.get("headers") if isinstance(message, dict) else None
        task_id = headers.get("id") if isinstance(headers, dict) else None
        tag = _tag(message)
        for channel in self.channels:
            if tag in channel.qos._delivered:
                channel.basic_reject(tag, requeue=False)
        if queue in QUEUES and _is_id(task_id):
            try:
                # As its parent: a class is made again from its arguments on the other side.
                current_app.backend.mark_as_failure(task_id, WrongUse(str(refusal)))
            except Exception as error:  # the backend is away: the refusal stands in the log
                log.warning("The refusal of %s could not be stored: %s", task_id, error)


def _unforeseen(error: Exception) -> Refused:
    return Refused(f"Celery cannot take it ({type(error).__name__})")


def _leave_out_giants(answer: Any) -> Any:
    if not answer:
        return None
    queue, item = answer
    if len(item) > MOST_READ:
        log.error("Refused a message of %s bytes unread; the limit is %s.", len(item), MOST_READ)
        return None
    return queue, item


def _tag(message: Any) -> Any:
    properties = message.get("properties") if isinstance(message, dict) else None
    tag = properties.get("delivery_tag") if isinstance(properties, dict) else None
    return tag if isinstance(tag, str) else None


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and TASK_ID.fullmatch(value) is not None


def _require(good: bool, reason: str) -> None:
    if not good:
        raise Refused(reason)
