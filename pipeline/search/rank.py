"""Search with a query's vector and rank the products that were found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.feeds.columns import Value, fold_text, text_of
from pipeline.feeds.names import PRODUCT_ID
from pipeline.index.engine import OpenIndex
from pipeline.search.catalogue_filter import IndexedCatalogue
from pipeline.search.listing import SCORE_DIGITS, Candidate, Listing, Vector, block_end, by_score
from pipeline.search.query import AUTO, Query
from pipeline.search.query_vector import QueryVector
from pipeline.search.relevance_feedback import Adjustment, FeedbackIndex, LoggedQuery, adjust

# Part of the key of a cached result: count it up when the same query would rank otherwise.
VERSION = 4

SORTED = 1000  # `sort` orders so many of the best matches
# So many are ordered for diversity among themselves: the time grows with the square, 0.1 s for so
# many of 512 dimensions (one core), minutes for the 25,000 of a late page's block.
DIVERSIFIED = 1250
# For --min-score auto: the share of random pairs that a match must be more similar than. Measured
# with an earlier imgrec-mini on 200 drawn products and on 341 photos of clothing: of images of the
# same kind, 100 and 92 % have a match above it; of images of other things, 18 to 42 %. At 0.99: 73
# and 64 %, and 0 to 2 %.
RANDOM_QUANTILE = "0.95"
# The same for two queries to count as similar, where a wrong one does harm.
SIMILAR_QUERY_QUANTILE = "0.99"


@dataclass(frozen=True)
class Answer:
    """Matches as the contract defines them; `vector` is the query's, (d,) of unit length.

    total: the number of matches on all pages; None where it is not known.
    search: how the index was searched; None without `explain`.
    """

    matches: list[dict[str, Any]]
    min_score: float | None
    vector: Vector
    total: int | None = None
    search: str | None = None


def recommend(
    query: Query,
    index: OpenIndex,
    indexed: IndexedCatalogue,
    query_vector: QueryVector,
    feedback: FeedbackIndex | None = None,
    groups: NDArray[np.int64] | None = None,
) -> Answer:
    """Return the products that fit best, one match a product.

    With `groups`, the (n,) group of each row or -1, one match a group: the one that fits best.

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
    reranks = search_vector is not vector or bool(adjustment.penalties) or bool(query.diverse)
    minimum = quantiles[RANDOM_QUANTILE] if query.min_score == AUTO else query.min_score
    end = SORTED if query.sort else query.offset + query.top_k
    for name in query.fields or ():
        indexed.require_column(name)
    listing = Listing(index, indexed, query, search_vector, groups)
    candidates = listing.first(block_end(end) if reranks else end)
    vectors = index.version.vectors
    if reranks:
        for candidate in candidates:
            product = np.asarray(vectors[candidate.row])
            if search_vector is not vector:  # the search returned the moved query's scores
                candidate.score = float(vector @ product)
            candidate.parts = {
                **query_vector.parts(product, candidate.score),
                **adjustment.parts(candidate.product_id, product),
            }
        # Where a lowest score takes some away, nobody knows how many must be in order.
        in_order = end if minimum is None else len(candidates)
        candidates = _rerank_blocks(candidates, vectors, query.diverse, in_order)
    good = [each for each in candidates if minimum is None or each.score >= float(minimum)]
    if query.sort:
        good = _sorted_by_column(good, query.sort, indexed)
    page = good[query.offset : query.offset + query.top_k]
    if query.explain and not reranks:
        for candidate in page:
            product = np.asarray(vectors[candidate.row])
            candidate.parts = query_vector.parts(product, candidate.score)
    matches = [
        _match(rank, candidate, indexed, query)
        for rank, candidate in enumerate(page, start=query.offset + 1)
    ]
    total = None
    if query.total:
        # In the order of a moved query, a product behind one of too low a score may reach it.
        past_the_good = search_vector is vector and len(good) < len(candidates)
        if query.sort or listing.complete or (listing.exact and past_the_good):
            total = len(good)
        elif minimum is None and groups is None:
            total = indexed.count(query.conditions, query.own_products)
    limit = None if minimum is None else round(float(minimum), 6)
    return Answer(matches, limit, vector, total, listing.plan if query.explain else None)


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


def _rerank_blocks(
    candidates: Sequence[Candidate], vectors: Vector, diversity: float, count: int
) -> list[Candidate]:
    """Order each block by the candidates' values, and the first `count` for diversity."""
    ordered: list[Candidate] = []
    while len(ordered) < len(candidates):
        block = list(candidates[len(ordered) : block_end(len(ordered) + 1)])
        block.sort(key=lambda candidate: (-candidate.value, candidate.product_id))
        for start in range(0, len(block), DIVERSIFIED):
            piece = block[start : start + DIVERSIFIED]
            if diversity and len(ordered) < count:
                piece = diversify(piece, vectors, diversity, count - len(ordered))
            ordered += piece
    return ordered


def _sorted_by_column(
    candidates: Sequence[Candidate], sort: str, indexed: IndexedCatalogue
) -> list[Candidate]:
    """Order by a fact as its column's type says, then by what does not fit the type.

    Products without it come last in either direction.
    """
    name, descending = sort.removeprefix("-"), sort.startswith("-")
    column = indexed.require_column(name)
    numbers: list[tuple[float, Candidate]] = []
    texts: list[tuple[str, Candidate]] = []
    missing: list[Candidate] = []
    for candidate in sorted(candidates, key=by_score):  # sorting is stable, also in reverse
        value: Value | None = candidate.product_id
        if name != PRODUCT_ID:
            value = indexed.catalogue.facts(candidate.product_id).get(name)
        key = None if value is None else column.key(value)
        if value is None:
            missing.append(candidate)
        elif isinstance(key, float):
            numbers.append((key, candidate))
        else:
            texts.append((fold_text(text_of(value)), candidate))
    numbers.sort(key=lambda pair: pair[0], reverse=descending)
    texts.sort(key=lambda pair: pair[0], reverse=descending)
    known = [candidate for _, candidate in (*numbers, *texts)]
    if descending:
        known = [candidate for _, candidate in (*texts, *numbers)]
    return [*known, *missing]


def diversify(
    candidates: Sequence[Candidate], vectors: Vector, strength: float, count: int
) -> list[Candidate]:
    """Choose `count` by maximal marginal relevance, with the part `diversity`; the others follow.

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
    return [*chosen, *(candidates[at] for at in remaining)]


def _match(
    rank: int, candidate: Candidate, indexed: IndexedCatalogue, query: Query
) -> dict[str, Any]:
    score = round(candidate.score, SCORE_DIGITS)
    match: dict[str, Any] = {
        "rank": rank,
        "product_id": candidate.product_id,
        "filename": indexed.version.paths[candidate.row],
        "score": score,
        "distance": round(1.0 - score, 6),
    }
    facts = indexed.catalogue.facts(candidate.product_id)
    if query.fields is not None:
        facts = {name: value for name, value in facts.items() if name in query.fields}
    if facts:
        match["product"] = facts
    varying = indexed.catalogue.varying(candidate.product_id)
    if query.fields is not None:
        varying = {name: values for name, values in varying.items() if name in query.fields}
    if varying:
        match["variants"] = varying
    if query.explain:
        parts = {name: round(value, 6) for name, value in candidate.parts.items()}
        match["explain"] = {**parts, "total": round(candidate.value, 6)}
    return match
