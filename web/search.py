"""Endpoints that ask the query workers: search, products, classify; and feedback on matches."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from fastapi import Query as QueryParameter

from pipeline.errors import NotFound, WrongUse
from pipeline.images.message_image import message_images
from pipeline.search.query import MAX_IMAGES, MAX_OFFSET, Query
from pipeline.search.relevance_feedback import LoggedQuery
from pipeline.store.feedback import LOGGED_WITHIN_S, LOOK_AGAIN_S, FeedbackLog, not_logged
from web.access import Rater, Searcher
from web.context import Web, web_of
from web.images import read_body
from web.product_urls import product_id_of, product_url
from web.responses import problems
from web.schemas import (
    MAX_ID,
    MAX_TEXT,
    Classes,
    ClassifyBody,
    FeedbackAnswer,
    FeedbackBody,
    Product,
    SearchAnswer,
    SearchBody,
)
from workers.routes import CLASSIFY_IMAGE, PRODUCT, PRODUCT_IMAGE, QUERY, QUERY_IMAGE

router = APIRouter(prefix="/v1")

IMAGE_MAX_AGE_S = 300
ProductPath = Annotated[
    str,
    Path(
        description="The product's id; a slash in it is written %2F.",
        json_schema_extra={"minLength": 1, "maxLength": MAX_ID},
    ),
]


def image_request(model: str, *, several: bool = False) -> dict[str, Any]:
    """Document a body that is JSON or a form with a file; `model` is the schema of the fields."""
    schema = {"$ref": f"#/components/schemas/{model}"}
    image: dict[str, Any] = {"type": "string", "format": "binary"}
    if several:
        image = {"type": "array", "items": image, "maxItems": MAX_IMAGES}
    form = {
        "allOf": [
            schema,
            {"type": "object", "properties": {"image": image}},
        ]
    }
    content = {"application/json": {"schema": schema}, "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


@router.post(
    "/search",
    response_model=SearchAnswer,
    response_model_exclude_unset=True,
    responses=problems(400, 404, 408, 409, 413, 415, 422, 503, 504),
    openapi_extra=image_request("SearchBody", several=True),
)
async def search(request: Request, client: Searcher) -> dict[str, Any]:
    """Find the products that look like an image, match a text, or resemble products."""
    start = time.perf_counter()
    web = web_of(request)
    body, images = await read_body(request, SearchBody)
    return await find_matches(web, body.query(web.settings), images, start)


async def find_matches(
    web: Web, query: Query, images: Sequence[bytes], start: float
) -> dict[str, Any]:
    """Ask a query worker; `start` is when the request came, by `time.perf_counter`."""
    query.require_subject(len(images))
    args: tuple[Any, ...] = (message_images(images), query.top_k)
    if query.options:
        args += (query.options,)
    answer = await web.ask(QUERY_IMAGE, args)
    for match in answer["matches"]:
        match["image"] = product_url(match["product_id"], "image")
    answer["took_ms"] = round(1000 * (time.perf_counter() - start), 1)
    return answer


@router.get(
    "/products/{product_id}",
    response_model=Product,
    responses=problems(404, 422, 503, 504),
)
async def product(request: Request, product_id: ProductPath, client: Searcher) -> dict[str, Any]:
    """Show a product of the index and its imported data."""
    name = checked_product_id(product_id)
    answer = await web_of(request).ask(PRODUCT, (name,))
    return {**answer, "image": product_url(name, "image")}


@router.get(
    "/products/{product_id}/similar",
    response_model=SearchAnswer,
    response_model_exclude_unset=True,
    responses=problems(404, 422, 503, 504),
)
async def similar(
    request: Request,
    product_id: ProductPath,
    client: Searcher,
    limit: Annotated[int | None, QueryParameter(ge=1, le=1000)] = None,
    offset: Annotated[int, QueryParameter(ge=0, le=MAX_OFFSET)] = 0,
    where: Annotated[list[str] | None, QueryParameter(max_length=20)] = None,
    sort: Annotated[str, QueryParameter(max_length=MAX_TEXT)] = "",
    fields: Annotated[list[str] | None, QueryParameter(max_length=100)] = None,
    index_version: Annotated[str, QueryParameter(max_length=20)] = "",
) -> dict[str, Any]:
    """Find the products that are similar to one."""
    start = time.perf_counter()
    web = web_of(request)
    query = Query(
        top_k=limit or web.settings.top_k,
        product=checked_product_id(product_id),
        where=tuple(where or ()),
        offset=offset,
        sort=sort,
        fields=None if fields is None else tuple(fields),
        index_version=index_version,
        total=True,
    )
    return await find_matches(web, query, (), start)


@router.get(
    "/products/{product_id}/image",
    responses={
        200: {"content": {"image/jpeg": {}}, "description": "The image, made small."},
        304: {"description": "It is the one that the client has."},
        **problems(404, 422, 503, 504),
    },
    response_class=Response,
)
async def image(
    request: Request,
    product_id: ProductPath,
    client: Searcher,
    size: Annotated[
        int, QueryParameter(ge=16, le=1024, description="Longer side in pixels.")
    ] = 256,
) -> Response:
    """Show a product's image, encoded again as JPEG."""
    answer = await web_of(request).ask(PRODUCT_IMAGE, (checked_product_id(product_id), size))
    data = base64.b64decode(answer["jpeg"])
    etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": f"private, max-age={IMAGE_MAX_AGE_S}"}
    if etag in [part.strip() for part in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type="image/jpeg", headers=headers)


@router.post(
    "/classify",
    response_model=Classes,
    response_model_exclude_unset=True,
    responses=problems(400, 408, 413, 415, 422, 503, 504),
    openapi_extra=image_request("ClassifyBody"),
)
async def classify(request: Request, client: Searcher) -> dict[str, Any]:
    """Name the category and attributes of a product."""
    body, images = await read_body(request, ClassifyBody)
    if len(images) != 1:
        raise WrongUse("Name an image, and only one: send a file, image_base64 or image_url.")
    args = (images[0], True) if body.use_trained else (images[0],)
    return await web_of(request).ask(CLASSIFY_IMAGE, args, needs_index=False)


@router.post(
    "/feedback",
    status_code=201,
    response_model=FeedbackAnswer,
    responses=problems(400, 404, 408, 413, 415, 422, 503),
)
async def feedback(request: Request, body: FeedbackBody, client: Rater) -> dict[str, Any]:
    """Record what somebody thought of a match."""
    web = web_of(request)
    log = web.resources.feedback_log
    await web.agreement.require_of_running((QUERY,), "database")

    query = await logged_query(log, body.query_id)

    def add() -> dict[str, Any]:
        entry = log.add(query, body.product_id, body.action, body.user, log.now())
        return entry.object()

    return await asyncio.to_thread(add)


async def logged_query(log: FeedbackLog, query_id: str) -> LoggedQuery:
    """Return a logged query as `FeedbackLog.wait_for_query` does, but hold no thread meanwhile."""
    deadline = time.monotonic() + LOGGED_WITHIN_S
    while (query := await asyncio.to_thread(log.query, query_id)) is None:
        if time.monotonic() > deadline:
            raise not_logged(query_id)
        await asyncio.sleep(LOOK_AGAIN_S)
    return query


def checked_product_id(segment: str) -> str:
    name = product_id_of(segment)
    if not 0 < len(name) <= MAX_ID or "\0" in name:
        raise NotFound("No product has this id.")
    return name
