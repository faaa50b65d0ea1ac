"""What people made of their matches, and what follows for a ranking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]

# What a person does about a match, and how much it says beside a like. The shares of clicks are our
# own choice; 'imgrec feedback report' shows on one's own log whether it helps.
WEIGHTS = {"like": 1.0, "purchase": 1.0, "click": 0.3, "dislike": 1.0}
ACTIONS = tuple(WEIGHTS)
DISLIKE = "dislike"
GAINS = {"purchase": 3.0, "like": 2.0, "click": 1.0, DISLIKE: 0.0}  # of nDCG

# Rocchio's rule with the weights of Manning, Raghavan, Schuetze, "Introduction to Information
# Retrieval", section 9.1.1: alpha (the query) 1, beta (liked) 0.75, gamma (disliked) 0.15.
BETA, GAMMA = 0.75, 0.15

# A product that d people disliked and l people liked, for queries like this one, loses
# PENALTY_WEIGHT * d / (d + l + PRIOR) of the way from perfect likeness to a random pair.
# Below MIN_DISLIKES it loses nothing: one person's taste is no reason for all.
PENALTY_WEIGHT, PRIOR, MIN_DISLIKES = 0.5, 3, 2
NDCG_DEPTH = 10


@dataclass(frozen=True)
class Feedback:
    """One person's verdict about one match; `vector` is the query's."""

    query_id: str
    product_id: str
    who: str
    action: str
    given_at: float
    rank: int
    index_version: str
    fingerprint: str
    vector: Vector


@dataclass(frozen=True)
class LoggedQuery:
    """One answered query: (product, score) by rank."""

    query_id: str
    asked_at: float
    who: str
    index_version: str
    fingerprint: str
    shown: tuple[tuple[str, float], ...]
    vector: Vector


class FeedbackIndex:
    """Feedback of one fingerprint, oldest first."""

    def __init__(self, given: Sequence[Feedback]) -> None:
        self._given = sorted(given, key=lambda one: one.given_at)
        self._at = np.array([one.given_at for one in self._given])
        self._vectors = np.stack([one.vector for one in self._given]) if given else None

    def similar_to(
        self, query: Vector, alike: float, before: float | None = None
    ) -> list[Feedback]:
        """Return the feedback on queries whose cosine to this one is `alike` or more."""
        if self._vectors is None:
            return []
        end = len(self._at) if before is None else int(np.searchsorted(self._at, before))
        near = np.flatnonzero(self._vectors[:end] @ query >= alike)
        return [self._given[at] for at in near]


@dataclass(frozen=True)
class Adjustment:
    """What feedback changes about one query.

    moved: (d,) unit vector to search with; penalties: what a product's value loses.
    """

    moved: Vector
    penalties: dict[str, float]


def adjust(
    query: Vector,
    similar: Sequence[Feedback],
    who: str,
    random_score: float,
    vector_of: Callable[[str], Vector | None],
) -> Adjustment:
    """Move a query by its user's history, and weigh what everybody disliked.

    Args:
        similar: feedback on queries like this one.
        who: whose history counts; empty: nobody's.
        random_score: median cosine of random pairs of the index.
    """
    moved = query
    if who:
        mine = [one for one in similar if one.who == who]
        liked = _mean([one for one in mine if one.action != DISLIKE], vector_of)
        disliked = _mean([one for one in mine if one.action == DISLIKE], vector_of)
        if liked is not None or disliked is not None:
            moved = rocchio(query, liked, disliked)
    return Adjustment(moved, penalties(similar, random_score))


def rocchio(query: Vector, liked: Vector | None, disliked: Vector | None) -> Vector:
    """Return the (d,) query, moved to what is liked and away from what is not, unit length."""
    moved = query.astype(np.float64)
    if liked is not None:
        moved = moved + BETA * liked
    if disliked is not None:
        moved = moved - GAMMA * disliked
    unit: Vector = (moved / np.linalg.norm(moved)).astype(np.float32)
    return unit


def penalties(similar: Sequence[Feedback], random_score: float) -> dict[str, float]:
    """Return what products lose that many disliked."""
    people: dict[str, tuple[set[str], set[str]]] = {}
    for one in similar:
        against, in_favour = people.setdefault(one.product_id, (set(), set()))
        # Without a name, each query counts as a person of its own.
        person = one.who or f"query {one.query_id}"
        (against if one.action == DISLIKE else in_favour).add(person)
    reach = PENALTY_WEIGHT * (1.0 - random_score)
    return {
        product: reach * len(against) / (len(against) + len(in_favour) + PRIOR)
        for product, (against, in_favour) in people.items()
        if len(against) >= MIN_DISLIKES
    }


def _mean(given: Sequence[Feedback], vector_of: Callable[[str], Vector | None]) -> Vector | None:
    rows, weights = [], []
    for one in given:
        vector = vector_of(one.product_id)
        if vector is not None:  # else it has left the index
            rows.append(vector)
            weights.append(WEIGHTS[one.action])
    if not rows:
        return None
    mean: Vector = np.average(np.stack(rows), axis=0, weights=weights)
    return mean


def ndcg(gains: Sequence[float], depth: int = NDCG_DEPTH) -> float | None:
    """Return the normalised discounted cumulative gain of a ranking; None without any gain.

    Jaervelin and Kekaelaeinen 2002, with the discount log2(rank + 1).
    """
    values = np.asarray(gains, float)
    discounts = 1.0 / np.log2(np.arange(2, len(values) + 2))
    best = float((np.sort(values)[::-1] * discounts)[:depth].sum())
    return float((values * discounts)[:depth].sum()) / best if best else None


def report(
    queries: Sequence[LoggedQuery],
    given: Sequence[Feedback],
    rerank: Callable[[LoggedQuery], Sequence[float] | None],
) -> dict[str, Any]:
    """Judge rankings by what people did, from the log alone.

    A query is judged by feedback on itself and re-ranked with feedback given before it was asked,
    so no verdict is used to predict itself. What was never shown cannot be judged.

    Args:
        rerank: the values of a query's matches with feedback; None where that cannot be told.
    """
    by_query: dict[str, dict[str, str]] = {}
    actions = dict.fromkeys(ACTIONS, 0)
    for one in given:
        actions[one.action] += 1
        best = by_query.setdefault(one.query_id, {})
        if GAINS[one.action] >= GAINS[best.get(one.product_id, DISLIKE)]:
            best[one.product_id] = one.action
    depth = max((len(query.shown) for query in queries), default=0)
    shown, taken = np.zeros(depth, int), np.zeros(depth, int)
    before, after = [], []
    for query in queries:
        verdicts = by_query.get(query.query_id, {})
        gains = [GAINS[verdicts.get(product, DISLIKE)] for product, _ in query.shown]
        shown[: len(gains)] += 1
        taken[: len(gains)] += np.array(gains, int) > 0
        values = rerank(query) if any(gains) else None
        plain = ndcg(_sorted_by(gains, [score for _, score in query.shown]))
        if plain is not None and values is not None:
            before.append(plain)
            after.append(ndcg(_sorted_by(gains, values)) or 0.0)
    return {
        "queries": len(queries),
        "with_feedback": sum(query.query_id in by_query for query in queries),
        "actions": actions,
        "by_rank": [
            {
                "rank": rank,
                "shown": int(total),
                "taken": int(some),
                "rate": round(int(some) / int(total), 4),
            }
            for rank, (total, some) in enumerate(zip(shown, taken, strict=True), start=1)
        ],
        "ndcg": {
            "queries": len(before),
            "depth": NDCG_DEPTH,
            "before": round(float(np.mean(before)), 4) if before else None,
            "after": round(float(np.mean(after)), 4) if after else None,
        },
    }


def _sorted_by(gains: Sequence[float], values: Sequence[float]) -> list[float]:
    order = np.argsort(-np.asarray(values, float), kind="stable")
    return [gains[at] for at in order]
