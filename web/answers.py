"""Questions to the query workers and their answers, for any number of requests at once.

All requests share one connection that hears every answer to this process: the ids of its questions
begin alike, and it subscribes to that pattern once. So no request writes to the connection, and no
thread waits. `cli/query_client.py` does the same for one question of one process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from pipeline.errors import ImgrecError, Overloaded, ServerUnavailable
from pipeline.store.redis_client import PREFIX, ServerClock, trouble
from web.shared_call import SharedCall
from workers.answer_wait import LAST_LOOK_S, AnswerWait, nobody_answers
from workers.query_messages import QUEUE_KEY, open_result, query_message, read_result, result_key
from workers.routes import QUERY

log = logging.getLogger(__name__)

CONNECT_S = 2.0
COMMAND_S = 5.0  # half a MiB may have to travel
HEALTH_S = 5.0  # a connection that is silent for so long is asked whether it lives
DEAD_S = 2 * HEALTH_S  # one that is silent for so long is given up: redis-py awaits no PONG
RECONNECT_S = 0.2
AWAY_S = 10.0  # a server that comes back within so long, as after a restart, was never away
KEPT_S = 3600.0  # Celery's result_expires
LOOK_S = 1.0  # how long workers are waited for that say what they serve
LOOK_KEPT_S = 2.0

Look = Callable[[float], Counter[str]]


class Answers:
    """Sends questions and hears of their answers. Use it from one event loop."""

    def __init__(
        self,
        url: str,
        look: Look,
        has_index: Callable[[], bool],
        most: int,
        observe: Callable[[str, float], None] = lambda task, seconds: None,
    ) -> None:
        """Hold nothing yet, see `run`.

        Args:
            look: counts the workers on each queue that answer within some seconds; it blocks.
            has_index: tells whether an index was published.
            most: questions that may wait at once.
            observe: called with the task and the seconds of each question.
        """
        self._url = url
        self._has_index = has_index
        self._most = most
        self._observe = observe
        self._clock = ServerClock()
        self._waiting: dict[str, asyncio.Future[Any]] = {}  # by channel
        self._down_since: float | None = time.monotonic()
        self._quick_look = SharedCall(partial(look, LOOK_S), LOOK_KEPT_S)
        self._last_look = SharedCall(partial(look, LAST_LOOK_S), LOOK_KEPT_S)
        self._client = redis.asyncio.Redis.from_url(
            url,
            socket_connect_timeout=CONNECT_S,
            socket_timeout=COMMAND_S,
            health_check_interval=HEALTH_S,
            retry=Retry(NoBackoff(), 0),
            max_connections=None,
        )
        self._mine = secrets.token_hex(6)  # how the ids of this process begin

    @property
    def waiting(self) -> int:
        """Questions that wait for their answer."""
        return len(self._waiting)

    async def run(self) -> None:
        """Listen until cancelled; connect again whenever the connection is lost."""
        while True:
            try:
                await self._listen()
            except (redis.RedisError, OSError) as error:
                self._lost(error)
            except Exception as error:  # a bug must not leave the server deaf
                log.exception("Listening for answers failed unexpectedly; connecting again.")
                self._lost(error)
            await asyncio.sleep(RECONNECT_S)

    async def close(self) -> None:
        with contextlib.suppress(redis.RedisError, OSError):
            await self._client.aclose()

    def end_all(self, error: ImgrecError) -> None:
        """Answer everything that waits with an error."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)

    async def ask(
        self, task: str, args: tuple[Any, ...], timeout_s: float, *, needs_index: bool = True
    ) -> tuple[str, Any]:
        """Send a question and wait; return its id and the task's result.

        Raises:
            Overloaded: too many wait already. TimedOut: no answer in time.
            ServerUnavailable, IndexMissing: none can come.
            ImgrecError, RemoteError: what the task raised.
        """
        if len(self._waiting) >= self._most:
            raise Overloaded(
                f"The web server already serves {self._most} queries (WEB_MAX_QUERIES): try again "
                "in a moment."
            )
        query_id, start = f"{self._mine}{secrets.token_hex(10)}", time.perf_counter()
        channel = result_key(query_id)
        future = asyncio.get_running_loop().create_future()
        self._waiting[channel] = future
        try:
            wait = AnswerWait(query_id, timeout_s, task)
            now_s = self._clock.now()
            if now_s is None:
                seconds, _ = await self._command(self._client.time())
                now_s = self._clock.set(float(seconds))
            expires_s = max(timeout_s, 60.0) + KEPT_S
            message = await asyncio.to_thread(query_message, task, query_id, args, expires_s, now_s)
            await self._command(self._client.lpush(QUEUE_KEY, message))
            while True:
                done, _ = await asyncio.wait({future}, timeout=wait.pause())
                if done:
                    return query_id, open_result(future.result())
                await self._look_after(wait, channel, message, needs_index)
        finally:
            self._observe(task, time.perf_counter() - start)
            self._waiting.pop(channel, None)
            if future.done() and not future.cancelled():
                future.exception()  # retrieved, so that asyncio does not complain

    async def _look_after(
        self, wait: AnswerWait, channel: str, message: str, needs_index: bool
    ) -> None:
        """Look whether a silent question can still be answered; send it again if it was lost."""
        late = wait.late  # before the looks, which take seconds
        try:
            stored = await self._command(self._client.get(channel))
            if stored is not None:  # it was published on a connection that has gone silent
                self._heard(channel, stored)
                return
            served = (await self.workers())[QUERY] or (await self._last_look.get())[QUERY]
            due = served and not late and wait.due
            if due and not await self._command(self._client.llen(QUEUE_KEY)):
                await self._command(self._client.lpush(QUEUE_KEY, message))
                wait.resent()
        except ServerUnavailable:
            if late:
                raise
            return  # the listener hears whether Redis comes back
        if not served:
            raise nobody_answers(needs_index and not await asyncio.to_thread(self._has_index))
        if late:
            raise wait.timed_out()

    async def workers(self) -> Counter[str]:
        """Count the workers on each queue.

        Raises:
            ServerUnavailable: Redis does not answer.
        """
        return await self._quick_look.get()

    async def ping(self) -> None:
        """Check that Redis takes commands.

        Raises:
            ServerUnavailable: it does not.
        """
        await self._command(self._client.delete(f"{PREFIX}check"))  # not PING: any user may

    # -- the connection ----------------------------------------------------------------------------

    async def _command(self, command: Awaitable[Any]) -> Any:
        try:
            return await command
        except (redis.RedisError, OSError) as error:
            raise trouble(self._url, error) from error

    async def _listen(self) -> None:
        """Hear answers until the connection is lost."""
        pubsub = self._client.pubsub()
        try:
            await pubsub.psubscribe(result_key(f"{self._mine}*"))
            heard_at = time.monotonic()
            while True:
                message = await pubsub.get_message(timeout=HEALTH_S)
                if message is None:
                    if time.monotonic() - heard_at >= DEAD_S:
                        raise redis.ConnectionError(f"Nothing was heard for {DEAD_S:g} s.")
                    await pubsub.ping()
                    continue
                heard_at = time.monotonic()  # an answered ping is a message, too
                if message["type"] == "psubscribe":
                    self._down_since = None
                    await self._catch_up()
                elif message["type"] == "pmessage":
                    self._heard(message["channel"].decode(), message["data"])
        finally:
            with contextlib.suppress(redis.RedisError, OSError):
                await pubsub.aclose()  # type: ignore[no-untyped-call]

    async def _catch_up(self) -> None:
        """Read the answers that were stored while nobody listened."""
        waiting = list(self._waiting)
        stored = await self._client.mget(waiting) if waiting else []
        for channel, data in zip(waiting, stored, strict=True):
            self._heard(channel, data)

    def _heard(self, channel: str, data: Any) -> None:
        meta = read_result(data)
        future = self._waiting.get(channel)
        if meta is not None and future is not None and not future.done():
            future.set_result(meta)

    def _lost(self, error: BaseException) -> None:
        """Note that the connection is lost; after a while, end what waits for it."""
        now = time.monotonic()
        self._down_since = self._down_since or now
        if now - self._down_since >= AWAY_S:
            self.end_all(trouble(self._url, error))
