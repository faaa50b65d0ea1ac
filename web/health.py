"""Whether this process lives, and whether it can serve queries."""

from __future__ import annotations

import asyncio
import contextlib

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from pipeline.errors import ImgrecError, ServerUnavailable
from web.context import Web, web_of
from web.schemas import Health, Readiness
from workers.agreement import has_heads, parts_of_query
from workers.routes import QUERY, QUERY_IMAGE

router = APIRouter()
CHECK_S = 8.0


@router.get("/healthz", response_model=Health)
async def healthz() -> dict[str, str]:
    """Say that this process lives; looks at nothing else."""
    return {"status": "ok"}


@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
async def readyz(request: Request) -> JSONResponse:
    """Say whether queries can be served, and what is missing."""
    web = web_of(request)
    looks = {
        "redis": _redis(web),
        "database": _database(web),
        "query_worker": _query_worker(web),
        "same_data": _same_data(web),
        "index": asyncio.to_thread(_index, web),
    }
    results = await asyncio.gather(*(_within(look) for look in looks.values()))
    checks = dict(zip(looks, results, strict=True))
    missing = [name for name, ok in checks.items() if not ok]
    if web.stopping.is_set():
        missing.append("web")
    answer = {"ready": not missing, "checks": checks, "missing": missing}
    headers = {"Cache-Control": "no-store"} | ({"Retry-After": "5"} if missing else {})
    return JSONResponse(answer, 503 if missing else 200, headers)


async def _within(look: object) -> bool:
    try:
        return bool(await asyncio.wait_for(look, CHECK_S))  # type: ignore[arg-type]
    except (ImgrecError, OSError):  # a TimeoutError is one, too
        return False


async def _redis(web: Web) -> bool:
    await web.answers.ping()
    return True


async def _database(web: Web) -> bool:
    await asyncio.to_thread(web.resources.database.revision, "jobs")
    return True


async def _query_worker(web: Web) -> bool:
    return bool((await web.answers.workers())[QUERY])


async def _same_data(web: Web) -> bool:
    """Tell whether the query workers have this server's database and folders, where they answer."""
    parts = await asyncio.to_thread(_parts, web)
    with contextlib.suppress(TimeoutError, ServerUnavailable):  # another check says so
        await asyncio.wait_for(web.agreement.require((QUERY,), *parts), CHECK_S - 1)
    return True


def _parts(web: Web) -> list[str]:
    settings = web.settings
    index, heads = parts_of_query(QUERY_IMAGE, (), settings), has_heads(settings)
    return ["database", *index, *(["models"] if heads else [])]


def _index(web: Web) -> bool:
    return web.resources.versions.is_published()
