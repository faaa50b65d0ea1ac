"""The page that searches."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from pipeline.errors import DatabaseFailed, ImgrecError, ServerUnavailable
from pipeline.search.facets import Facet
from web.access import Client
from web.context import Web, web_of
from web.images import verified
from web.pages.question import PAGE, Question
from web.pages.view import render
from web.pages.visit import PageRoute, SearchVisitor, fields, sentence_of
from web.search import find_matches

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@dataclass(frozen=True)
class Outcome:
    """The answer to a question, or the sentence that says why there is none; or neither."""

    answer: dict[str, Any] | None = None
    error: str = ""
    status: int = 200


@router.get("/")
async def search_page(request: Request, client: SearchVisitor) -> Response:
    """Show the form, and the matches of the question in the address."""
    web = web_of(request)
    question = Question.of(request.query_params)
    facets, outcome = await asyncio.gather(_facets(web), _outcome(web, client, question))
    return _render(request, client, "search.html", question, outcome, facets=facets)


@router.post("/results")
async def results(request: Request, client: SearchVisitor) -> Response:
    """Return the matches of a form with an upload, for the page to show."""
    web = web_of(request)
    texts, image = await fields(request)
    question = Question.of(texts)
    data, name = None, "of the request"
    if image is not None and (image.filename or image.size):
        data = await image.read()
        name = f"'{image.filename}'" if image.filename else name
    outcome = await _outcome(web, client, question, texts.get("box", ""), data, name)
    return _render(request, client, "results.html", question, outcome)


def _render(
    request: Request,
    client: Client,
    template: str,
    question: Question,
    outcome: Outcome,
    **context: Any,
) -> Response:
    web = web_of(request)
    return render(
        request,
        template,
        client,
        outcome.status,
        question=question,
        answer=outcome.answer,
        error=outcome.error,
        page_size=PAGE,
        max_body=int(web.settings.web_max_body),
        **{"facets": [], **context},
    )


async def _facets(web: Web) -> list[Facet]:
    try:
        return await asyncio.to_thread(web.resources.facets.get)
    except (ServerUnavailable, DatabaseFailed):
        return []  # a search needs no database, but for its filters


async def _outcome(
    web: Web,
    client: Client,
    question: Question,
    box: str = "",
    data: bytes | None = None,
    name: str = "",
) -> Outcome:
    start, images = time.perf_counter(), list[bytes]()
    try:
        if data is not None:
            images.append(await verified(web, data, name))
        elif not question.has_subject:
            return Outcome()
        query = question.body(client.name, box if images else "").query(web.settings)
        return Outcome(await find_matches(web, query, images, start))
    except ImgrecError as error:
        status, sentence = sentence_of(error)
        return Outcome(error=sentence, status=status)
