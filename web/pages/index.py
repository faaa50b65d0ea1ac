"""The page of the index: versions, what changed between them, workers, cache, models."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from pipeline.classify.head_store import list_heads
from pipeline.errors import DatabaseFailed, ImgrecError, ServerUnavailable
from pipeline.index.changes import changes
from pipeline.index.live_changes import later_changes
from pipeline.index.version_object import version_object
from pipeline.store.heartbeat import READY, read_heartbeats
from web.access import Client
from web.context import Web, web_of
from web.index import roll_back
from web.pages.view import render
from web.pages.visit import AdminVisitor, PageRoute, fields, sentence_of
from workers.routes import QUEUES, queues_of_worker

router = APIRouter(prefix="/index", route_class=PageRoute, include_in_schema=False)

PATHS = 50  # of each kind of change
LOOK_S = 1.5


@router.get("")
async def index_page(request: Request, client: AdminVisitor) -> Response:
    """Show the versions, what changed between two of them, and the models."""
    return await _index_page(request, client)


async def _index_page(
    request: Request, client: Client, error: str = "", status: int = 200
) -> Response:
    web = web_of(request)
    old, new = request.query_params.get("from", ""), request.query_params.get("to", "")
    versions, current = await asyncio.to_thread(_versions, web)
    names = [version["version"] for version in versions]
    # At first, what the published version brought.
    new = new or current or (names[0] if names else "")
    if not old and new in names:
        old = next(iter(names[names.index(new) + 1 :]), "")
    difference, difference_error = None, ""
    if old and new:
        try:
            difference = await asyncio.to_thread(_difference, web, old, new)
        except ImgrecError as problem:
            _, difference_error = sentence_of(problem)
    undone = request.query_params.get("undone", "")
    return render(
        request,
        "index.html",
        client,
        status,
        undone=int(undone) if undone.isdecimal() and len(undone) < 10 else 0,
        versions=versions,
        current=current,
        old=old,
        new=new,
        difference=difference,
        difference_error=difference_error,
        error=error,
        settings=web.settings,
        heads=await asyncio.to_thread(_heads, web),
    )


def _versions(web: Web) -> tuple[list[dict[str, Any]], str | None]:
    """Return the versions, newest first, and the published one's name.

    `undoes` of a version: how many images were added or removed since its rebuild.
    """
    store = web.resources.versions
    current = store.current_name()
    try:
        images = web.resources.live_changes.all().images
    except (ServerUnavailable, DatabaseFailed):
        images = ()  # the versions can be shown without the database; a rollback says so
    rows = [
        {**version_object(each, current), "undoes": sum(map(later_changes(each), images))}
        for each in reversed(store.versions())
    ]
    return rows, current


def _difference(web: Web, old: str, new: str) -> list[tuple[str, int, list[str]]]:
    store = web.resources.versions
    result = changes(store.open(old), store.open(new), PATHS)
    return [(kind, each["total"], each["paths"]) for kind, each in result.items()]


def _heads(web: Web) -> list[str]:
    """Name the trained heads; whether they can be read, a worker finds out."""
    return [head.folder.as_posix() for head in list_heads(web.resources.heads.folder())]


@router.post("/rollback")
async def rollback(request: Request, client: AdminVisitor) -> Response:
    """Publish another version, and show the versions."""
    texts, _ = await fields(request)
    try:
        _, _, undone = await roll_back(web_of(request), texts.get("version") or None)
    except ImgrecError as problem:
        status, error = sentence_of(problem)
        return await _index_page(request, client, error, status)
    return RedirectResponse(f"/index?undone={undone}" if undone else "/index", 303)


@dataclass(frozen=True)
class Worker:
    """One worker process; `problem` is empty for a healthy one."""

    name: str
    queues: list[str]
    state: str
    problem: str


@router.get("/workers")
async def workers(request: Request, client: AdminVisitor) -> Response:
    """Return the workers by queue, for the page to show."""
    web = web_of(request)
    rows, error = list[Worker](), ""
    try:
        rows = await asyncio.to_thread(_workers, web)
    except ServerUnavailable as problem:
        _, error = sentence_of(problem)
    return render(
        request,
        "workers.html",
        client,
        queues=[(name, [row for row in rows if name in row.queues]) for name in QUEUES],
        error=error,
    )


def _workers(web: Web) -> list[Worker]:
    """Join who answers through Redis with the heartbeats of this machine."""
    answering = web.resources.dispatcher.worker_queues(LOOK_S)
    beats = {beat.name: beat for beat in read_heartbeats(web.settings.run_dir)}
    rows = []
    for name in sorted({*answering, *beats}):
        beat = beats.get(name)
        state, problem = "ready", ""
        if beat is not None:
            state, problem = (beat.state or READY), beat.problem
        if name not in answering and not problem and state == READY:
            state = "busy: does not answer at the moment"
        queues = answering.get(name) or queues_of_worker(name)
        rows.append(Worker(name, queues, state, problem))
    return rows


@router.get("/cache")
async def cache(request: Request, client: AdminVisitor) -> Response:
    """Return what the shared cache holds, for the page to show; a large one takes seconds."""
    since, kinds = await asyncio.to_thread(web_of(request).resources.shared_cache.describe)
    return render(request, "cache.html", client, since=since, kinds=kinds)
