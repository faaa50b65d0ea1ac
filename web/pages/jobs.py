"""The pages of rebuilds: start one, watch it, see what failed and why."""

from __future__ import annotations

import asyncio
import base64
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from pipeline.errors import ImgrecError
from web import jobs as api
from web.access import Client
from web.context import web_of
from web.pages.view import render
from web.pages.visit import AdminVisitor, PageRoute, fields, sentence_of
from workers.dispatch import require_names
from workers.routes import FAILURE_IMAGE, nobody_listens, queue_of_job

router = APIRouter(prefix="/jobs", route_class=PageRoute, include_in_schema=False)

JOBS = 50
FAILURES = 50  # on one page
THUMBNAIL_SIDE = 128
THUMBNAIL_MAX_AGE_S = 300
OPEN_STATES = ("planned", "running", "merging")


@router.get("")
async def jobs_page(request: Request, client: AdminVisitor) -> Response:
    """List the rebuilds, with a form that starts one."""
    return await _jobs_page(request, client)


async def _jobs_page(
    request: Request,
    client: Client,
    *,
    folder: str | None = None,
    full: bool = False,
    error: str = "",
    status: int = 200,
) -> Response:
    web = web_of(request)
    rows = await asyncio.to_thread(api.newest, web, JOBS)
    if folder is None:
        folder = rows[0]["folder"] if rows else ""
    return render(
        request,
        "jobs.html",
        client,
        status,
        jobs=rows,
        limit=JOBS,
        folder=folder,
        full=full,
        error=error,
        open_states=OPEN_STATES,
    )


@router.post("")
async def start(request: Request, client: AdminVisitor) -> Response:
    """Start a rebuild, and go to it."""
    web = web_of(request)
    texts, _ = await fields(request)
    folder, full = texts.get("folder", "").strip(), bool(texts.get("full"))
    if not folder:
        error = "Name the folder that holds the product images."
        return await _jobs_page(request, client, folder="", full=full, error=error, status=422)
    try:
        plan = partial(await api.planner(web, folder), full=full)
        job_id = await api.start_plan(web, plan)
    except ImgrecError as problem:
        status, error = sentence_of(problem, folder)
        return await _jobs_page(
            request, client, folder=folder, full=full, error=error, status=status
        )
    return RedirectResponse(f"/jobs/{job_id}", 303)


@router.get("/{job_id}")
async def job_page(
    request: Request,
    job_id: str,
    client: AdminVisitor,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> Response:
    """Show one rebuild and its failures."""
    web = web_of(request)
    job = await asyncio.to_thread(api.details, web, job_id)
    failures = await asyncio.to_thread(web.resources.jobs.failures, job_id)
    return render(
        request,
        "job.html",
        client,
        job=job,
        is_open=job["state"] in OPEN_STATES,
        failures=failures[offset : offset + FAILURES],
        n_failures=len(failures),
        n_left_out=sum(not failure.warning for failure in failures),
        offset=offset,
        page_size=FAILURES,
    )


@router.post("/{job_id}/cancel")
async def cancel(request: Request, job_id: str, client: AdminVisitor) -> Response:
    """Cancel a rebuild, and show it."""
    require_names(job_id)
    jobs = web_of(request).resources.jobs
    await asyncio.to_thread(jobs.get, job_id)
    await asyncio.to_thread(jobs.cancel, job_id)
    return RedirectResponse(f"/jobs/{job_id}", 303)


@router.post("/{job_id}/retry")
async def retry(request: Request, job_id: str, client: AdminVisitor) -> Response:
    """Try again what failed, as a new rebuild; go to it."""
    new = await api.start_retry(web_of(request), job_id)
    return RedirectResponse(f"/jobs/{new}", 303)


@router.get("/{job_id}/waiting")
async def waiting(request: Request, job_id: str, client: AdminVisitor) -> Response:
    """Say why a rebuild does not move, as far as that is known."""
    web = web_of(request)
    require_names(job_id)
    job = await asyncio.to_thread(web.resources.jobs.get, job_id)
    progress = await asyncio.to_thread(web.resources.jobs.progress, job_id)
    sentence = job.error or ""
    if job.open and not job.plan_done and not job.stage:
        sentence = f"Listing the folder: {progress.images:,} images so far."
    elif job.open and not sentence:
        queue = queue_of_job(job, progress)
        if not (await web.answers.workers())[queue]:
            sentence = nobody_listens(queue)
    return render(request, "waiting.html", client, sentence=sentence)


@router.get("/{job_id}/image")
async def failure_image(
    request: Request,
    job_id: str,
    client: AdminVisitor,
    path: Annotated[str, Query(max_length=4096)],
) -> Response:
    """Show an image that failed, encoded again; nothing where it cannot be read."""
    require_names(job_id)
    args = (job_id, path, THUMBNAIL_SIDE)
    answer = await web_of(request).ask(FAILURE_IMAGE, args, needs_index=False)
    headers = {"Cache-Control": f"private, max-age={THUMBNAIL_MAX_AGE_S}"}
    if answer["jpeg"] is None:
        return Response(status_code=204, headers=headers)
    data = base64.b64decode(answer["jpeg"])
    return Response(data, media_type="image/jpeg", headers=headers)
