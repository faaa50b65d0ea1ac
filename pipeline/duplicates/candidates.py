"""Pairs of images whose vectors are close enough to look at their pixels, by way of the index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.index.engine import OpenIndex

NEIGHBORS = 10
BLOCK = 1024  # rows searched for together
SPARE = 8  # neighbors more than are needed, where some may be copies
# Without a threshold, an image's own surroundings decide: how far its neighbor is, compared with
# the tenth. Among a thousand white shirts a cosine of 0.95 says nothing, among lamps it says much.
CANDIDATE_RATIO = 0.5
SIMILAR_RATIO = 0.25
# An image with ten copies has only copies around it; then half of what is usual is compared with.
USUAL_SHARE = 0.5
ALWAYS = 0.995  # as near as two encodings of one image, whatever else is near
RANDOM_QUANTILE = "0.95"


@dataclass(frozen=True)
class Candidates:
    """Pairs of rows, `rows[:, 0] < rows[:, 1]`.

    rows: (p, 2) int64. scores: (p,) float32 cosines. similar: (p,) bool, so close that they count
    as the same without a look at their pixels.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    similar: NDArray[np.bool_]


def first_rows(sha256: NDArray[np.bytes_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first row of each content, and for each row the first one with its content."""
    _, first, inverse = np.unique(np.asarray(sha256), return_index=True, return_inverse=True)
    return np.sort(first), first[inverse]


def find_candidates(
    index: OpenIndex,
    rows: NDArray[np.int64],
    threshold: float | None,
    check: Callable[[int], None] = lambda done: None,
) -> Candidates:
    """Search for each row's nearest neighbors in blocks; ten searches for each are never made.

    Args:
        rows: the rows that are compared, one for each content.
        threshold: lowest cosine of a pair; None: by each image's surroundings.
        check: called with the number of rows done; raises to stop.
    """
    vectors = index.version.vectors
    allowed = np.zeros(len(vectors), bool)
    allowed[rows] = True
    # One more than wanted: each finds itself, too.
    depth = min(NEIGHBORS + 1, len(rows))
    scores = np.zeros((len(rows), depth), np.float32)
    ids = np.full((len(rows), depth), -1, np.int64)
    for start in range(0, len(rows), BLOCK):
        block = slice(start, start + BLOCK)
        own = np.asarray(vectors[rows[block]])
        scores[block], ids[block] = _nearest(index, own, depth, allowed)
        check(min(start + BLOCK, len(rows)))
    other = (ids >= 0) & (ids != rows[:, None])
    if threshold is not None:
        chosen = similar = other & (scores >= threshold)
    else:
        floor = index.version.random_pairs["quantiles"][RANDOM_QUANTILE]
        chosen, similar = _by_surroundings(scores, other, floor)
    at, place = np.nonzero(chosen)
    pairs = np.sort(np.stack([rows[at], ids[at, place]], axis=1), axis=1)
    return _merged(pairs, scores[at, place], similar[at, place])


def _nearest(
    index: OpenIndex, queries: NDArray[np.float32], depth: int, allowed: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Search for the nearest allowed rows.

    A search that skips rows takes four times as long (FAISS, flat). So rows that are not allowed
    are dropped from a somewhat deeper search; only queries that then lack some are searched so.
    """
    if allowed.all():
        return index.search(queries, depth)
    scores, ids = index.search(queries, depth + SPARE)
    good = (ids >= 0) & allowed[ids]
    order = np.argsort(~good, axis=1, kind="stable")[:, :depth]
    scores, ids = np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
    lacking = ~np.take_along_axis(good, order, 1).all(axis=1)
    if lacking.any():
        scores[lacking], ids[lacking] = index.search(queries[lacking], depth, allowed)
    return scores, ids


def _by_surroundings(
    scores: NDArray[np.float32], other: NDArray[np.bool_], floor: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Choose the neighbors that are far closer than the last one of each row.

    Args:
        scores: (n, k) cosines. other: (n, k), false for a row itself and where there is none.

    Returns (n, k) which are candidates, and which are similar by that alone.
    """
    distance = np.where(other, 1.0 - scores, 0.0)
    last = distance.max(axis=1, keepdims=True, initial=0.0)
    usual = float(np.median(last)) if len(last) else 0.0
    reference = np.maximum(last, USUAL_SHARE * usual)
    near = other & (distance <= CANDIDATE_RATIO * reference) & (scores >= floor)
    chosen = near | (other & (scores >= ALWAYS))
    return chosen, chosen & (distance <= SIMILAR_RATIO * last)


def _merged(
    pairs: NDArray[np.int64], scores: NDArray[np.float32], similar: NDArray[np.bool_]
) -> Candidates:
    """Name each pair once, the most similar first; it is found from either side, or from one."""
    unique, first, inverse = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
    either = np.zeros(len(unique), bool)
    np.logical_or.at(either, inverse.ravel(), similar)
    order = np.argsort(-scores[first], kind="stable")
    return Candidates(unique[order], scores[first][order], either[order])
