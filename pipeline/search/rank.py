"""Search with a query's vector and rank the products that were found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.feeds.columns import Value, fold_text, text_of
from pipeline.feeds.names import PRODUCT_ID
from pipeline.index.engine import OpenIndex
from pipeline.search.catalogue_filter import IndexedCatalogue
from pipeline.search.query import AUTO, Query
from pipeline.search.query_vector import QueryVector
from pipeline.search.relevance_feedback import Adjustment, FeedbackIndex, LoggedQuery, adjust

Vector = NDArray[np.float32]

# Part of the key of a cached result: count it up when the same query would rank otherwise.
VERSION = 3

# Similarity alone decides between blocks of products: the 50 most similar, the next 200, 1,000, ...
# Within a block, feedback and diversity may change the order. So the rank of a product depends on
# nothing that differs from page to page.
BLOCK, BLOCK_GROWTH = 50, 5
SCORE_DIGITS = 6  # what float32 sums of some hundred products carry
SORTED = 1000  # `sort` orders so many of the best matches
# For --min-score auto: the share of random pairs that a match must be more similar than. Measured
# with an earlier imgrec-mini on 200 drawn products and on 341 photos of clothing: of images of the
# same kind, 100 and 92 % have a match above it; of images of other things, 18 to 42 %. At 0.99: 73
# and 64 %, and 0 to 2 %.
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
    candidates = listing.first(_block_end(end) if reranks else end)
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
        candidates = _rerank_blocks(candidates, vectors, query.diverse)
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
        if query.sort or listing.complete or (listing.exact and len(good) < len(candidates)):
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


class Listing:
    """The products of an index in the order of a query's search; never the query's own.

    A longer list begins with the shorter one, whatever was asked before.
    """

    def __init__(
        self,
        index: OpenIndex,
        indexed: IndexedCatalogue,
        query: Query,
        vector: Vector,
        groups: NDArray[np.int64] | None = None,
    ) -> None:
        self._index, self._indexed, self._vector = index, indexed, vector
        self._groups = groups
        self._own = query.own_products
        self._allowed = indexed.allowed(query.conditions)
        self.exact = index.exact
        self.complete = False  # whether `first` has returned all there are

    @property
    def plan(self) -> str:
        """How the first block is searched."""
        return self._index.plan(BLOCK + len(self._own), self._allowed)

    def first(self, count: int) -> list[Candidate]:
        """Return the first `count` products, fewer if there are no more."""
        if self.exact:
            return self._exact(count)
        listed: dict[str, Candidate] = {}
        size = BLOCK
        while not self.complete:
            block = [each for each in self._search(size) if each.product_id not in listed]
            # Not what was found now, but what is listed decides which one of a group is shown.
            listed = {each.product_id: each for each in self._collapse([*listed.values(), *block])}
            if len(listed) >= count:
                break
            size *= BLOCK_GROWTH
        candidates = list(listed.values())
        self.complete = self.complete and len(candidates) <= count
        return candidates[:count]

    def _exact(self, count: int) -> list[Candidate]:
        """Search so deep that no product of the same score as the last one is missed."""
        depth = count + 1
        while True:
            found = self._search(depth)
            candidates = self._collapse(found)
            if self.complete:
                break
            if len(candidates) >= count:
                last = _by_score(candidates[count - 1])[0]
                if last < _by_score(found[-1])[0]:
                    break
            depth *= 2
        self.complete = self.complete and len(candidates) <= count
        return candidates[:count]

    def _search(self, count: int) -> list[Candidate]:
        """Search ever deeper until there are `count` products or no more."""
        by_product: dict[str, Candidate] = {}
        self.complete = True
        for hits in self._index.search_deepening(
            self._vector, count + len(self._own), self._allowed
        ):
            by_product = {}
            for row, score in hits:
                product_id = self._indexed.product_of(row)
                if product_id not in self._own:
                    by_product.setdefault(product_id, Candidate(row, product_id, score))
            if len(by_product) >= count:
                self.complete = False
                break
        # Equal scores come in any order from the search.
        candidates = sorted(by_product.values(), key=_by_score)
        return candidates if self.complete else candidates[:count]

    def _collapse(self, candidates: list[Candidate]) -> list[Candidate]:
        """Keep the first candidate of each group: what precedes one decides, nothing behind it."""
        if self._groups is None:
            return candidates
        groups, kept = set[int](), list[Candidate]()
        for candidate in candidates:
            group = int(self._groups[candidate.row])
            if group < 0 or group not in groups:
                kept.append(candidate)
                groups.add(group)
        return kept


def _by_score(candidate: Candidate) -> tuple[float, str]:
    """Sort by score, then id; in the last digits equal vectors differ by their place in a file."""
    return -round(candidate.score, SCORE_DIGITS), candidate.product_id


def _block_end(count: int) -> int:
    """Return the end of the block that the place before `count` is in."""
    end = BLOCK
    while end < count:
        end *= BLOCK_GROWTH
    return end


def _rerank_blocks(
    candidates: Sequence[Candidate], vectors: Vector, diversity: float
) -> list[Candidate]:
    """Order each block by the candidates' values, and for diversity."""
    ordered: list[Candidate] = []
    while len(ordered) < len(candidates):
        block = list(candidates[len(ordered) : _block_end(len(ordered) + 1)])
        block.sort(key=lambda candidate: (-candidate.value, candidate.product_id))
        if diversity:
            block = diversify(block, vectors, diversity, len(block))
        ordered += block
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
    for candidate in sorted(candidates, key=_by_score):  # sorting is stable, also in reverse
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
