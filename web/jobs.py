"""Endpoints about rebuilds: start, watch, look into, cancel, try again."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from pipeline.errors import DatabaseFailed, Overloaded, ServerUnavailable, WrongUse
from pipeline.images.failure import Failure
from pipeline.images.fetched import feed_name
from pipeline.rebuild.plan import check_source, plan_rebuild
from pipeline.rebuild.plan_feed import check_feed, plan_fetch
from pipeline.rebuild.retry import plan_retry
from pipeline.store.job import AlreadyRequested, Job, JobRequest, Progress
from pipeline.store.job_object import job_object, to_object
from web import schemas
from web.access import Admin
from web.context import PLANNERS, Web, web_of
from web.responses import problems
from workers.dispatch import require_names
from workers.reconcile import advance, queues_of_rebuild
from workers.webhooks import webhook_client

router = APIRouter(prefix="/v1/jobs")

log = logging.getLogger(__name__)

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how one begins, by OWASP's "CSV injection"
POLL_S = 0.5
PLANNER_WAIT_S = 10.0  # for a thread that lists a folder to be free


def _object(job: Job, progress: Progress) -> dict[str, Any]:
    return {
        **to_object(job, progress),
        "folder": job.root,
        "created_at": job.created_at,
        "looked_at": progress.looked_at,
    }


def details(web: Web, job_id: str) -> dict[str, Any]:
    """Return the object of a job.

    Raises:
        NotFound: there is none with this id.
    """
    require_names(job_id)
    jobs = web.resources.jobs
    job, progress = jobs.get(job_id), jobs.progress(job_id)
    return {**job_object(jobs, job_id), **_object(job, progress)}


@router.get("", response_model=schemas.JobList, responses=problems(422, 503))
def list_jobs(
    request: Request,
    client: Admin,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
) -> dict[str, Any]:
    """List the rebuilds, newest first."""
    return {"jobs": newest(web_of(request), limit)}


def newest(web: Web, limit: int) -> list[dict[str, Any]]:
    """Return the objects of the newest jobs first."""
    rows = web.resources.jobs.list_with_progress(limit)
    return [_object(job, progress) for job, progress in rows]


@router.post(
    "",
    status_code=202,
    response_model=schemas.JobDetails,
    responses=problems(400, 408, 409, 413, 415, 422, 503),
)
async def create_job(
    request: Request,
    response: Response,
    body: schemas.JobBody,
    client: Admin,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=200,
            description="The same key and body create one job, however often they are sent.",
        ),
    ] = None,
) -> dict[str, Any]:
    """Index a folder of product images. The answer comes when the folder is being listed."""
    web = web_of(request)
    request.state.values = body.folder
    if body.webhook_url is not None:
        _require_webhook(web, body.webhook_url)
    job_request = None
    if idempotency_key is not None:
        digest = hashlib.sha256(body.model_dump_json().encode()).hexdigest()
        job_request = JobRequest(client.id, idempotency_key, digest)
    try:
        if job_request is not None:
            await asyncio.to_thread(web.resources.jobs.require_new, job_request)
        plan = partial(
            await planner(web, body.folder),
            full=body.full,
            save_preprocessed=body.save_preprocessed,
            request=job_request,
            webhook_url=body.webhook_url,
        )
        job_id = await start_plan(web, plan)
    except AlreadyRequested as repeated:
        job_id = repeated.job_id
    response.headers["Location"] = f"/v1/jobs/{job_id}"
    return await asyncio.to_thread(details, web, job_id)


async def planner(web: Web, root: str) -> Callable[..., str]:
    """Return what plans the rebuild of a folder, a store or a feed, which can be used.

    Raises:
        ImgrecError: it cannot, or the workers cannot be sent anything.
    """
    resources, settings = web.resources, web.settings
    if feed_name(root) is not None:
        await asyncio.to_thread(check_feed, root, resources.feeds)
        plan = partial(plan_fetch, root, settings, resources.jobs, resources.feeds)
    else:
        await asyncio.to_thread(check_source, root, settings)
        plan = partial(plan_rebuild, root, settings, resources.jobs, resources.versions)
    await _require_workers(web, root)
    return plan


def _require_webhook(web: Web, url: str) -> None:
    client = webhook_client(web.settings)
    if not client.hosts or not web.settings.webhook_secret:
        raise WrongUse(
            "webhook_url is not allowed here: WEBHOOK_HOSTS and WEBHOOK_SECRET allow webhooks."
        )
    client.check(url)


@router.post(
    "/{job_id}/retry",
    status_code=202,
    response_model=schemas.JobDetails,
    responses=problems(404, 409, 422, 503),
)
async def retry_job(
    request: Request, response: Response, job_id: str, client: Admin
) -> dict[str, Any]:
    """Try again only what failed: the images that a job left out, as a new job."""
    web = web_of(request)
    retry_id = await start_retry(web, job_id)
    response.headers["Location"] = f"/v1/jobs/{retry_id}"
    return await asyncio.to_thread(details, web, retry_id)


@router.get("/{job_id}", response_model=schemas.JobDetails, responses=problems(404, 422, 503))
def get_job(request: Request, job_id: str, client: Admin) -> dict[str, Any]:
    """Show the progress of a rebuild."""
    return details(web_of(request), job_id)


@router.post(
    "/{job_id}/cancel", response_model=schemas.JobDetails, responses=problems(404, 422, 503)
)
def cancel_job(request: Request, job_id: str, client: Admin) -> dict[str, Any]:
    """Cancel a rebuild; the published index stays. One that has ended stays as it is."""
    web = web_of(request)
    require_names(job_id)
    web.resources.jobs.get(job_id)
    web.resources.jobs.cancel(job_id)
    return details(web, job_id)


@router.get(
    "/{job_id}/failures",
    response_model=schemas.FailureList,
    responses={200: {"content": {"text/csv": {}}}, **problems(404, 422, 503)},
)
def failures(
    request: Request,
    job_id: str,
    client: Admin,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    format: Annotated[Literal["json", "csv"], Query()] = "json",
) -> Any:
    """List the images that a rebuild left out or warned about; as CSV, all of them."""
    jobs = web_of(request).resources.jobs
    require_names(job_id)
    job_id = jobs.get(job_id).id
    rows = jobs.failures(job_id)
    if format == "csv":
        headers = {"Content-Disposition": f'attachment; filename="failures-{job_id}.csv"'}
        return StreamingResponse(
            failures_csv(rows), headers=headers, media_type="text/csv; charset=utf-8"
        )
    shown = [
        {"path": row.path, "stage": row.stage, "reason": row.reason, "warning": row.warning}
        for row in rows[offset : offset + limit]
    ]
    return {"job_id": job_id, "total": len(rows), "failures": shown}


def failures_csv(rows: Iterable[Failure]) -> Iterator[str]:
    """Yield a table of failures in pieces; no cell begins a formula of a spreadsheet."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["path", "stage", "reason", "warning"])
    for row in rows:
        texts = map(_cell, (row.path, row.stage, row.reason))
        writer.writerow([*texts, int(row.warning)])
        if buffer.tell() > 65_536:
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()


