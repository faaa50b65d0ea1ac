"""What this web server times by itself."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class WebMetrics:
    """What this process times."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Histogram(
            "imgrec_http_request_seconds",
            "Seconds of a request, to the beginning of its answer.",
            ["method", "route", "status"],
            registry=self.registry,
            buckets=SECONDS,
        )
        self.queries = Histogram(
            "imgrec_query_seconds",
            "Seconds that a question to the query workers took, by task.",
            ["task"],
            registry=self.registry,
            buckets=SECONDS,
        )


class Measured:
    """Times requests by their route; what matches none is one route."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()

        async def measure(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                method = scope["method"] if scope["method"] in ("GET", "POST") else "other"
                histogram = scope["app"].state.web.metrics.requests
                labels = histogram.labels(method, route, str(message["status"]))
                labels.observe(time.perf_counter() - start)
            await send(message)

        await self._app(scope, receive, measure)
