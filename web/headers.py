"""Headers of every response, whichever endpoint it is from."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from web.process_metrics import WebMetrics

Respond = Callable[[Request, Exception], Awaitable[Response]]

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
    "Cache-Control": "no-store",  # unless a response says otherwise
    "Permissions-Policy": "camera=(self), geolocation=(), microphone=()",
}


class EveryResponse:
    """Add what browsers need to be told to every response, time it, and answer for a bug, too."""

    def __init__(self, app: ASGIApp, metrics: WebMetrics, respond: Respond) -> None:
        """Wrap everything else.

        Args:
            respond: answers a request that has raised an error.
        """
        self._app, self._metrics, self._respond = app, metrics, respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, started = time.perf_counter(), False

        async def add(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                self._metrics.observe(scope, message["status"], time.perf_counter() - start)
            await send(message)

        try:
            await self._app(scope, receive, add)
        except ClientDisconnect:
            pass  # nobody is there to be answered
        except Exception as error:
            if started:
                raise
            response = await self._respond(Request(scope), error)
            await response(scope, receive, add)
