"""The page of images that show the same thing: search for them, and say which are not the same."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from pipeline.duplicates.result import group_object
from pipeline.errors import IndexMissing, NotFound, ServerUnavailable, WrongUse, quote
from pipeline.index.versions import Version
from pipeline.store.duplicates import Search
from web.context import Web, web_of
from web.pages.view import render
from web.pages.visit import AdminVisitor, PageRoute, fields, sentence_of
from workers.routes import FIND_DUPLICATES, INDEX, PICTURES, nobody_listens

router = APIRouter(prefix="/duplicates", route_class=PageRoute, include_in_schema=False)

GROUPS = 20  # on one page
DECISIONS = 100
IMAGE_MAX_AGE_S = 300
Offset = Annotated[int, Query(ge=0, le=2**31)]


@router.get("")
async def duplicates_page(request: Request, client: AdminVisitor, offset: Offset = 0) -> Response:
    """Show the groups of the published version, or how far the search for them is."""
    shown = await asyncio.to_thread(_shown, web_of(request), offset)
    return render(request, "duplicates.html", client, offset=offset, page_size=GROUPS, **shown)


def _shown(web: Web, offset: int) -> dict[str, Any]:
    resources = web.resources
    try:
        version = resources.versions.current()
    except IndexMissing:
        return {"version": None}
    published = resources.duplicates.published()
    product_of = resources.catalogue.get().product_of
    changed = resources.live_changes.all().since(version).paths
    groups = published.groups(version, product_of, changed)
    facts = published.result.facts
    return {
        "version": version.name,
        "searched": published.version_name,
        "is_new": published.index_version != version.identity,
        "search": _newest_of(resources.duplicates.newest(), version),
        "total": len(groups),
        "groups": [
            group_object(group, facts, product_of) for group in groups[offset : offset + GROUPS]
        ],
        "decisions": sorted(published.not_same)[:DECISIONS],
        "n_decisions": len(published.not_same),
    }


def _newest_of(search: Search | None, version: Version) -> Search | None:
    """Return a search if it is one of this version."""
    return search if search and search.index_version == version.identity else None


@router.post("")
async def start(request: Request, client: AdminVisitor) -> Response:
    """Have an index worker search the published version."""
    web = web_of(request)
    await web.agreement.require((INDEX,), "database", "data")

    def plan_and_send() -> None:
        resources = web.resources
        resources.dispatcher.require_broker()
        search = resources.duplicates.plan(resources.versions.current().identity, None)
        if search.is_stale:
            resources.dispatcher.send(FIND_DUPLICATES, search.id)

    await asyncio.to_thread(plan_and_send)
    return RedirectResponse("/duplicates", 303)


@router.get("/progress")
async def progress(request: Request, client: AdminVisitor) -> Response:
    """Say how far the newest search is, for the page to show."""
    web, error = web_of(request), ""
    search = await asyncio.to_thread(web.resources.duplicates.newest)
    if search is not None and search.is_stale:
        try:
            if not (await web.answers.workers())[INDEX]:
                error = nobody_listens(INDEX)
            elif not await asyncio.to_thread(web.resources.dispatcher.queue_length, INDEX):
                # Its message was lost with a worker, or it waits for a merge: twice is done once.
                await asyncio.to_thread(web.resources.dispatcher.send, FIND_DUPLICATES, search.id)
        except ServerUnavailable as problem:
            _, error = sentence_of(problem)
    return render(request, "duplicates_progress.html", client, search=search, error=error)


@router.post("/decide")
async def decide(request: Request, client: AdminVisitor) -> Response:
    """Remember that two images are not the same, or forget it; show the groups."""
    web = web_of(request)
    texts, _ = await fields(request)
    image, other = texts.get("image", ""), texts.get("other", "")
    same = bool(texts.get("same"))

    def record() -> None:
        version = web.resources.versions.current()
        for path in (image, other):
            if not same and not version.has_path(path):
                raise NotFound(f"Index {version.name} has no image {quote(path)}.")
        if image == other:
            raise WrongUse("Name two images.")
        web.resources.duplicates.decide(image, other, same=same)

    await asyncio.to_thread(record)
    offset = texts.get("offset", "")
    address = f"/duplicates?offset={offset}" if offset.isdecimal() else "/duplicates"
    return RedirectResponse(address, 303)


@router.get("/image")
async def image(
    request: Request,
    client: AdminVisitor,
    version: Annotated[str, Query(max_length=20)],
    path: Annotated[str, Query(max_length=4096)],
) -> Response:
    """Show an image of a version, made small; nothing where it cannot be read."""
    answer = await web_of(request).ask(PICTURES, (version, [path]))
    headers = {"Cache-Control": f"private, max-age={IMAGE_MAX_AGE_S}"}
    if path not in answer:
        return Response(status_code=204, headers=headers)
    return Response(base64.b64decode(answer[path]), media_type="image/jpeg", headers=headers)
