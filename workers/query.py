"""What queue `query` answers: an image in, its matches or classes out."""

from __future__ import annotations

import base64
import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.errors import BadImage, NotFound, WrongUse, quote
from pipeline.failpoints import failpoint
from pipeline.images.decode import (
    WORK_SIDE,
    decode,
    encode_jpeg,
    sha256,
)
from pipeline.images.find import ImageFile
from pipeline.images.roots import open_reader
from pipeline.index.versions import Version
from pipeline.search.catalogue_filter import IndexedCatalogue
from pipeline.search.query import AUTO, Query
from pipeline.search.query_vector import compose
from pipeline.search.rank import VERSION as RANKING_VERSION
from pipeline.search.rank import Answer, recommend
from pipeline.search.relevance_feedback import LoggedQuery
from pipeline.store.cache import result_key
from workers.dispatch import require_names
from workers.known_vectors import KnownVectors
from workers.query_images import (
    image_digest,
    images_of,
    mean_of_images,
    require_size,
    vector_of_image,
)
from workers.resources import Resources

log = logging.getLogger(__name__)

THUMBNAIL_SIDE = 256  # pixels of a match's image on the result page
MAX_THUMBNAILS = 100
JPEG_END = b"\xff\xd9"  # behind a JPEG that is cut off, it makes the rest gray


def query_image(
    resources: Resources,
    data: bytes | Sequence[bytes],
    top_k: int,
    options: dict[str, Any] | None = None,
    *,
    query_id: str | None = None,
) -> dict[str, Any]:
    """Find the `top_k` products that match the image in `data` and `options` best.

    Args:
        data: the bytes of an image file; empty for a query by text or by product. Several images
            of one product are averaged.
        options: the fields of `pipeline.search.query.Query`.
        query_id: the key of the query in the query log; None logs nothing.

    Returns the query object of the command line's contract. Raises IndexMissing, BadImage,
    Conflict, FingerprintMismatch, SetupError, WrongUse or ServerUnavailable, each with a sentence.
    """
    start = time.monotonic()
    failpoint("query.start")
    images = images_of(data)
    query = _checked(resources, images, top_k, options)
    index = resources.searched_index(query.index_version)
    fingerprint = resources.fingerprint
    index.version.require(fingerprint.id, fingerprint.summary)
    # A user who filters may have imported the products within the same second.
    indexed = resources.indexed_catalogues.of(index.version, at_once=bool(query.conditions))
    grouped = resources.duplicate_rows.of(indexed) if query.collapse else None
    digests = [image_digest(image, query.box) for image in images]
    digest = digests[0] if len(digests) == 1 else sha256(" ".join(sorted(digests)).encode())
    key = _result_key(
        query,
        index.version,
        fingerprint.id,
        digest if digests else "",
        indexed,
        grouped.key if grouped else "",
    )
    answer = None if query.uses_feedback else _unpack(resources.cache.get_result(key))
    cached = answer is not None
    warnings: list[str] = []
    if answer is None:
        warned = resources.warned_paths(index.version)
        vectors = KnownVectors(resources.cache, fingerprint.id, index.version, warned=warned)
        feedback = resources.feedback_index.get(now=True) if query.uses_feedback else None
        with resources.cache.pipelined():
            with resources.metrics.query("vector"):
                image, warnings = mean_of_images(resources, images, digests, vectors, query.box)
                query_vector = compose(query, image, resources.text_vector, indexed)
            with resources.metrics.query("search"):
                groups = grouped.groups if grouped else None
                answer = recommend(query, index, indexed, query_vector, feedback, groups)
            # Each new feedback may change a result, and a cached one comes without its warnings.
            if not query.uses_feedback and not warnings:
                resources.cache.put_result(key, _pack(answer))
    log.info(
        "Query %s: %d matches%s in %.0f ms.",
        query_id,
        len(answer.matches),
        " from the cache" if cached else "",
        1000 * (time.monotonic() - start),
    )
    if query_id:
        _record(resources, query_id, query, index.version.name, fingerprint.id, answer)
    failpoint("query.before_answer")
    response: dict[str, Any] = {
        "query_id": query_id,
        "index_version": index.version.name,
        "matches": answer.matches,
    }
    if answer.min_score is not None:
        response["min_score"] = answer.min_score
    if grouped and grouped.warning:
        warnings.append(grouped.warning)
    if texts := [text for text in (query.text, query.without) if text]:
        warnings += resources.clip.text_warnings(texts)
    if warnings:
        response["warnings"] = warnings
    if query.total:
        response["total"] = answer.total
    if answer.search is not None:
        response["search"] = answer.search
    return response


