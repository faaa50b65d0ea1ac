"""What this web server times by itself."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram
from starlette.types import Scope

METHODS = ("GET", "POST", "DELETE")  # of the routes; a client may make up others
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

    def observe(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request by its route; what matches none is one route."""
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self.requests.labels(method, route, str(status)).observe(seconds)