def _cell(text: str) -> str:
    """Return a text that spreadsheets take for no formula: files are named by strangers, too."""
    return f"'{text}" if text.startswith(FORMULA) else text


async def _followed(request: Request, job_id: str, client: Admin) -> AsyncIterator[str]:
    """Hold a stream, and yield the id of its job; after its beginning, it is too late to refuse."""
    web = web_of(request)
    require_names(job_id)
    with web.streams.hold(client.key):
        yield (await asyncio.to_thread(web.resources.jobs.get, job_id)).id


@router.get(
    "/{job_id}/events", response_class=EventSourceResponse, responses=problems(404, 422, 503)
)
async def events(
    request: Request, job_id: Annotated[str, Depends(_followed)]
) -> AsyncIterator[ServerSentEvent]:
    """Follow a rebuild: `progress` events with the object of a job, `end` with the last one."""
    web = web_of(request)
    before: dict[str, Any] | None = None
    while not web.stopping.is_set():
        try:
            job = await asyncio.to_thread(details, web, job_id)
        except (ServerUnavailable, DatabaseFailed):
            job = before or {}  # the job outlives a database that restarts; so does this
        if job and job != before:
            ended = job["state"] in ("published", "failed", "cancelled")
            yield ServerSentEvent(event="end" if ended else "progress", data=job)
            if ended:
                return
            before = job
        await web.pause(POLL_S)


async def start_retry(web: Web, job_id: str) -> str:
    """Plan a job that tries again what another one left out; return its id.

    Raises:
        ImgrecError: it cannot be planned.
    """
    require_names(job_id)
    resources = web.resources
    job = await asyncio.to_thread(resources.jobs.get, job_id)
    await _require_workers(web, job.root)
    plan = partial(
        plan_retry, job_id, web.settings, resources.jobs, resources.versions, resources.feeds
    )
    return await start_plan(web, plan)


async def _require_workers(web: Web, root: str) -> None:
    """Check that a job can be sent, to workers that would find it.

    Raises:
        ServerUnavailable: Redis does not answer.
        SettingsDiffer: workers have another database or data folder.
    """
    await asyncio.to_thread(web.resources.dispatcher.require_broker)
    await web.agreement.require(queues_of_rebuild(root), "database", "data")


async def start_plan(web: Web, write_plan: Callable[..., str]) -> str:
    """Plan a job in a thread; return its id as soon as it has one.

    Args:
        write_plan: calls `created` with the id before it lists a folder.

    Raises:
        Overloaded: no thread is free for it in time.
        ImgrecError: it cannot be planned.
    """
    try:
        await asyncio.wait_for(web.free_planners.acquire(), PLANNER_WAIT_S)
    except TimeoutError:
        raise Overloaded(
            f"The web server already lists {PLANNERS} folders for rebuilds: try again when it has "
            "listed one."
        ) from None
    loop = asyncio.get_running_loop()
    created: asyncio.Future[str] = loop.create_future()
    resources = web.resources

    def tell(job_id: str) -> None:
        loop.call_soon_threadsafe(_settle, created, job_id)

    def fail(error: Exception) -> None:
        loop.call_soon_threadsafe(_settle, created, error)

    def plan() -> None:
        try:
            job_id = write_plan(created=tell)
            advance(resources, job_id)
        except Exception as error:
            log.warning("A job could not be planned: %s", error)
            fail(error)

    planned = loop.run_in_executor(web.planners, plan)
    planned.add_done_callback(lambda _: web.free_planners.release())
    return await created


def _settle(created: asyncio.Future[str], result: str | Exception) -> None:
    if created.done():
        return
    if isinstance(result, str):
        created.set_result(result)
    else:
        created.set_exception(result)