def _checked(
    resources: Resources, images: list[Any], top_k: int, options: dict[str, Any] | None
) -> Query:
    """Validate a message; the client did so, but anybody who reaches Redis may have sent it."""
    query = Query.from_message(top_k, options)
    query.require_subject(len(images))
    for image in images:
        require_size(resources, image)
    if query.box == AUTO and not resources.settings.use_bg_removal:
        raise WrongUse(
            "--box auto needs background removal, which is off on this worker: name the box as "
            "x,y,width,height, or set USE_BG_REMOVAL=true and rebuild."
        )
    return query


def _result_key(
    query: Query,
    version: Version,
    fingerprint: str,
    digest: str,
    indexed: IndexedCatalogue,
    groups: str,
) -> str:
    facts = {
        "query": query.key(),
        "catalogue": indexed.catalogue.revision,
        "ranking": RANKING_VERSION,
        "groups": groups,
    }
    return result_key(version.identity, fingerprint, digest, facts)


def _record(
    resources: Resources,
    query_id: str,
    query: Query,
    index_version: str,
    fingerprint: str,
    answer: Answer,
) -> None:
    """Add an answered query to the query log, which feedback refers to."""
    resources.query_log.put(
        LoggedQuery(
            query_id=query_id,
            asked_at=time.time(),
            user=query.user,
            index_version=index_version,
            fingerprint=fingerprint,
            matches=tuple((match["product_id"], match["score"]) for match in answer.matches),
            first_rank=query.offset + 1,
            vector=answer.vector,
        )
    )


def _pack(answer: Answer) -> dict[str, Any]:
    vector = base64.b64encode(np.asarray(answer.vector, "<f4").tobytes()).decode()
    facts = {"matches": answer.matches, "min_score": answer.min_score, "total": answer.total}
    return {**facts, "vector": vector, "search": answer.search}


def _unpack(result: Any) -> Answer | None:
    try:
        vector = np.frombuffer(base64.b64decode(result["vector"]), "<f4").astype(np.float32)
        matches, limit = list(result["matches"]), result["min_score"]
        return Answer(matches, limit, vector, result["total"], result["search"])
    except (TypeError, ValueError, KeyError):
        return None  # not written by this module


def classify_image(
    resources: Resources, data: bytes, use_trained: bool = False, *, query_id: str | None = None
) -> dict[str, Any]:
    """Classify the image in `data`; needs no index.

    With `use_trained`, trained heads answer what they were trained for. Returns the classify object
    of the command line's contract. Raises BadImage, SetupError, WrongUse (also for a mistake in the
    labels file), HeadBroken or FingerprintMismatch, each with a sentence.
    """
    start = time.monotonic()
    require_size(resources, data)
    if not isinstance(use_trained, bool):
        raise WrongUse("The query cannot be used: use_trained must be true or false.")
    classifier = resources.trained if use_trained else resources.zero_shot
    vector, warning = vector_of_image(resources, data, sha256(data), resources.reusable_vectors())
    answer = classifier.classify(vector)
    if warning:
        answer = {**answer, "warnings": [f"The image: {warning}.", *answer.get("warnings", [])]}
    log.info("Classified %s in %.0f ms.", query_id, 1000 * (time.monotonic() - start))
    return answer


def image_vector(
    resources: Resources, data: bytes, *, query_id: str | None = None
) -> dict[str, Any]:
    """Return the vector of the image in `data`, base64 of little-endian float32, to be indexed.

    Raises:
        FingerprintMismatch: it cannot be compared with those of the published index.
    """
    require_size(resources, data)
    fingerprint = resources.fingerprint
    version = resources.live_index.current().version
    version.require(fingerprint.id, fingerprint.summary)
    vector, warning = vector_of_image(resources, data, sha256(data), resources.reusable_vectors())
    log.info("Embedded %s.", query_id)
    answer: dict[str, Any] = {
        "vector": base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode(),
        "fingerprint": fingerprint.id,
        "index_version": version.name,
    }
    return {**answer, "warnings": [warning]} if warning else answer


