"""What queue `query` answers: an image in, its matches, classes or vector out."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import WrongUse
from pipeline.failpoints import failpoint
from pipeline.images.decode import sha256
from pipeline.index.engine import OpenIndex
from pipeline.search.catalogue_filter import IndexedCatalogue
from pipeline.search.duplicate_rows import RowGroups
from pipeline.search.query import AUTO, Query
from pipeline.search.query_vector import compose
from pipeline.search.rank import VERSION as RANKING_VERSION
from pipeline.search.rank import Answer, recommend
from pipeline.search.relevance_feedback import LoggedQuery
from pipeline.store.cache import result_key
from pipeline.vector_bytes import from_base64, to_base64
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
    searched = _searched(resources, query)
    digests = [image_digest(image, query.box) for image in images]
    key = _result_key(query, searched, digests)
    warnings: list[str] = []
    answer = None if query.uses_feedback else _unpack(resources.cache.get_result(key))
    cached = answer is not None
    if answer is None:
        with resources.cache.pipelined():
            answer, warnings = _search(resources, query, searched, images, digests)
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
        _record(resources, query_id, query, searched, answer)
    failpoint("query.before_answer")
    if searched.duplicates and searched.duplicates.warning:
        warnings.append(searched.duplicates.warning)
    if texts := [text for text in (query.text, query.without) if text]:
        warnings += resources.clip.text_warnings(texts)
    return _response(query, query_id, searched, answer, warnings)


@dataclass(frozen=True)
class _Searched:
    """What a query searches; `duplicates` is None where it does not collapse them."""

    index: OpenIndex
    fingerprint: str
    catalogue: IndexedCatalogue
    duplicates: RowGroups | None


def _searched(resources: Resources, query: Query) -> _Searched:
    """Return the index that a query names, or the published one, which this model must match."""
    index = resources.searched_index(query.index_version)
    fingerprint = resources.fingerprint
    index.version.require(fingerprint.id, fingerprint.summary)
    # A user who filters may have imported the products within the same second.
    catalogue = resources.indexed_catalogues.of(index.version, at_once=bool(query.conditions))
    duplicates = resources.duplicate_rows.of(catalogue) if query.collapse else None
    return _Searched(index, fingerprint.id, catalogue, duplicates)


def _search(
    resources: Resources,
    query: Query,
    searched: _Searched,
    images: Sequence[bytes],
    digests: Sequence[str],
) -> tuple[Answer, list[str]]:
    """Compute a query's vector and search with it; return warnings of its images, too."""
    version, fingerprint = searched.index.version, searched.fingerprint
    warned = resources.warned_paths(version)
    vectors = KnownVectors(resources.cache, fingerprint, version, warned=warned)
    feedback = resources.feedback_index.get(now=True) if query.uses_feedback else None
    with resources.metrics.query("vector"):
        image, warnings = mean_of_images(resources, images, digests, vectors, query.box)
        query_vector = compose(query, image, resources.text_vector, searched.catalogue)
    with resources.metrics.query("search"):
        groups = searched.duplicates.groups if searched.duplicates else None
        answer = recommend(
            query, searched.index, searched.catalogue, query_vector, feedback, groups
        )
    return answer, warnings


def _response(
    query: Query, query_id: str | None, searched: _Searched, answer: Answer, warnings: list[str]
) -> dict[str, Any]:
    """Return the query object of the contract; what does not apply is left out."""
    response: dict[str, Any] = {
        "query_id": query_id,
        "index_version": searched.index.version.name,
        "matches": answer.matches,
    }
    if answer.min_score is not None:
        response["min_score"] = answer.min_score
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


def _result_key(query: Query, searched: _Searched, digests: Sequence[str]) -> str:
    # Several images are averaged: their order does not matter.
    several = len(digests) > 1
    image = sha256(" ".join(sorted(digests)).encode()) if several else "".join(digests)
    facts = {
        "query": query.model_dump_json(),
        "catalogue": searched.catalogue.catalogue.revision,
        "ranking": RANKING_VERSION,
        "groups": searched.duplicates.key if searched.duplicates else "",
    }
    return result_key(searched.index.version.identity, searched.fingerprint, image, facts)


def _record(
    resources: Resources, query_id: str, query: Query, searched: _Searched, answer: Answer
) -> None:
    """Add an answered query to the query log, which feedback refers to."""
    resources.query_log.put(
        LoggedQuery(
            query_id=query_id,
            asked_at=time.time(),
            user=query.user,
            index_version=searched.index.version.name,
            fingerprint=searched.fingerprint,
            matches=tuple((match["product_id"], match["score"]) for match in answer.matches),
            first_rank=query.offset + 1,
            vector=answer.vector,
        )
    )


def _pack(answer: Answer) -> dict[str, Any]:
    facts = {"matches": answer.matches, "min_score": answer.min_score, "total": answer.total}
    return {**facts, "vector": to_base64(answer.vector), "search": answer.search}


def _unpack(result: Any) -> Answer | None:
    try:
        vector = from_base64(result["vector"])
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
        "vector": to_base64(vector),
        "fingerprint": fingerprint.id,
        "index_version": version.name,
    }
    return {**answer, "warnings": [warning]} if warning else answer
