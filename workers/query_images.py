"""The images of a query: read them from its message, prepare them, compute their vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.embed.embed_images import NO_VECTOR, require_working, usable
from pipeline.errors import BadImage, ImageOutOfMemory, ImgrecError, SetupError, WrongUse
from pipeline.images.decode import crop, decode_with_warnings, sha256
from pipeline.preprocess.prepare import PreparedImage
from pipeline.search.query import AUTO, Box
from pipeline.search.query_vector import embed_image, mean_vector
from workers.error_policy import describe
from workers.known_vectors import KnownVectors
from workers.resources import Resources
from workers.routes import QUERY

EMBED_TIMEOUT_S = 120.0


def images_of(data: Any) -> list[Any]:
    """Return the images of a message: none, one, or a list of several."""
    if isinstance(data, list | tuple):
        return list(data)
    return [data] if data != b"" else []


def require_size(resources: Resources, data: bytes) -> None:
    if not isinstance(data, bytes):  # a message may come from anybody who reaches Redis
        raise WrongUse("The query cannot be used: its image must be bytes.")
    if len(data) > resources.settings.max_image_bytes:
        raise BadImage(f"the image has {len(data):,} bytes, more than MAX_IMAGE_BYTES", "read")


def image_digest(data: bytes, box: Box | str | None) -> str:
    """Return the content hash of an image, or of a part of it."""
    return sha256(data if box is None else f"{box} of {sha256(data)}".encode())


def mean_of_images(
    resources: Resources,
    images: Sequence[bytes],
    digests: Sequence[str],
    vectors: KnownVectors,
    box: Box | str | None,
) -> tuple[NDArray[np.float32] | None, list[str]]:
    """Return the (d,) unit mean of a query's images, None without one, and warnings."""
    if not images:
        return None, []
    found = [
        vector_of_image(resources, image, digest, vectors, box)
        for image, digest in zip(images, digests, strict=True)
    ]
    warnings = dict.fromkeys(warning for _, warning in found if warning)
    return mean_vector([vector for vector, _ in found]), [
        f"The query's image: {warning}." for warning in warnings
    ]


def vector_of_image(
    resources: Resources,
    data: bytes,
    digest: str,
    vectors: KnownVectors,
    box: Box | str | None = None,
) -> tuple[NDArray[np.float32], str | None]:
    """Return the image's (d,) unit vector, a known one or the model's, and a warning.

    Raises:
        BadImage: it cannot be used, or the model gives no usable vector for it.
    """

    def embed(image: Image.Image) -> NDArray[np.float32]:
        vector = resources.batcher.embed(image, EMBED_TIMEOUT_S)
        if not usable(vector):
            _require_working(resources, NO_VECTOR)
            raise BadImage(NO_VECTOR, "embed")
        return vector

    try:
        return embed_image(
            data,
            digest,
            vectors,
            lambda image_file: prepare_image(resources, image_file, box),
            embed,
        )
    except ImgrecError:
        raise
    except Exception as error:
        _require_working(resources, describe(error))
        raise


def _require_working(resources: Resources, met: str) -> None:
    """Check that it was the image's fault; else end this worker, which can answer no query.

    Raises:
        SetupError: it was not.
    """

    def embed(images: list[Image.Image]) -> NDArray[np.float32]:
        return resources.batcher.embed(images[0], EMBED_TIMEOUT_S)

    try:
        require_working(resources.query_prepare, embed, met)
    except SetupError as error:
        resources.end_worker(str(error))
        raise


def prepare_image(resources: Resources, data: bytes, box: Box | str | None) -> PreparedImage:
    """Decode and preprocess a query's image; the models are loaded first."""
    prepare = resources.query_prepare
    resources.memory_guard.apply_limit(QUERY)
    decoded = decode_with_warnings(data, resources.limits, resources.settings.preprocess_bg_color)
    image = decoded.image
    if isinstance(box, tuple):
        image = crop(image, box)
    try:
        prepared = prepare(image, largest=True) if box == AUTO else prepare(image)
    except MemoryError as error:
        raise ImageOutOfMemory(stage="preprocess") from error
    if box == AUTO and prepared.warning is not None:
        reason = prepared.warning.partition(";")[0]
        raise BadImage(
            f"--box auto found no object: {reason}. Name the box as x,y,width,height",
            "preprocess",
        )
    return PreparedImage(prepared.image, "; ".join(decoded.warnings) or None)
