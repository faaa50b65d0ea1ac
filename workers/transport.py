"""The transport of a worker: Celery's own over Redis, with every message validated first.

Celery trusts the shape of its messages. A message that is not valid JSON, has a list for its
headers or lacks a task id crashes the consumer and with it the worker; if it was unacknowledged, it
is redelivered a minute later and crashes the next worker; a compressed one may unpack to any size.
So this transport validates the envelope and the body, and catches what neither foresaw. A message
that is refused is logged, answered if it names a task id, and dropped.

This is for robustness, not access control: whoever can write to Redis can send valid tasks. For the
same reason, of Celery's remote control only the commands that inspect a worker are accepted: a
`shutdown` that anybody may broadcast would end them all.

It overrides names of kombu that are not public; so pyproject.toml bounds kombu's version, and
tests/faults/test_messages.py sends thousands of broken messages to real workers.
"""

from __future__ import annotations

import base64
import inspect
import json
import logging
import re
import time
from datetime import timedelta
from typing import Annotated, Any, Literal

from celery import current_app
from celery.utils.time import maybe_iso8601
from celery.worker.control import Panel
from kombu import transport
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.transport import redis, virtual
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import DataError, OutOfMemoryError

from pipeline.errors import WrongUse
from pipeline.settings import MIB
from pipeline.store.redis_client import server_time
from workers.routes import FORM, QUEUES

log = logging.getLogger(__name__)

# Bytes of a body in Redis. The command line sends images of at most half a MiB, or of the 1024
# pixels that workers reduce them to; in JSON and base64 twice, a byte becomes 1.8.
MAX_BODY = 8 * MIB
CLOCKS_AGREE_S = 60.0
MAX_MESSAGE = 96 * MIB  # larger ones are dropped before they are parsed, and so without an answer


class _Part(BaseModel):
    """A part of a message; fields that nobody here reads are dropped."""

    model_config = ConfigDict(strict=True, extra="ignore")


def _is_time(text: str) -> str:
    try:
        maybe_iso8601(text)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError("it is not an ISO 8601 time") from error
    return text


_REPLIES = re.compile(r"[0-9a-f-]{36}\.reply\.celery\.pidbox")  # kombu.pidbox.Mailbox.reply_queue
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,199}")
Id = Annotated[str, StringConstraints(pattern=re.compile(rf"^{_ID.pattern}$(?!\n)"))]
Text = Annotated[str, StringConstraints(max_length=10_000)]


class Headers(_Part):
    """The headers that go on to Celery.

    Those that make a worker wait, retry or send more tasks must be empty: imgrec never sends any.
    """

    id: Id
    # Celery brings tasks of its own, which send others, or themselves again and again.
    task: Annotated[str, StringConstraints(pattern=r"\Aimgrec\.", max_length=200)]
    eta: None = None
    shadow: None = None
    group: None = None
    group_index: None = None
    timelimit: Annotated[list[None], Field(max_length=2)] | None = None
    stamped_headers: Annotated[list[Any], Field(max_length=0)] | None = None
    stamps: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    lang: Text | None = None
    root_id: Text | None = None
    parent_id: Text | None = None
    argsrepr: Text | None = None
    kwargsrepr: Text | None = None
    origin: Text | None = None
    expires: Annotated[Text, AfterValidator(_is_time)] | None = None
    retries: int | None = None
    replaced_task_nesting: int | None = None
    ignore_result: bool | None = None
    redelivered: bool | None = None
    imgrec_form: int | None = None  # none: of the release that did not send it


class Properties(_Part):
    """What kombu reads of a message's properties."""

    delivery_tag: Id
    delivery_info: dict[str, Any]
    body_encoding: Literal["base64"]
    reply_to: str | None = None
    correlation_id: str | None = None


class Envelope(_Part):
    """Everything around the body."""

    headers: Headers
    properties: Properties
    content_type: Annotated[str, Field(alias="content-type")]
    content_encoding: Annotated[str, Field(alias="content-encoding")]
    body: str


