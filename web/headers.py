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
        loop = asyncio.get_running_loop()
        deadline, whole, started = loop.time() + BODY_S, False, False

        async def receive_soon() -> Message:
            nonlocal whole
            if whole:  # only the end of the connection is still to come
                return await receive()
            left = min(BODY_SILENCE_S, deadline - loop.time())
            message = await asyncio.wait_for(receive(), left)
            whole = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        async def send_soon(message: Message) -> None:
            nonlocal started
            started = True
            await asyncio.wait_for(send(message), SEND_S)

        try:
            await self._app(scope, receive_soon, send_soon)
        except TimeoutError:
            if started:
                raise
            response = problem_response(
                408,
                "request-timeout",
                "The body of the request did not arrive in time.",
                {"Connection": "close"},
            )
            await response(scope, receive, send)
