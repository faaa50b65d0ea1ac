"""The page: search, jobs and index for people, rendered here; a little script makes it livelier."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from web.pages import duplicates, index, jobs, search, visit
from web.pages.view import FOLDER


class Static(StaticFiles):
    """Styles and scripts: kept by browsers, but asked for again, so that an update is seen."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.setdefault("Cache-Control", "no-cache")
        return response


def add_pages(app: FastAPI) -> None:
    """Serve the page beside the API."""
    app.mount("/static", Static(directory=FOLDER / "static"), name="static")
    for router in (visit.router, search.router, jobs.router, index.router, duplicates.router):
        app.include_router(router)
