"""The FastAPI application."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from importlib import metadata

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from web import docs, health, index, jobs, live_changes, metrics, search, system
from web.context import Web
from web.headers import EveryResponse
from web.pages import add_pages, errors
from web.product_urls import ProductPaths
from web.request_limits import RequestLimits
from web.responses import add_schemas

DESCRIPTION = """\
Finds visually similar products. Send `Authorization: Bearer KEY` with a key of
`imgrec keys create`. Errors are problem details (RFC 9457)."""


def create_app(web: Web) -> FastAPI:
    """Return the application of one server."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with web.running():
            yield

    settings = web.settings
    origins = [origin.strip() for origin in settings.cors_origins.split(",") if origin.strip()]
    middleware = [
        Middleware(EveryResponse, metrics=web.metrics, respond=errors.respond),
        Middleware(RequestLimits, max_body=int(settings.web_max_body)),
        Middleware(ProductPaths),
    ]
    if origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key"],
            expose_headers=["Location", "Retry-After"],
        )
        middleware.insert(1, cors)
    app = FastAPI(
        title="imgrec",
        version=metadata.version("imgrec"),
        description=DESCRIPTION,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        middleware=middleware,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.web = web
    errors.add_handlers(app)
    for router in (
        search.router,
        live_changes.router,
        jobs.router,
        index.router,
        health.router,
        metrics.router,
        docs.router,
        system.router,
    ):
        app.include_router(router)
    add_pages(app)
    add_schemas(app)
    return app
