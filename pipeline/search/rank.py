"""Search with a query's vector and rank the products that were found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.index.live_index import OpenIndex
from pipeline.search.catalogue_filter import IndexedCatalogue
from pipeline.search.query import AUTO, Query
from pipeline.search.query_vector import QueryVector
from pipeline.search.relevance_feedback import Adjustment, FeedbackIndex, LoggedQuery, adjust

Vector = NDArray[np.float32]

# Part of the key of a cached result: count it up when the same query would rank otherwise.
VERSION = 2

# Ranking by more than similarity chooses among this many of the most similar products.
POOL, POOL_PER_MATCH = 50, 5
# For --min-score auto: the share of random pairs that a match must be more similar than. Measured
# with imgrec-mini on 200 drawn products and on 400 photos of clothing: of images of the same kind,
# 100 and 83 % have a match above it; of other things, 0 to 3 %. At 0.99: 84 and 52 %.
RANDOM_QUANTILE = "0.95"
# The same for two queries to count as similar, where a wrong one does harm.
SIMILAR_QUERY_QUANTILE = "0.99"


@dataclass
class Candidate:
    """A product that may become a match: `parts` add up to the value that it is ranked by."""

    row: int
    product_id: str
    score: float
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def value(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Answer:
    """Matches as the contract defines them; `vector` is the query's, (d,) of unit length."""

    matches: list[dict[str, Any]]
    min_score: float | None
    vector: Vector


def recommend(
    query: Query,
    index: OpenIndex,
    indexed: IndexedCatalogue,
    query_vector: QueryVector,
    feedback: FeedbackIndex | None = None,
) -> Answer:
    """Return the products that fit best, one match a product.

    `score` is always the cosine with the query's vector. The order is by that score alone, unless
    feedback or diversity were requested; then `explain` shows the value that ranks.
    """
    quantiles = index.version.random_pairs["quantiles"]
    vector = search_vector = query_vector.vector
    adjustment = Adjustment(vector)
    if feedback is not None:
        adjustment = _adjustment(vector, query.user, feedback, indexed, quantiles)
    if adjustment.moved is not None:
        search_vector = adjustment.moved
    pool = query.top_k
    if feedback is not None or query.diverse:
        pool = max(POOL, POOL_PER_MATCH * query.top_k)
    candidates = _candidates(query, index, indexed, search_vector, pool)
    vectors = index.version.vectors
    if search_vector is not vector or adjustment.penalties or query.diverse or query.explain:
        for candidate in candidates:
            product = np.asarray(vectors[candidate.row])
            if search_vector is not vector:  # the search returned the moved query's scores
                candidate.score = float(vector @ product)
            candidate.parts = {
                **query_vector.parts(product, candidate.score),
                **adjustment.parts(candidate.product_id, product),
            }
        candidates.sort(key=lambda candidate: -candidate.value)  # stable
    limit = quantiles[RANDOM_QUANTILE] if query.min_score == AUTO else query.min_score
    if limit is not None:
        candidates = [candidate for candidate in candidates if candidate.score >= float(limit)]
    if query.diverse:
        candidates = diversify(candidates, vectors, query.diverse, query.top_k)
    matches = [
        _match(rank, candidate, indexed, query.explain)
        for rank, candidate in enumerate(candidates[: query.top_k], start=1)
    ]
    return Answer(matches, None if limit is None else round(float(limit), 6), vector)


def rerank(
    logged: LoggedQuery,
    feedback: FeedbackIndex,
    indexed: IndexedCatalogue,
    quantiles: Mapping[str, float],
) -> list[float]:
    """Return the values of a logged query's matches with the feedback given before it.

    As `recommend` computes them, but for one thing: the log names products, not images, so a
    product of several images is compared by their mean.
    """
    adjustment = _adjustment(
        logged.vector, logged.user, feedback, indexed, quantiles, before=logged.asked_at
    )
    values = []
    for product_id, score in logged.matches:
        product = indexed.vector_of(product_id)
        parts = {} if product is None else adjustment.parts(product_id, product)
        values.append(score + sum(parts.values()))
    return values


def _adjustment(
    vector: Vector,
    user: str,
    feedback: FeedbackIndex,
    indexed: IndexedCatalogue,
    quantiles: Mapping[str, float],
    before: float | None = None,
) -> Adjustment:
    similar = feedback.similar_to(vector, quantiles[SIMILAR_QUERY_QUANTILE], before)
    return adjust(vector, similar, user, quantiles["0.5"], indexed.vector_of)


def _candidates(
    query: Query, index: OpenIndex, indexed: IndexedCatalogue, vector: Vector, count: int
) -> list[Candidate]:
    """Search ever deeper until there are `count` products or no more; never the query's own."""
    allowed = indexed.allowed(query.conditions)
    by_product: dict[str, Candidate] = {}
    for hits in index.search_deepening(vector, count + bool(query.product), allowed):
        by_product = {}
        for row, score in hits:
            product_id = indexed.product_of(row)
            if product_id != query.product:
                by_product.setdefault(product_id, Candidate(row, product_id, score))
        if len(by_product) >= count:
            break
    return list(by_product.values())[:count]


def diversify(
    candidates: Sequence[Candidate], vectors: Vector, strength: float, count: int
) -> list[Candidate]:
    """Choose by maximal marginal relevance; add the part `diversity` to each.

    Carbonell and Goldstein 1998: the next one has the greatest (1 - strength) * value - strength *
    (its greatest cosine with one that was chosen).
    """
    if not candidates:
        return []
    rows = np.asarray(vectors[[candidate.row for candidate in candidates]])
    values = np.array([candidate.value for candidate in candidates])
    nearest = np.zeros(len(candidates))  # nothing was chosen yet
    remaining, chosen = list(range(len(candidates))), list[Candidate]()
    while remaining and len(chosen) < count:
        marginal = (1 - strength) * values[remaining] - strength * nearest[remaining]
        at = remaining.pop(int(marginal.argmax()))
        candidate = candidates[at]
        candidate.parts["diversity"] = float(marginal.max() - values[at])
        chosen.append(candidate)
        cosines = rows @ rows[at]
        nearest = cosines if len(chosen) == 1 else np.maximum(nearest, cosines)
    return chosen


def _match(
    rank: int, candidate: Candidate, indexed: IndexedCatalogue, explain: bool
) -> dict[str, Any]:
    # Six digits: what float32 sums of some hundred products carry.
    score = round(candidate.score, 6)
    match: dict[str, Any] = {
        "rank": rank,
        "product_id": candidate.product_id,
        "filename": indexed.version.paths[candidate.row],
        "score": score,
        "distance": round(1.0 - score, 6),
    }
    facts = indexed.catalogue.facts(candidate.product_id)
    if facts:
        match["product"] = facts
    if explain:
        parts = {name: round(value, 6) for name, value in candidate.parts.items()}
        match["explain"] = {**parts, "total": round(candidate.value, 6)}
    return match
