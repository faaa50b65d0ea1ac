"""The tasks of queue `query`: a picture in, its matches or classes out."""

from __future__ import annotations

import base64
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from celery import shared_task
from celery.app.task import Task
from numpy.typing import NDArray

from pipeline.embed import confined
from pipeline.errors import BadImage, ImgrecError, WrongUse
from pipeline.failpoints import failpoint
from pipeline.images import decode, encode_jpeg, read_image, sha256
from pipeline.plan import require_allowed
from pipeline.recommend import OpenIndex
from pipeline.settings import load_settings
from pipeline.store.cache import result_key
from workers import runtime

log = logging.getLogger(__name__)

EMBED_TIMEOUT_S = 120.0
THUMBNAIL_SIDE = 256  # pixels of a match's picture on the result page
MAX_PICTURES = 100


@shared_task(name="imgrec.query_image", bind=True, throws=(ImgrecError,))
def query_image(self: Task, data: bytes, top_k: int) -> dict[str, Any]:
    """Find the `top_k` products that look most like the picture in `data`.

    Returns the query object of the command line's contract. Raises what its sentence tells:
    IndexMissing, BadImage, FingerprintMismatch, SetupError.
    """
    start = time.monotonic()
    failpoint("query.start")
    index = runtime.published().current()
    _require_size(data)
    if not 1 <= top_k <= 1000:
        raise WrongUse(f"top_k is {top_k}; it can be 1 to 1000.")
    mine = runtime.fingerprint()
    index.version.require(mine.id, mine.summary)
    digest = sha256(data)
    key = result_key(index.version.identity, mine.id, digest, {"top_k": top_k})
    matches = runtime.cache().get_result(key)
    cached = matches is not None
    if matches is None:
        matches = _search(index, data, digest, top_k)
        runtime.cache().put_result(key, matches)
    log.info(
        "Query %s: %d matches%s in %.0f ms.",
        self.request.id,
        len(matches),
        " from the cache" if cached else "",
        1000 * (time.monotonic() - start),
    )
    return {
        "query_id": self.request.id,
        "index_version": index.version.name,
        "matches": matches,
    }


@shared_task(name="imgrec.classify_image", bind=True, throws=(ImgrecError,))
def classify_image(self: Task, data: bytes, use_trained: bool = False) -> dict[str, Any]:
    """Say what the picture in `data` shows; needs no index.

    With `use_trained`, trained heads answer what they were trained for. Returns the classify object
    of the command line's contract. Raises what its sentence tells: BadImage, SetupError, WrongUse
    where the labels file has a mistake, HeadBroken and FingerprintMismatch.
    """
    start = time.monotonic()
    _require_size(data)
    classifier = runtime.trained() if use_trained else runtime.zero_shot()
    answer = classifier.classify(_vector(data, sha256(data)))
    log.info("Classified %s in %.0f ms.", self.request.id, 1000 * (time.monotonic() - start))
    return answer


def _require_size(data: bytes) -> None:
    if len(data) > load_settings().max_image_bytes:
        raise BadImage(f"the image has {len(data):,} bytes, more than MAX_IMAGE_BYTES", "read")


def _search(index: OpenIndex, data: bytes, digest: str, top_k: int) -> list[dict[str, Any]]:
    vector = _vector(data, digest)
    return [asdict(match) for match in index.matches(vector, top_k)]


def _vector(data: bytes, digest: str) -> NDArray[np.float32]:
    """Return the picture's (d,) unit vector: a known one, or the model's."""
    known = runtime.KnownVectors(runtime.fingerprint().id, use_known=True)
    vector = known.get(digest)
    if vector is None:
        image = decode(data, runtime.limits(), load_settings().preprocess_bg_color)
        prepared = runtime.query_prepare()(image)
        vector = runtime.batcher().embed(prepared.image, EMBED_TIMEOUT_S)
        known.put({digest: vector})
    return vector


@shared_task(name="imgrec.pictures", throws=(ImgrecError,))
def pictures(version: str, filenames: list[str]) -> dict[str, str]:
    """Return small JPEGs, base64, of products in an index version; what is gone is left out.

    Opens only files that this version names, below the folder that it was built from.
    """
    opened = runtime.versions().current()
    if opened.name != version:
        opened = runtime.versions().open(version)
    root = Path(opened.manifest["root"])
    require_allowed(root, load_settings())
    known = set(filenames[:MAX_PICTURES]) & set(opened.paths)
    found = {}
    for filename in sorted(known):
        try:
            data = read_image(confined(root, filename), runtime.limits())
            image = decode(data, runtime.limits(), load_settings().preprocess_bg_color)
        except BadImage as error:
            log.info("No picture of %s: %s", filename, error)
            continue
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        found[filename] = base64.b64encode(encode_jpeg(image, 85)).decode()
    return found
