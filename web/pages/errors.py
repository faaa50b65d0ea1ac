"""Errors as people see them: a page in a browser, a problem for programs."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from pipeline.access import explain, is_unavailable
from pipeline.errors import ImgrecError
from web.access import SAFE, Client, find_client
from web.context import web_of
from web.pages.view import is_fragment, render
from web.pages.visit import address_of_page
from web.problems import Refusal, problem_of

API = ("/v1", "/openapi.json")
ELSEWHERE = "No page has this address: it may have been mistyped, or the page is gone."


def add_handlers(app: FastAPI) -> None:
    """Answer every error of a request but a bug, which `EveryResponse` catches."""
    for kind in (Refusal, ImgrecError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, respond)


async def respond(request: Request, error: Exception) -> Response:
    """Answer a request that has raised an error."""
    if isinstance(error, OSError) and is_unavailable(error):
        error = explain(error, web_of(request).settings)
    problem = problem_of(request, error)
    if not wants_page(request):
        return problem
    facts: dict[str, Any] = json.loads(bytes(problem.body))
    status, sentence = facts["status"], facts["detail"]
    if status == 404 and isinstance(error, HTTPException):
        sentence = ELSEWHERE
    response = error_page(request, await _visitor(request), status, sentence)
    for name in ("Retry-After", "WWW-Authenticate", "Allow"):
        if name in problem.headers:
            response.headers[name] = problem.headers[name]
    return response


def wants_page(request: Request) -> bool:
    """Tell whether a person looks at the answer: a page was asked for, or a browser asks."""
    if getattr(request.state, "page", False):
        return True
    in_browser = "text/html" in request.headers.get("accept", "")
    return in_browser and not request.url.path.startswith(API)


def error_page(request: Request, client: Client | None, status: int, sentence: str) -> Response:
    """Return an error as a page, or as a part of one."""
    template = "error_panel.html" if is_fragment(request) else "error.html"
    again = address_of_page(request) if request.method not in SAFE else ""  # the address itself
    return render(request, template, client, status, code=status, sentence=sentence, again=again)


async def _visitor(request: Request) -> Client | None:
    """Return who is logged in, for the links of the page; None where that cannot be found out."""
    client: Client | None = getattr(request.state, "client", None)
    if client is None:
        with contextlib.suppress(ImgrecError, Refusal):
            client = await find_client(request)
    return client
