"""Endpoints that change the published index without a rebuild: add and remove images."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi import Query as QueryParameter

from pipeline.errors import NotFound, WrongUse
from pipeline.images.new_images import NewImages, image_path, upload_name
from pipeline.names import nfc
from web.access import Client, Keeper
from web.context import Web, web_of
from web.images import Upload, read_uploads
from web.responses import problems
from web.schemas import MAX_ID, Added, ImageBody, Removed
from web.search import ProductPath, checked_product_id, image_request
from workers import live_changes
from workers.routes import IMAGE_VECTOR, PRODUCT, QUERY

router = APIRouter(prefix="/v1/products")

log = logging.getLogger(__name__)

SHARED = ("database", "data")  # what workers must share with this server, to see a change


@router.post(
    "/{product_id}/images",
    status_code=201,
    response_model=Added,
    response_model_exclude_unset=True,
    responses=problems(400, 404, 408, 409, 413, 415, 422, 503, 504),
    openapi_extra=image_request("ImageBody", several=True),
)
async def add_images(request: Request, product_id: ProductPath, client: Keeper) -> dict[str, Any]:
    """Add images to a product, an indexed or a new one. Queries find them within two seconds.

    They are stored where the products are, so that rebuilds keep them. The same images again
    change nothing.
    """
    web, product = web_of(request), nfc(checked_product_id(product_id))
    _, uploads = await read_uploads(request, ImageBody)
    if not uploads:
        raise WrongUse("Name an image: send files, image_base64 or image_url.")
    await web.agreement.require_of_running((QUERY,), *SHARED)
    images = await asyncio.to_thread(live_changes.new_images, web.resources)
    paths = [_path(product, upload) for upload in uploads]
    answers = [await web.ask(IMAGE_VECTOR, (upload.message,)) for upload in uploads]
    await asyncio.to_thread(_add, web, images, product, paths, uploads, answers)
    _tell(client, "added", product, paths)
    added: dict[str, Any] = {
        "product_id": product,
        "index_version": answers[0]["index_version"],
        "added": list(dict.fromkeys(paths)),
    }
    if warnings := [each for answer in answers for each in answer.get("warnings", ())]:
        added["warnings"] = warnings
    return added


@router.delete(
    "/{product_id}",
    response_model=Removed,
    responses=problems(404, 422, 503, 504),
)
async def remove_product(
    request: Request, product_id: ProductPath, client: Keeper
) -> dict[str, Any]:
    """Remove a product from the index. Its files stay; later rebuilds leave them out."""
    return await _remove(request, product_id, client, None)


@router.delete(
    "/{product_id}/images",
    response_model=Removed,
    responses=problems(404, 422, 503, 504),
)
async def remove_image(
    request: Request,
    product_id: ProductPath,
    client: Keeper,
    filename: Annotated[
        str,
        QueryParameter(
            min_length=1, max_length=MAX_ID, description="One of `filenames` of the product."
        ),
    ],
) -> dict[str, Any]:
    """Remove one image of a product from the index. Its file stays; later rebuilds leave it out."""
    return await _remove(request, product_id, client, filename)


async def _remove(
    request: Request, product_id: str, client: Client, filename: str | None
) -> dict[str, Any]:
    web, product = web_of(request), nfc(checked_product_id(product_id))
    await web.agreement.require_of_running((QUERY,), *SHARED)
    try:
        listed = (await web.ask(PRODUCT, (product,)))["filenames"]
    except NotFound:  # it may have been added within the last second
        listed = []
    version, paths = await asyncio.to_thread(
        live_changes.remove_images, web.resources, product, listed, filename
    )
    _tell(client, "removed", product, paths)
    return {"product_id": product, "index_version": version, "removed": paths}


def _path(product: str, upload: Upload) -> str:
    return image_path(product, upload_name(upload.name, upload.data), upload.data)


def _add(
    web: Web,
    images: NewImages,
    product: str,
    paths: Sequence[str],
    uploads: Sequence[Upload],
    answers: Sequence[dict[str, Any]],
) -> None:
    for path, upload, answer in zip(paths, uploads, answers, strict=True):
        live_changes.add_image(web.resources, product, images.put(path, upload.data), answer)


def _tell(client: Client, what: str, product: str, paths: Sequence[str]) -> None:
    log.info("%s has %s %d images of product %r.", client.name, what, len(paths), product)
