"""Limits of every request, whichever endpoint it is for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from web.problems import Refusal, problem_response

HOLD = "imgrec.hold"  # in the scope: counts bytes that are fetched for a request, until its end
MAX_HEADERS = 100
BODY_SILENCE_S = 10.0  # between two pieces of a body
BODY_S = 120.0
ALL_BODIES = 256 * 1024**2  # bytes of all requests together
SEND_S = 30.0  # a client that takes nothing for so long is let go

TOO_SLOW = Refusal(
    408, "request-timeout", "The body of the request did not arrive in time: send it again."
)
TOO_LARGE = Refusal(
    413,
    "content-too-large",
    "The body of the request is larger than the server accepts (WEB_MAX_BODY).",
)
BUSY = Refusal(
    503, "overloaded", "The web server receives too much at once: try again in a moment."
)


class RequestLimits:
    """Refuse what is too large, and let go clients that send or take nothing."""

    def __init__(self, app: ASGIApp, max_body: int) -> None:
        self._app = app
        self._max_body = max_body
        self._bodies = Bodies(max(ALL_BODIES, 2 * max_body))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if len(scope["headers"]) > MAX_HEADERS:
            response = problem_response(
                431,
                "request-header-fields-too-large",
                f"The request has more than {MAX_HEADERS} headers.",
                {"Connection": "close"},
            )
            await response(scope, receive, send)
            return
        exchange = Exchange(self._app, self._max_body, self._bodies, scope, receive, send)
        scope[HOLD] = exchange.hold
        try:
            await exchange.run()
        finally:
            self._bodies.held -= exchange.held


@dataclass
class Bodies:
    """The bytes of all requests that are being answered: their bodies and what they name."""

    most: int
    held: int = 0


class Exchange:
    """One request and its answer, each piece within a time."""

    def __init__(
        self,
        app: ASGIApp,
        max_body: int,
        bodies: Bodies,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        self._app, self._scope, self._receive, self._send = app, scope, receive, send
        self._left = max_body
        self._bodies = bodies
        self.held = 0
        self._deadline = asyncio.get_running_loop().time() + BODY_S
        self._whole = False  # the body has arrived
        self._refusal: Refusal | None = None  # why no more of the body is read
        self._stalled = False  # the client takes no answer
        self._started = False  # the answer has begun

    async def run(self) -> None:
        length = Headers(scope=self._scope).get("content-length", "")
        if length.isdigit() and int(length) > self._left:
            await self._refuse(TOO_LARGE)
            return
        try:
            await self._app(self._scope, self.receive, self.send)
        except Exception:
            if self._refusal is None and not self._stalled:
                raise
        if self._refusal is not None and not self._started:
            await self._refuse(self._refusal)

    async def receive(self) -> Message:
        if self._whole:  # only the end of the connection is still to come
            return await self._receive()
        left = min(BODY_SILENCE_S, self._deadline - asyncio.get_running_loop().time())
        try:
            message = await asyncio.wait_for(self._receive(), left)
        except TimeoutError:
            self._refusal = TOO_SLOW
            raise TOO_SLOW from None
        size = len(message.get("body", b""))
        self._left -= size
        try:
            self.hold(size)
        except Refusal as refusal:
            self._refusal = refusal
            raise
        if self._left < 0:
            self._refusal = TOO_LARGE
            raise TOO_LARGE
        self._whole = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    def hold(self, size: int) -> None:
        """Count bytes until the request is answered.

        Raises:
            Refusal: all requests together hold too many.
        """
        self.held += size
        self._bodies.held += size
        if self._bodies.held > self._bodies.most:
            raise BUSY

    async def send(self, message: Message) -> None:
        if self._refusal is not None and not self._started:
            return  # the framework calls it a broken body
        self._started = True
        try:
            await asyncio.wait_for(self._send(message), SEND_S)
        except TimeoutError:
            self._stalled = True
            raise

    async def _refuse(self, refusal: Refusal) -> None:
        response = problem_response(
            refusal.status, refusal.kind, refusal.detail, {"Connection": "close"}
        )
        await response(self._scope, self._receive, self._send)