def install() -> None:
    """Have this process read Redis through this transport; call it before the first connection."""
    for scheme in ("redis", "rediss"):
        transport.TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
        transport._transport_cache.pop(scheme, None)


class Refused(WrongUse):
    """A message that imgrec does not send."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The message cannot be used: {reason}.")


def check_envelope(message: Any, queue: str) -> None:
    """Validate everything around the body, and drop the headers that nobody here reads.

    Raises:
        Refused: Celery would stumble over it, or do more than run a task now.
    """
    try:
        envelope = Envelope.model_validate(message)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise Refused(f"{place}: {first['msg'].removeprefix('Value error, ')}") from error
    task = envelope.headers.task
    route = current_app.conf.task_routes.get(task)
    _require(route in (None, {"queue": queue}), f"{task} does not belong to queue '{queue}'")
    _require(message["headers"].get("compression") is None, "compressed bodies are not accepted")
    _require(
        len(envelope.body) <= MAX_BODY,
        f"its body has {len(envelope.body):,} bytes, the limit is {MAX_BODY:,}: send a smaller "
        "image",
    )
    form = envelope.headers.imgrec_form or FORM
    _require(
        form <= FORM,
        f"a newer imgrec sent it in form {form}, and this worker reads up to form {FORM}: update "
        "imgrec here and restart the worker",
    )
    message["headers"] = envelope.headers.model_dump(exclude_unset=True)


def check_control(message: Any) -> None:
    """Let only those commands of Celery's remote control through that inspect a worker.

    Raises:
        Refused: it is another command, or cannot be read.
    """
    try:
        command = json.loads(base64.b64decode(message["body"]))["method"]
        kind = Panel.meta[command].type
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise Refused("it is not a command of Celery's remote control") from error
    _require(kind == "inspect", f"the remote control command '{command}' is not accepted")


def check_reply(message: Any) -> None:
    """Let an answer of other workers through, for which this one asks before it ends a job.

    Raises:
        Refused: it is none.
    """
    try:
        reply = json.loads(base64.b64decode(message["body"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise Refused("it is not a reply of Celery's remote control") from error
    _require(
        isinstance(reply, dict) and "method" not in reply,
        "it is not a reply of Celery's remote control",
    )


def check_body(task: str, body: Any) -> None:
    """Check that a decoded body calls a task, and does nothing else.

    Raises:
        Refused: it does not.
    """
    _require(
        isinstance(body, list | tuple) and len(body) == 3, "its body is not the call of a task"
    )
    args, kwargs, more = body
    _require(isinstance(args, list | tuple), "its arguments are not a list")
    _require(
        isinstance(kwargs, dict) and all(isinstance(name, str) for name in kwargs),
        "its named arguments are not an object",
    )
    _require(
        isinstance(more, dict) and not any(more.values()),
        "it asks to send more tasks",
    )
    registered = current_app.tasks.get(task)
    if registered is not None:  # Celery answers for those that are not
        try:
            inspect.signature(registered.run).bind(*args, **kwargs)
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
        if "task" in self.headers:  # the others are commands of the remote control
            check_body(self.headers["task"], body)
        return body


class Channel(redis.Channel):
    """Reads messages from the queues, and drops those that cannot be parsed."""

    Message = Message

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)  # type: ignore[no-untyped-call]
        self.client.set_response_callback("BRPOP", _drop_oversized)

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            # `Transport._deliver` lets none of these out: this one could not even be parsed.
            log.error("Refused a message: it is not a JSON object (%s).", type(error).__name__)
            return True
        except MemoryError as error:
            # Perhaps in the middle of an answer: this connection cannot be read any further.
            self.client.connection.disconnect()
            log.error("Refused a message: it does not fit into this worker's memory.")
            raise RedisConnectionError("an answer was too large") from error

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        self._require_open()
        super().basic_ack(delivery_tag, multiple)  # type: ignore[no-untyped-call]

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        self._require_open()
        super().basic_reject(delivery_tag, requeue)  # type: ignore[no-untyped-call]

    def _require_open(self) -> None:
        """Raise an error of the connection where Redis was lost since a message came.

        A task that starts meanwhile acknowledges its message on the channel that it came by. kombu
        5.7.0 then raises an AttributeError, which Celery takes for an error of the program: the
        worker ends. Redis delivers such a message again.
        """
        if self.closed:
            raise RedisConnectionError("the connection that this message came by was lost")


class Transport(redis.Transport):
    """Celery's transport over Redis, which validates what it delivers.

    A Redis that is out of memory is waited for as one that is unavailable: Celery 5.7.0 takes it
    for an error of the program and ends the worker.
    """

    Channel = Channel
    connection_errors = (*redis.Transport.connection_errors, OutOfMemoryError)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)  # type: ignore[no-untyped-call]
        self._refused: set[str] = set()  # sentences about the remote control, one for each command

    def _deliver(self, message: Any, queue: str) -> None:
        try:
            if queue in QUEUES:
                check_envelope(message, queue)
                self._expire_by_redis(message)
            elif _REPLIES.fullmatch(queue):
                check_reply(message)
            else:
                check_control(message)
            super()._deliver(message, queue)  # type: ignore[no-untyped-call]
        except Refused as refusal:
            self._refuse(message, queue, refusal)
        except (KeyError, DataError) as error:  # kombu takes them for an outage
            self._refuse(message, queue, _unforeseen(error), error)
        except (*self.connection_errors, *self.channel_errors):
            raise
        except Exception as error:
            self._refuse(message, queue, _unforeseen(error), error)

    def _expire_by_redis(self, message: Any) -> None:
        """Move a message's end from Redis's clock, which its sender read, to this host's."""
        expires = message["headers"].get("expires")
        if expires is None:
            return
        ahead = time.time() - server_time(self.channels[0].client)
        if abs(ahead) > CLOCKS_AGREE_S:
            moved = maybe_iso8601(expires) + timedelta(seconds=ahead)
            message["headers"]["expires"] = moved.isoformat()

    def _refuse(
        self, message: Any, queue: str, refusal: Refused, cause: Exception | None = None
    ) -> None:
        # A monitor such as Flower repeats its commands every few seconds.
        repeated = queue not in QUEUES and str(refusal) in self._refused
        level = logging.DEBUG if repeated else logging.ERROR
        log.log(level, "Queue %s: %s", queue, refusal, exc_info=cause)
        if queue not in QUEUES:
            self._refused.add(str(refusal))
        headers = message.get("headers") if isinstance(message, dict) else None
        task_id = headers.get("id") if isinstance(headers, dict) else None
        tag = _tag(message)
        for channel in self.channels:
            if tag in channel.qos._delivered:
                channel.basic_reject(tag, requeue=False)
        if queue in QUEUES and isinstance(task_id, str) and _ID.fullmatch(task_id):
            try:
                # As its parent: a class is made again from its arguments on the other side.
                current_app.backend.mark_as_failure(task_id, WrongUse(str(refusal)))
            except Exception as error:  # the backend is away: the refusal stands in the log
                log.warning("The refusal of %s could not be stored: %s", task_id, error)


def _unforeseen(error: Exception) -> Refused:
    return Refused(f"Celery cannot take it ({type(error).__name__})")


def _drop_oversized(answer: Any) -> Any:
    if not answer:
        return None
    queue, item = answer
    if len(item) > MAX_MESSAGE:
        log.error("Refused a message of %s bytes unread; the limit is %s.", len(item), MAX_MESSAGE)
        return None
    return queue, item


def _tag(message: Any) -> Any:
    properties = message.get("properties") if isinstance(message, dict) else None
    tag = properties.get("delivery_tag") if isinstance(properties, dict) else None
    return tag if isinstance(tag, str) else None


def _require(good: bool, reason: str) -> None:
    if not good:
        raise Refused(reason)
