"""Headers of every answer, and limits of every request, whichever endpoint it is for."""

from __future__ import annotations

import asyncio

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from web.problems import problem_response

MAX_HEADERS = 100
BODY_SILENCE_S = 10.0  # between two pieces of a body
BODY_S = 120.0
SEND_S = 30.0  # a client that takes nothing for so long is let go

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), geolocation=(), microphone=()",
}


class SecureHeaders:
    """Add what browsers need to be told; an answer is not stored unless it says so itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, add)


class Patient:
    """Refuse requests of too many headers, and let go clients that send or take nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

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
        await Exchange(self._app, scope, receive, send).run()


class Exchange:
    """One request and its answer, each piece within a time."""

    def __init__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        self._app, self._scope, self._receive, self._send = app, scope, receive, send
        self._deadline = asyncio.get_running_loop().time() + BODY_S
        self._whole = False  # the body has arrived
        self._late = False  # the body has not arrived in time
        self._stalled = False  # the client takes no answer
        self._started = False  # the answer has begun

    async def run(self) -> None:
        try:
            await self._app(self._scope, self.receive, self.send)
        except Exception:
            if not (self._late or self._stalled):
                raise
        if self._late and not self._started:
            await self._refuse()

    async def receive(self) -> Message:
        if self._whole:  # only the end of the connection is still to come
            return await self._receive()
        left = min(BODY_SILENCE_S, self._deadline - asyncio.get_running_loop().time())
        try:
            message = await asyncio.wait_for(self._receive(), left)
        except TimeoutError:
            self._late = True
            raise
        self._whole = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if self._late and not self._started:
            return  # the framework calls it a broken body
        self._started = True
        try:
            await asyncio.wait_for(self._send(message), SEND_S)
        except TimeoutError:
            self._stalled = True
            raise

    async def _refuse(self) -> None:
        response = problem_response(
            408,
            "request-timeout",
            "The body of the request did not arrive in time.",
            {"Connection": "close"},
        )
        await response(self._scope, self._receive, self._send)
