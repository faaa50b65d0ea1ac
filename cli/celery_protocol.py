"""A question's way to the workers and back on a connection of redis-py.

`imgrec query` is started anew for each question, so whatever is not on the way of a question, from
a worker to the job table, stays with Celery.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import redis

from pipeline.settings import load_settings
from pipeline.store.redis_client import ServerClock, connect, refuses, server_time, trouble
from workers import registry
from workers.query_messages import QUEUE_KEY, open_result, query_message, read_result, result_key
from workers.registry import Announcement

if TYPE_CHECKING:
    from redis.client import PubSub

CONNECT_S = 2.0  # a server that does not even say hello is away
ANSWER_S = 5.0  # to one command: half a MiB may have to travel
AWAY_S = 10.0  # a server that comes back within so long, as after a restart, was never away
RETRY_S = 0.2
OUTAGES = (redis.ConnectionError, redis.TimeoutError)
_clock = ServerClock()
_idle: deque[PubSub] = deque()  # subscribed to nothing


def send(
    task: str, query_id: str, args: tuple[Any, ...], expires_s: float, *, ask_workers: bool = False
) -> list[Announcement]:
    """Put a task into the queue of queries.

    Args:
        ask_workers: return what the workers have said they work with; it comes on the same way.

    Raises:
        ServerUnavailable: Redis does not answer, refuses us, or takes nothing more.
    """
    with _server():
        now_s = _clock.now()
        if now_s is None:
            now_s = _clock.set(server_time(_client()))
        message = query_message(task, query_id, args, expires_s, now_s)
        pipe = _client().pipeline(transaction=False)
        if ask_workers:
            registry.queue_read(pipe)
        pipe.lpush(QUEUE_KEY, message)
        answers = pipe.execute()
    return registry.parse_read(answers) if ask_workers else []


class Listener:
    """Hears of one question's answer, on a connection that is its own meanwhile."""

    def __init__(self, query_id: str) -> None:
        self._name = result_key(query_id)
        self._pubsub: PubSub | None = None

    def close(self) -> None:
        """Leave the connection to the next question of this process."""
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            with suppress(redis.RedisError):
                pubsub.unsubscribe(self._name)  # type: ignore[no-untyped-call]
                _idle.append(pubsub)

    def wait(self, seconds: float) -> Any | None:
        """Return the answer, or None when there is none after `seconds`.

        Raises:
            ServerUnavailable: Redis went away and did not come back within twice that time, at most
                `AWAY_S`. What the task has raised.
        """
        end = time.monotonic() + seconds
        given_up_at = None
        while True:
            try:
                meta = self._wait_until(end)
                return None if meta is None else open_result(meta)
            except redis.RedisError as error:
                self._drop()
                now = time.monotonic()
                given_up_at = given_up_at or now + min(AWAY_S, 2 * seconds)
                if now >= given_up_at or not isinstance(error, OUTAGES) or refuses(error):
                    raise trouble(load_settings().redis_url, error) from error
                time.sleep(RETRY_S)

    def _wait_until(self, end: float) -> dict[str, Any] | None:
        if self._pubsub is None:
            try:
                self._pubsub = _idle.pop()
            except IndexError:
                self._pubsub = _client().pubsub()  # type: ignore[no-untyped-call]
            self._pubsub.subscribe(self._name)
        # An answer from before the subscription is only stored, one from after it is heard, too.
        # So the stored one is looked for when the subscription is confirmed, and at the end.
        while (remaining_s := end - time.monotonic()) > 0:
            heard = self._pubsub.get_message(timeout=remaining_s)
            if heard is None or heard["channel"] != self._name.encode():
                continue  # a word about the question before
            meta = read_result(heard["data"] if heard["type"] == "message" else self._stored())
            if meta is not None:
                return meta
        return read_result(self._stored())

    def _stored(self) -> Any:
        return _client().get(self._name)

    def _drop(self) -> None:
        if self._pubsub is not None:
            self._pubsub.close()
            self._pubsub = None
        with suppress(IndexError):  # the idle ones have met the same outage
            while True:
                _idle.pop().close()


@contextmanager
def listening(query_id: str) -> Iterator[Listener]:
    """Open a listener for a block."""
    with closing(Listener(query_id)) as listener:
        yield listener


@contextmanager
def _server() -> Iterator[None]:
    try:
        yield
    except redis.RedisError as error:
        raise trouble(load_settings().redis_url, error) from error


def _client() -> redis.Redis:
    return _connected(load_settings().redis_url)


@lru_cache(maxsize=1)
def _connected(url: str) -> redis.Redis:
    return connect(url, ANSWER_S, socket_connect_timeout=CONNECT_S)
