"""Endpoints for the page: the imported columns, what works where, what changed in the index."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from pipeline.classify.head_store import list_heads
from pipeline.index.changes import changes
from pipeline.search.facets import columns
from pipeline.store.heartbeat import read_heartbeats
from web import schemas
from web.access import Admin, Searcher
from web.context import Web, web_of
from web.responses import problems
from workers.routes import QUEUES

router = APIRouter(prefix="/v1")


@router.get("/columns", response_model=schemas.ColumnList, responses=problems(503))
def list_columns(request: Request, client: Searcher) -> dict[str, Any]:
    """List the columns of the imported product data, to build filters from."""
    return {"columns": columns(web_of(request).resources.catalogue.get())}


@router.get("/index/changes", response_model=schemas.Changes, responses=problems(404, 422, 503))
def index_changes(
    request: Request,
    client: Admin,
    from_: Annotated[str, Query(alias="from", max_length=20)],
    to: Annotated[str, Query(max_length=20)],
    limit: Annotated[int, Query(ge=0, le=1000, description="Paths of each kind.")] = 100,
) -> dict[str, Any]:
    """Compare two index versions: images that were added, removed or changed."""
    store = web_of(request).resources.versions
    return {"from": from_, "to": to, **changes(store.open(from_), store.open(to), limit)}


@router.get("/system", response_model=schemas.System, responses=problems(503))
async def system(request: Request, client: Admin) -> dict[str, Any]:
    """Show workers, queues, cache and models."""
    web = web_of(request)
    workers = await web.answers.workers()
    facts = await asyncio.to_thread(_facts, web)
    return {"workers": {queue: workers[queue] for queue in QUEUES}, **facts}


def _facts(web: Web) -> dict[str, Any]:
    settings, resources = web.settings, web.resources
    queues = {queue: resources.dispatcher.queue_length(queue) for queue in QUEUES}
    heartbeats = [
        {
            "worker": worker.name,
            "seconds": round(worker.age_s, 1),
            "state": worker.state,
            "problem": worker.problem or None,
        }
        for worker in read_heartbeats(settings.run_dir)
    ]
    counts = resources.shared_cache.counts()
    cache = [
        {"kind": kind, "hits": hits, "misses": misses} for kind, (hits, misses) in counts.items()
    ]
    heads = [
        {"category": head.category, "attribute": head.attribute}
        for head in list_heads(resources.heads.folder())
    ]
    model = settings.embedding_model.rstrip("/").rpartition("/")[2]
    return {
        "queues": queues,
        "heartbeats": heartbeats,
        "cache": cache,
        "model": model,
        "heads": heads,
    }
