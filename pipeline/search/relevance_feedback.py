"""Feedback on matches: how it adjusts a ranking, and how good rankings were by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]

# What a user does with a match, and its weight beside a like's. The weight of clicks is our own
# choice; 'imgrec feedback report' shows on one's own log whether it helps.
WEIGHTS = {"like": 1.0, "purchase": 1.0, "click": 0.3, "dislike": 1.0}
ACTIONS = tuple(WEIGHTS)
DISLIKE = "dislike"
GAINS = {"purchase": 3.0, "like": 2.0, "click": 1.0, DISLIKE: 0.0}  # of nDCG

# Rocchio's rule with the weights of Manning, Raghavan, Schuetze, "Introduction to Information
# Retrieval", section 9.1.1: alpha (the query) 1, beta (liked) 0.75, gamma (disliked) 0.15.
BETA, GAMMA = 0.75, 0.15

# A product that d users disliked and l users liked, for queries similar to this one, loses
# PENALTY_WEIGHT * d / (d + l + PRIOR) of the difference between a score of 1 and a random pair's.
# Below MIN_DISLIKES it loses nothing: one user's taste does not decide for all.
PENALTY_WEIGHT, PRIOR, MIN_DISLIKES = 0.5, 3, 2
NDCG_DEPTH = 10


@dataclass(frozen=True)
class Feedback:
    """One user's action on one match; `vector` is the query's."""

    query_id: str
    product_id: str
    user: str
    action: str
    given_at: float
    rank: int
    index_version: str
    fingerprint: str
    vector: Vector

    def object(self) -> dict[str, Any]:
        """Return the JSON object of the command line and the HTTP API."""
        return {
            "query_id": self.query_id,
            "product_id": self.product_id,
            "action": self.action,
            "user": self.user,
            "rank": self.rank,
            "index_version": self.index_version,
        }


@dataclass(frozen=True)
class LoggedQuery:
    """One answered query; `matches` are (product id, score), best first, from `first_rank` on."""

    query_id: str
    asked_at: float
    user: str
    index_version: str
    fingerprint: str
    matches: tuple[tuple[str, float], ...]
    vector: Vector
    first_rank: int = 1  # of the page that was shown


class FeedbackIndex:
    """Feedback of one fingerprint, searched by the vector of its query."""

    def __init__(self, feedback: Sequence[Feedback]) -> None:
        self._feedback = sorted(feedback, key=lambda entry: entry.given_at)
        self._times = np.array([entry.given_at for entry in self._feedback])
        self._vectors = np.stack([entry.vector for entry in self._feedback]) if feedback else None

    def similar_to(
        self, query: Vector, min_cosine: float, before: float | None = None
    ) -> list[Feedback]:
        """Return the feedback on queries whose cosine with this one is at least `min_cosine`.

        Args:
            before: only feedback given before this time, in seconds since the epoch.
        """
        if self._vectors is None:
            return []
        end = len(self._times) if before is None else int(np.searchsorted(self._times, before))
        rows = np.flatnonzero(self._vectors[:end] @ query >= min_cosine)
        return [self._feedback[row] for row in rows]


@dataclass(frozen=True)
class Adjustment:
    """What feedback changes about the ranking of one query.

    query: its (d,) unit vector; moved: the unit vector to search with instead, if there is one;
    penalties: what the value of a product loses.
    """

    query: Vector
    moved: Vector | None = None
    penalties: Mapping[str, float] = field(default_factory=dict)

    def parts(self, product_id: str, product: Vector) -> dict[str, float]:
        """Return what feedback adds to the value of a product with this (d,) vector."""
        parts = {}
        if self.moved is not None:
            parts["personal"] = float((self.moved - self.query) @ product)
        if product_id in self.penalties:
            parts["disliked"] = -self.penalties[product_id]
        return parts


def adjust(
    query: Vector,
    similar: Sequence[Feedback],
    user: str,
    random_score: float,
    vector_of: Callable[[str], Vector | None],
) -> Adjustment:
    """Move a query by its user's feedback, and penalize what many users disliked.

    Args:
        similar: feedback on similar queries.
        user: whose feedback moves the query; empty: nobody's.
        random_score: median cosine of random pairs of the index.
        vector_of: returns a product's (d,) vector; None for one that is not indexed.
    """
    moved = None
    if user:
        own = [entry for entry in similar if entry.user == user]
        liked = _mean([entry for entry in own if entry.action != DISLIKE], vector_of)
        disliked = _mean([entry for entry in own if entry.action == DISLIKE], vector_of)
        if liked is not None or disliked is not None:
            moved = rocchio(query, liked, disliked)
    return Adjustment(query, moved, penalties(similar, random_score))


def rocchio(query: Vector, liked: Vector | None, disliked: Vector | None) -> Vector:
    """Return the (d,) query moved towards the liked and away from the disliked, of unit length."""
    moved = query.astype(np.float64)
    if liked is not None:
        moved = moved + BETA * liked
    if disliked is not None:
        moved = moved - GAMMA * disliked
    unit: Vector = (moved / np.linalg.norm(moved)).astype(np.float32)
    return unit


def penalties(similar: Sequence[Feedback], random_score: float) -> dict[str, float]:
    """Return what the products that many users disliked lose, by product id."""
    users: dict[str, tuple[set[str], set[str]]] = {}
    for entry in similar:
        against, in_favour = users.setdefault(entry.product_id, (set(), set()))
        # Without a user's name, each query counts as a user of its own.
        user = entry.user or f"query {entry.query_id}"
        (against if entry.action == DISLIKE else in_favour).add(user)
    largest = PENALTY_WEIGHT * (1.0 - random_score)
    return {
        product_id: largest * len(against) / (len(against) + len(in_favour) + PRIOR)
        for product_id, (against, in_favour) in users.items()
        if len(against) >= MIN_DISLIKES
    }


def _mean(feedback: Sequence[Feedback], vector_of: Callable[[str], Vector | None]) -> Vector | None:
    rows, weights = [], []
    for entry in feedback:
        vector = vector_of(entry.product_id)
        if vector is not None:  # else it has left the index
            rows.append(vector)
            weights.append(WEIGHTS[entry.action])
    if not rows:
        return None
    mean: Vector = np.average(np.stack(rows), axis=0, weights=weights)
    return mean


def ndcg(gains: Sequence[float]) -> float | None:
    """Return the nDCG@10 of a ranking, normalised discounted cumulative gain; None without gain.

    Jaervelin and Kekaelaeinen 2002, with the discount log2(rank + 1).
    """
    values = np.asarray(gains, float)
    discounts = 1.0 / np.log2(np.arange(2, len(values) + 2))
    best = float((np.sort(values)[::-1] * discounts)[:NDCG_DEPTH].sum())
    return float((values * discounts)[:NDCG_DEPTH].sum()) / best if best else None


def report(
    queries: Sequence[LoggedQuery],
    feedback: Sequence[Feedback],
    rerank: Callable[[LoggedQuery], Sequence[float] | None],
) -> dict[str, Any]:
    """Judge rankings by what users did, from the log alone.

    A query is judged by the feedback on itself and re-ranked with the feedback given before it, so
    no feedback predicts itself. Products that were never shown cannot be judged.

    Args:
        rerank: returns the values of a query's matches with feedback; None if they are unknown.
    """
    by_query: dict[str, dict[str, str]] = {}
    actions = dict.fromkeys(ACTIONS, 0)
    for entry in feedback:
        actions[entry.action] += 1
        best = by_query.setdefault(entry.query_id, {})
        if GAINS[entry.action] >= GAINS[best.get(entry.product_id, DISLIKE)]:
            best[entry.product_id] = entry.action
    lasts = (query.first_rank - 1 + len(query.matches) for query in queries if query.matches)
    depth = max(lasts, default=0)
    n_shown, n_taken = np.zeros(depth, int), np.zeros(depth, int)
    before, after = [], []
    for query in queries:
        best = by_query.get(query.query_id, {})
        gains = [GAINS[best.get(product_id, DISLIKE)] for product_id, _ in query.matches]
        page = slice(query.first_rank - 1, query.first_rank - 1 + len(gains))
        n_shown[page] += 1
        n_taken[page] += np.array(gains, int) > 0
        if query.first_rank > 1:
            continue  # a later page says nothing about the best ranks
        values = rerank(query) if any(gains) else None
        plain = ndcg(_sorted_by(gains, [score for _, score in query.matches]))
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
                "shown": candidate,
                "taken": chosen,
                "rate": round(chosen / candidate, 4),
            }
            for rank, (candidate, chosen) in enumerate(
                zip(n_shown.tolist(), n_taken.tolist(), strict=True), start=1
            )
            if candidate  # of two pages that somebody opened, one between them was not shown
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
