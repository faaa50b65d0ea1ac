"""What queue `query` answers: an image in, its matches or classes out."""

from __future__ import annotations

import base64
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import BadImage, ImageOutOfMemory, WrongUse
from pipeline.failpoints import failpoint
from pipeline.images.decode import decode, encode_jpeg, read_image, sha256
from pipeline.images.find import confined, require_allowed
from pipeline.search.query import Query
from pipeline.search.query_vector import compose, embed_image
from pipeline.search.rank import VERSION as RANKING_VERSION
from pipeline.search.rank import Answer, recommend
from pipeline.search.relevance_feedback import LoggedQuery
from pipeline.store.cache import result_key
from workers.known_vectors import KnownVectors
from workers.resources import Resources
from workers.routes import QUERY

log = logging.getLogger(__name__)

EMBED_TIMEOUT_S = 120.0
THUMBNAIL_SIDE = 256  # pixels of a match's picture on the result page
MAX_THUMBNAILS = 100


def query_image(
    resources: Resources,
    data: bytes,
    top_k: int,
    options: dict[str, Any] | None = None,
    *,
    query_id: str | None = None,
) -> dict[str, Any]:
    """Find the `top_k` products that fit best to the picture in `data`, and to `options`.

    Args:
        data: an image file's bytes; empty where a text or a product asks.
        options: the fields of `pipeline.search.query.Query`.
        query_id: its name in the log of queries; None logs nothing.

    Returns the query object of the command line's contract. Raises what its sentence tells:
    IndexMissing, BadImage, FingerprintMismatch, SetupError, WrongUse, ServerUnavailable.
    """
    start = time.monotonic()
    failpoint("query.start")
    question = Query.from_message(top_k, options)
    _require_size(resources, data)
    question.require_subject(bool(data))
    index = resources.live_index.current()
    mine = resources.fingerprint
    index.version.require(mine.id, mine.summary)
    # Who asks by what was imported or said may have done so in the same second.
    shelf = resources.indexed_catalogues.of(index.version, at_once=bool(question.conditions))
    digest = sha256(data) if data else ""
    facts = {
        "query": question.key(),
        "catalogue": shelf.catalogue.revision,
        "ranking": RANKING_VERSION,
    }
    key = result_key(index.version.identity, mine.id, digest, facts)
    # What feedback changes is not kept: it may change with every verdict.
    kept = None if question.uses_feedback else resources.cache.get_result(key)
    answer = found = _unpack(kept)
    if answer is None:
        known = KnownVectors(resources.cache, mine.id, index.version)
        opinions = resources.feedback_index.get(now=True) if question.uses_feedback else None
        with resources.cache.pipelined():
            image = _vector(resources, data, digest, known) if data else None
            asked = compose(question, image, resources.text_vector, shelf)
            answer = recommend(question, index, shelf, asked, opinions)
            if not question.uses_feedback:
                resources.cache.put_result(key, _pack(answer))
    log.info(
        "Query %s: %d matches%s in %.0f ms.",
        query_id,
        len(answer.matches),
        " from the cache" if found is not None else "",
        1000 * (time.monotonic() - start),
    )
    if query_id:
        resources.query_log.put(
            LoggedQuery(
                query_id=query_id,
                asked_at=time.time(),
                user=question.user,
                index_version=index.version.name,
                fingerprint=mine.id,
                matches=tuple((match["product_id"], match["score"]) for match in answer.matches),
                vector=answer.vector,
            )
        )
    failpoint("query.before_answer")
    shown: dict[str, Any] = {
        "query_id": query_id,
        "index_version": index.version.name,
        "matches": answer.matches,
    }
    if answer.min_score is not None:
        shown["min_score"] = answer.min_score
    return shown


def _pack(answer: Answer) -> dict[str, Any]:
    vector = base64.b64encode(np.asarray(answer.vector, "<f4").tobytes()).decode()
    return {"matches": answer.matches, "min_score": answer.min_score, "vector": vector}


def _unpack(kept: Any) -> Answer | None:
    try:
        vector = np.frombuffer(base64.b64decode(kept["vector"]), "<f4").astype(np.float32)
        return Answer(list(kept["matches"]), kept["min_score"], vector)
    except (TypeError, ValueError, KeyError):
        return None  # not written by this module


def classify_image(
    resources: Resources, data: bytes, use_trained: bool = False, *, query_id: str | None = None
) -> dict[str, Any]:
    """Say what the picture in `data` shows; needs no index.

    With `use_trained`, trained heads answer what they were trained for. Returns the classify object
    of the command line's contract. Raises what its sentence tells: BadImage, SetupError, WrongUse
    where the labels file has a mistake, HeadBroken and FingerprintMismatch.
    """
    start = time.monotonic()
    _require_size(resources, data)
    if not isinstance(use_trained, bool):
        raise WrongUse("The query cannot be used: use_trained must be true or false.")
    classifier = resources.trained if use_trained else resources.zero_shot
    vector = _vector(resources, data, sha256(data), resources.reusable_vectors())
    answer = classifier.classify(vector)
    log.info("Classified %s in %.0f ms.", query_id, 1000 * (time.monotonic() - start))
    return answer


def _require_size(resources: Resources, data: bytes) -> None:
    if not isinstance(data, bytes):  # a message may come from anybody who reaches Redis
        raise WrongUse("The query cannot be used: its image must be bytes.")
    if len(data) > resources.settings.max_image_bytes:
        raise BadImage(f"the image has {len(data):,} bytes, more than MAX_IMAGE_BYTES", "read")


def _vector(
    resources: Resources, data: bytes, digest: str, known: KnownVectors
) -> NDArray[np.float32]:
    """Return the image's (d,) unit vector: a known one, or the model's."""
    return embed_image(
        data,
        digest,
        known,
        lambda image_file: _prepare(resources, image_file),
        lambda image: resources.batcher.embed(image, EMBED_TIMEOUT_S),
    )


def _prepare(resources: Resources, data: bytes) -> Image.Image:
    """Decode and preprocess a query's image; the models are loaded first."""
    prepare = resources.query_prepare
    resources.memory_guard.apply_limit(QUERY)
    image = decode(data, resources.limits, resources.settings.preprocess_bg_color)
    try:
        return prepare(image).image
    except MemoryError as error:
        raise ImageOutOfMemory(stage="preprocess") from error


def thumbnails(resources: Resources, version: str, filenames: list[str]) -> dict[str, str]:
    """Return small JPEGs, base64, of products in an index version; what is gone is left out.

    Opens only files that this version names, below the folder that it was built from.
    """
    if not isinstance(version, str) or not isinstance(filenames, list | tuple):
        raise WrongUse("The images cannot be found: name an index version and a list of files.")
    opened = resources.versions.current()
    if opened.name != version:
        opened = resources.versions.open(version)
    root = Path(opened.manifest["root"])
    require_allowed(root, resources.settings)
    wanted = {name for name in filenames[:MAX_THUMBNAILS] if isinstance(name, str)}
    known = {name for name in wanted if opened.has_path(name)}
    limits, jpegs = resources.limits, {}
    for filename in sorted(known):
        try:
            data = read_image(confined(root, filename), limits)
            image = decode(data, limits, resources.settings.preprocess_bg_color)
        except BadImage as error:
            log.info("No image of %s: %s", filename, error)
            continue
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        jpegs[filename] = base64.b64encode(encode_jpeg(image, 85)).decode()
    return jpegs
