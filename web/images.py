"""The image of a request: uploaded, in base64, or at an address; verified as the terminal does."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from pipeline.errors import BadImage, ImageTooLarge, WrongUse
from pipeline.images.message_image import message_image
from pipeline.search.query import AUTO, MAX_IMAGES
from web.context import Web, web_of
from web.problems import Refusal, invalid_sentence
from web.request_limits import HOLD
from web.schemas import ImageBody

LISTS = ("where", "fields")  # form fields that may be repeated


@dataclass(frozen=True)
class Upload:
    """An image of a request: what its sender calls its file, the file, and the bytes to send."""

    name: str
    data: bytes
    message: bytes


BodyT = TypeVar("BodyT", bound=ImageBody)


async def read_body(request: Request, model: type[BodyT]) -> tuple[BodyT, list[bytes]]:
    """Return the values of a request, and the bytes of its images for a message.

    See `read_uploads`.
    """
    body, uploads = await read_uploads(request, model)
    return body, [upload.message for upload in uploads]


async def read_uploads(request: Request, model: type[BodyT]) -> tuple[BodyT, list[Upload]]:
    """Return the values of a request and its images, which are verified.

    The body is JSON, or multipart/form-data with files `image` and the same names as fields.

    Raises:
        Refusal: it is neither, or broken. WrongUse, BadImage: a value or the image is invalid.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    files: list[UploadFile] = []
    if media_type == "multipart/form-data":
        values, files = _form_values(await request.form(max_files=MAX_IMAGES, max_fields=60))
    elif media_type == "application/json":
        values = await _json_values(request)
    else:
        raise Refusal(
            415,
            "unsupported-media-type",
            "Send application/json, or multipart/form-data with the file 'image'.",
        )
    try:
        body = model.model_validate(values)
    except ValidationError as error:
        raise WrongUse(invalid_sentence(error)) from None
    return body, await _images(request, body, files)


async def _json_values(request: Request) -> Any:
    data = await request.body()
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise Refusal(400, "bad-request", "The body is not valid JSON.") from None


def _form_values(form: FormData) -> tuple[dict[str, Any], list[UploadFile]]:
    uploads, values = list[UploadFile](), dict[str, Any]()
    for name in form:
        if name == "image":
            for image in form.getlist(name):
                if not isinstance(image, UploadFile):
                    raise WrongUse("The field 'image' must be a file.")
                if image.filename or image.size:
                    uploads.append(image)
            continue
        items = form.getlist(name)
        if any(isinstance(item, UploadFile) for item in items):
            raise WrongUse(f"The field '{name[:80]}' must not be a file.")
        if name in LISTS:
            values[name] = items
        elif len(items) > 1:
            raise WrongUse(f"The field '{name[:80]}' is given twice.")
        elif name == "products":
            values[name] = _json_field(name, str(items[0]))
        elif name == "box":
            values[name] = box_value(str(items[0]))
        elif items[0] != "" or name in ("text", "not", "user"):
            values[name] = items[0]
    return values, uploads


def box_value(text: str) -> str | list[str]:
    """Return the field `box` of a form as JSON has it: `auto`, or four numbers."""
    return text if text.strip() == AUTO else [part.strip() for part in text.split(",")]


def _json_field(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise WrongUse(f"The field '{name}' is not valid JSON.") from None


async def _images(request: Request, body: ImageBody, files: list[UploadFile]) -> list[Upload]:
    web = web_of(request)
    texts, urls = _several(body.image_base64), _several(body.image_url)
    if sum(bool(source) for source in (files, texts, urls)) > 1:
        raise WrongUse("Send images in one way: as files, image_base64 or image_url.")
    if len(texts) + len(urls) > MAX_IMAGES:
        raise WrongUse(f"A request takes at most {MAX_IMAGES} images.")
    uploads = []

    async def add(data: bytes, place: str, name: str = "") -> None:
        uploads.append(Upload(name, data, await verified(web, data, place)))

    for file in files:
        place = f"'{file.filename}'" if file.filename else "of the request"
        await add(await file.read(), place, file.filename or "")
    for text in texts:
        await add(_decode_base64(text), "in image_base64")
    for url in urls:
        data = await _fetch(web, url)
        request.scope[HOLD](len(data))
        await add(data, "at image_url", unquote(urlsplit(url).path))
    return uploads


def _several(value: str | list[str] | None) -> list[str]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


async def _fetch(web: Web, url: str) -> bytes:
    client = web.image_client
    if not client.hosts:
        raise WrongUse(
            "image_url is not allowed here: IMAGE_URL_HOSTS names the hosts that images are "
            "fetched from."
        )
    response = await asyncio.get_running_loop().run_in_executor(web.fetchers, client.get, url)
    return response.data


def _decode_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise WrongUse("Invalid image_base64: it is not base64.") from None


async def verified(web: Web, data: bytes, name: str) -> bytes:
    """Verify an image; return the bytes for a message.

    Raises:
        BadImage: it cannot be used; the sentence contains `name`.
    """
    if not data:
        raise BadImage(f"The image {name} cannot be used: the file is empty (0 bytes).", "read")
    limits = web.limits
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(
            f"The image {name} cannot be used: the file has {len(data):,} bytes, more than "
            f"MAX_IMAGE_BYTES ({limits.max_bytes:,}).",
            "read",
        )
    background = web.settings.preprocess_bg_color
    try:
        return await asyncio.get_running_loop().run_in_executor(
            web.decoders, message_image, data, limits, background
        )
    except BadImage as error:
        sentence = f"The image {name} cannot be used: {error}."
        raise type(error)(sentence, error.stage) from error