def thumbnails(resources: Resources, version: str, filenames: list[str]) -> dict[str, str]:
    """Return small JPEGs, base64, of products in an index version; what is gone is left out.

    Opens only files that this version names, below the folder that it was built from.
    """
    if not isinstance(version, str) or not isinstance(filenames, list | tuple):
        raise WrongUse("Invalid request for thumbnails: name an index version and a list of files.")
    opened = resources.searched_index().version
    if opened.name != version:
        opened = resources.versions.open(version)
    names = {name for name in filenames[:MAX_THUMBNAILS] if isinstance(name, str)}
    return _jpegs(resources, opened, sorted(names), THUMBNAIL_SIDE)


def _jpegs(
    resources: Resources, version: Version, filenames: list[str], side: int
) -> dict[str, str]:
    source = open_reader(version.manifest["root"], resources.settings)
    files = [version.image(name) for name in filter(version.has_path, filenames)]
    limits, jpegs = resources.limits, {}
    with source.reading(files, limits) as read:
        for file in files:
            try:
                image = decode(read(file), limits, resources.settings.preprocess_bg_color, side)
            except BadImage as error:
                log.info("No thumbnail of %s: %s", file.path, error)
                continue
            image.thumbnail((side, side))
            jpegs[file.path] = base64.b64encode(encode_jpeg(image, 85)).decode()
    return jpegs


def product(resources: Resources, product_id: str) -> dict[str, Any]:
    """Return a product of the published index: its images and what was imported about it.

    Raises:
        NotFound: the index has no such product.
    """
    indexed = _indexed(resources)
    return {
        "product_id": product_id,
        "index_version": indexed.version.name,
        "filenames": _filenames(indexed, product_id),
        "product": indexed.catalogue.facts(product_id),
    }


def product_image(resources: Resources, product_id: str, side: int) -> dict[str, str]:
    """Return the first image of a product as JPEG, base64, `side` pixels on its longer side.

    Raises:
        NotFound: the index has no such product, or its file is gone.
    """
    _require_side(side)
    indexed = _indexed(resources)
    filename = _filenames(indexed, product_id)[0]
    jpegs = _jpegs(resources, indexed.version, [filename], side)
    if filename not in jpegs:
        raise NotFound(f"The image of product {quote(product_id)} cannot be read.")
    return {"filename": filename, "jpeg": jpegs[filename]}


def failure_image(resources: Resources, job_id: str, path: str, side: int) -> dict[str, str | None]:
    """Return an image that a rebuild left out or warned about as JPEG, base64.

    Opens only files that the job's failures name, below the job's folder. `jpeg` is None for one
    that still cannot be read.

    Raises:
        NotFound: there is no such job, or it has no such failure.
    """
    _require_side(side)
    require_names(job_id)
    job = resources.jobs.get(job_id)
    if path not in {failure.path for failure in resources.jobs.failures(job_id)}:
        raise NotFound(f"Job {job_id} has no failure of {quote(path)}.")
    return {"jpeg": _preview(resources, job.root, path, side)}


def _preview(resources: Resources, root: str, path: str, side: int) -> str | None:
    """Return what can be seen of an image that failed, also of one that is tiny or cut off."""
    limits = replace(resources.limits, min_side=1)
    background = resources.settings.preprocess_bg_color
    file = ImageFile(path, 0, 0)
    with (
        contextlib.suppress(BadImage),
        open_reader(root, resources.settings).reading([file], limits) as read,
    ):
        data = read(file)
        for attempt in (data, data + JPEG_END):
            with contextlib.suppress(BadImage):
                image = decode(attempt, limits, background, side)
                image.thumbnail((side, side))
                return base64.b64encode(encode_jpeg(image, 85)).decode()
    return None


def _require_side(side: Any) -> None:
    if not isinstance(side, int) or not 16 <= side <= WORK_SIDE:
        raise WrongUse(f"Invalid size of an image: it must be between 16 and {WORK_SIDE}.")


def _indexed(resources: Resources) -> IndexedCatalogue:
    return resources.indexed_catalogues.of(resources.searched_index().version)


def _filenames(indexed: IndexedCatalogue, product_id: Any) -> list[str]:
    names = indexed.filenames_of(product_id) if isinstance(product_id, str) else []
    if not names:
        raise NotFound(f"Index {indexed.version.name} has no product {quote(product_id)}.")
    return names
