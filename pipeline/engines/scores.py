"""Exact scores of what an engine finds, and how much it finds of what exact search does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from pipeline.index.engine import Hits, Vectors
from pipeline.index.faiss_index import SAMPLE, exact, noisy_queries

TARGET_RECALL = 0.97


def scored(vectors: Vectors, rows: Sequence[int], query: Vectors) -> Hits:
    """Return (row, cosine) of some rows, best first."""
    if not rows:
        return []
    ordered = np.sort(np.array(rows, np.int64))  # as in the file: neighbours are read together
    scores = np.asarray(vectors[ordered]) @ query
    best = np.argsort(-scores, kind="stable")
    return list(zip(ordered[best].tolist(), scores[best].tolist(), strict=True))


def deepening(first: int, total: int, search: Callable[[int], Hits]) -> Iterator[Hits]:
    """Yield what a search finds at a depth of `first`, then ever deeper, to `total`."""
    depth = min(first, total)
    while depth:
        yield search(depth)
        if depth == total:
            return
        depth = min(total, 4 * depth)


def tune(
    vectors: Vectors,
    widths: Sequence[int],
    find: Callable[[int, Vectors, int], Sequence[int]],
    check: Callable[[], None],
) -> tuple[int, float]:
    """Return the least width of a search that reaches `TARGET_RECALL`, or the last; its recall@10.

    Args:
        find: returns the first k rows that the index finds, from a width, a query and k.
        check: called before each width; raises to stop.
    """
    queries = noisy_queries(vectors, SAMPLE)
    best, _ = exact(vectors, queries, 10)
    width, recall = widths[0], 0.0
    for width in widths:
        check()
        recall = round(share_found(vectors, queries, best, partial(find, width)), 4)
        if recall >= TARGET_RECALL:
            break
    return width, recall


def share_found(
    vectors: Vectors, queries: Vectors, best: Vectors, find: Callable[[Vectors, int], Sequence[int]]
) -> float:
    """Return the share of the true matches of some queries that an index finds.

    Args:
        best: (queries, k) scores of the true matches, best first. Scores are compared, not rows: of
            an image that is stored twice, either row is right.
    """
    k, reached = best.shape[1], 0
    for query, lowest in zip(queries, best[:, -1], strict=True):
        hits = scored(vectors, find(query, k), query)
        reached += sum(score >= lowest - 1e-5 for _, score in hits)
    return reached / best.size
