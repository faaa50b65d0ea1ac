"""Pairs of images whose vectors are close enough to look at their pixels, by way of the index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.index.live_index import OpenIndex

NEIGHBORS = 10
BLOCK = 1024  # rows searched for together
# Without a threshold, an image's own surroundings decide: how far its neighbor is, compared with
# the tenth. Among a thousand white shirts a cosine of 0.95 says nothing, among lamps it says much.
CANDIDATE_RATIO = 0.8
SIMILAR_RATIO = 0.25
ALWAYS = 0.995  # as near as two encodings of one image, whatever else is near
RANDOM_QUANTILE = "0.999"


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
    vectors, allowed = index.version.vectors, np.zeros(len(index.version.vectors), bool)
    allowed[rows] = True
    floor = index.version.random_pairs["quantiles"][RANDOM_QUANTILE]
    parts: list[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]] = []
    for start in range(0, len(rows), BLOCK):
        own = rows[start : start + BLOCK]
        # One more than wanted: each finds itself, too.
        scores, ids = index.search(np.asarray(vectors[own]), NEIGHBORS + 1, allowed)
        parts.append(_select(own, scores, ids, threshold, floor))
        check(start + len(own))
    return _merged(parts)


def _select(
    own: NDArray[np.int64],
    scores: NDArray[np.float32],
    ids: NDArray[np.int64],
    threshold: float | None,
    floor: float,
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
    other = (ids >= 0) & (ids != own[:, None])
    if threshold is not None:
        chosen = other & (scores >= threshold)
        similar = chosen
    else:
        distance = np.where(other, 1.0 - scores, -np.inf)
        farthest = np.maximum(distance.max(axis=1, keepdims=True), 1e-9)
        near = np.where(other, distance / farthest, np.inf)
        chosen = other & (((near <= CANDIDATE_RATIO) & (scores >= floor)) | (scores >= ALWAYS))
        similar = chosen & (near <= SIMILAR_RATIO)
    at, place = np.nonzero(chosen)
    pairs = np.stack([own[at], ids[at, place]], axis=1)
    return np.sort(pairs, axis=1), scores[at, place], similar[at, place]


def _merged(
    parts: list[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]],
) -> Candidates:
    """Name each pair once, the most similar first; it is found from either side, or from one."""
    if not parts:
        return Candidates(np.zeros((0, 2), np.int64), np.zeros(0, np.float32), np.zeros(0, bool))
    pairs, scores, similar = (np.concatenate(column) for column in zip(*parts, strict=True))
    unique, first, inverse = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
    either = np.zeros(len(unique), bool)
    np.logical_or.at(either, inverse.ravel(), similar)
    order = np.argsort(-scores[first], kind="stable")
    return Candidates(unique[order], scores[first][order], either[order])
