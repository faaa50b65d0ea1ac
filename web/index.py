"""Endpoints about index versions."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from pipeline.index.version_object import version_object
from pipeline.index.versions import Version
from web import schemas
from web.access import Admin, Searcher
from web.context import Web, web_of
from web.problems import public_sentence
from web.responses import problems
from workers import rollback as rollbacks
from workers.routes import QUERY

router = APIRouter(prefix="/v1/index")

NO_FIELDS = schemas.RollbackBody(version=None)


@router.get("", response_model=schemas.Version, responses=problems(503))
def current(request: Request, client: Searcher) -> dict[str, Any]:
    """Describe the published index version."""
    version = web_of(request).resources.versions.current()
    return _public(version_object(version, version.name))


@router.get("/versions", response_model=schemas.VersionList, responses=problems(503))
def versions(request: Request, client: Admin) -> dict[str, Any]:
    """List the index versions that are kept, oldest first."""
    store = web_of(request).resources.versions
    name = store.current_name()
    return {
        "current": name,
        "versions": [_public(version_object(each, name)) for each in store.versions()],
    }


@router.post(
    "/rollback",
    response_model=schemas.RollbackAnswer,
    responses=problems(400, 404, 408, 409, 413, 415, 422, 503),
)
async def rollback(
    request: Request, client: Admin, body: schemas.RollbackBody = NO_FIELDS
) -> dict[str, Any]:
    """Publish an earlier version again, as its rebuild made it."""
    old, new, undone = await roll_back(web_of(request), body.version)
    return {"from": old, "to": new.name, "undone": undone}


def _public(facts: dict[str, Any]) -> dict[str, Any]:
    """Return a version's facts without the folder of a model on this server."""
    return {**facts, "made_with": public_sentence(str(facts["made_with"]))}


async def roll_back(web: Web, version: str | None) -> tuple[str | None, Version, int]:
    """Publish another version, by default the one before; see `workers.rollback.roll_back`.

    Raises:
        SettingsDiffer: query workers have another data folder. ImgrecError: it cannot be published.
    """
    await web.agreement.require_of_running((QUERY,), "data")
    return await asyncio.to_thread(rollbacks.roll_back, web.resources, version)
