"""Answer a question: make its vector, search, and rank what was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import WrongUse
from pipeline.index.live_index import OpenIndex
from pipeline.search.catalogue_filter import IndexedCatalogue
from pipeline.search.query import AUTO, Query
from pipeline.search.relevance_feedback import FeedbackIndex, adjust

Vector = NDArray[np.float32]

# Ranking by more than likeness chooses among this many of the most alike.
POOL, POOL_PER_MATCH = 50, 5
# Share of random pairs that a match must be more alike than, for --min-score auto. Measured with
# imgrec-mini, on 200 drawn products and on 400 photos of clothing: of pictures of the same kind
# 100 and 83 % have a match above it, of other things 0 to 3 %. At 0.99: 84 and 52 %.
RANDOM_QUANTILE = "0.95"
# The same for two queries to count as alike, where a false one does harm.
SIMILAR_QUERY_QUANTILE = "0.99"


@dataclass
class Candidate:
    """One product on its way to a rank: `parts` add up to the value that it is ranked by."""

    row: int
    product_id: str
    score: float
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def value(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Answer:
    """Matches as the contract shows them; `vector` is what was asked, (d,) of unit length."""

    matches: list[dict[str, Any]]
    min_score: float | None
    vector: Vector


@dataclass(frozen=True)
class QueryVector:
    """A query vector as the weighted sum of named unit vectors, divided by its length."""

    vector: Vector
    terms: tuple[tuple[str, float, Vector], ...]

    def parts(self, product: Vector) -> dict[str, float]:
        """Tell what each term adds to the cosine with a product."""
        return {name: weight * float(term @ product) for name, weight, term in self.terms}


def compose(
    question: Query,
    picture: Callable[[], Vector] | None,
    text: Callable[[str], Vector],
    shelf: IndexedCatalogue,
) -> QueryVector:
    """Make the query's vector: (1 - w) * picture + w * text - w * without, of unit length.

    Without a picture or product, the text has all the weight.

    Raises:
        WrongUse: the question names no subject, or a product that is not indexed.
    """
    question.require_subject(picture is not None)
    terms: list[tuple[str, float, Vector]] = []
    if picture is not None:
        terms.append(("image", 1.0, picture()))
    elif question.product:
        vector = shelf.vector_of(question.product)
        if vector is None:
            raise WrongUse(
                f"Index {shelf.version.name} has no product '{question.product}': a product is "
                "called like its image without the suffix, or as it was imported."
            )
        terms.append(("image", 1.0, vector))
    words = question.weight if terms and (question.text or question.without) else 0.0
    terms = [(name, 1.0 - words, vector) for name, _, vector in terms]
    if question.text:
        terms.append(("text", words if terms else 1.0, text(question.text)))
    if question.without:
        terms.append(("not", -(words or question.weight), text(question.without)))
    if len(terms) == 1:
        return QueryVector(terms[0][2], (terms[0],))
    total = np.sum([weight * vector.astype(np.float64) for _, weight, vector in terms], axis=0)
    length = float(np.linalg.norm(total))
    if length < 1e-6:
        raise WrongUse("What is asked for and what is not wanted cancel each other out.")
    return QueryVector(
        (total / length).astype(np.float32),
        tuple((name, weight / length, vector) for name, weight, vector in terms),
    )


def recommend(
    question: Query,
    index: OpenIndex,
    shelf: IndexedCatalogue,
    asked: QueryVector,
    opinions: FeedbackIndex | None = None,
) -> Answer:
    """Return the products that fit best, one match a product.

    `score` is the cosine with what was asked, always. The order is by that score alone, unless
    feedback or diversity were asked for; then `explain` shows the value that ranks.
    """
    quantiles = index.version.random_pairs["quantiles"]
    search_with, penalties = asked.vector, dict[str, float]()
    if opinions is not None:
        similar = opinions.similar_to(asked.vector, quantiles[SIMILAR_QUERY_QUANTILE])
        change = adjust(asked.vector, similar, question.user, quantiles["0.5"], shelf.vector_of)
        search_with, penalties = change.moved, change.penalties
    moved = search_with is not asked.vector
    pool = question.top_k
    if opinions is not None or question.diverse:
        pool = max(POOL, POOL_PER_MATCH * question.top_k)
    found = _candidates(question, index, shelf, search_with, pool)
    vectors = index.version.vectors
    if moved or penalties or question.diverse or question.explain:
        for candidate in found:
            product = np.asarray(vectors[candidate.row])
            # FAISS sums in another order, so its own figure stands unless the query was moved.
            plain = float(asked.vector @ product) if moved else candidate.score
            parts = asked.parts(product)
            # The terms' float32 products add up to the score but for rounding: the first takes it.
            parts[next(iter(parts))] += plain - sum(parts.values())
            candidate.parts = parts
            if moved:
                candidate.parts["personal"] = candidate.score - plain
                candidate.score = plain
            if candidate.product_id in penalties:
                candidate.parts["disliked"] = -penalties[candidate.product_id]
        found.sort(key=lambda candidate: -candidate.value)  # stable
    limit = quantiles[RANDOM_QUANTILE] if question.min_score == AUTO else question.min_score
    if limit is not None:
        found = [candidate for candidate in found if candidate.score >= float(limit)]
    if question.diverse:
        found = diversify(found, vectors, question.diverse, question.top_k)
    matches = [
        _match(rank, candidate, shelf, question.explain)
        for rank, candidate in enumerate(found[: question.top_k], start=1)
    ]
    return Answer(matches, None if limit is None else round(float(limit), 6), asked.vector)


def _candidates(
    question: Query, index: OpenIndex, shelf: IndexedCatalogue, vector: Vector, count: int
) -> list[Candidate]:
    """Search until `count` products are found, or there are no more; the asked one is no match."""
    allowed = shelf.allowed(question.conditions)
    found: dict[str, Candidate] = {}
    for hits in index.search_deepening(vector, count + bool(question.product), allowed):
        found = {}
        for row, score in hits:
            product_id = shelf.product_of(row)
            if product_id != question.product:
                found.setdefault(product_id, Candidate(row, product_id, score))
        if len(found) >= count:
            break
    return list(found.values())[:count]


def diversify(
    found: list[Candidate], vectors: Vector, strength: float, count: int
) -> list[Candidate]:
    """Choose by maximal marginal relevance; add the part `diversity` to each.

    Carbonell and Goldstein 1998: the next one has the greatest (1 - strength) * value - strength *
    (its greatest cosine with one that was chosen).
    """
    if not found:
        return []
    rows = np.asarray(vectors[[candidate.row for candidate in found]])
    values = np.array([candidate.value for candidate in found])
    nearest = np.zeros(len(found))  # nothing was chosen yet
    left, chosen = list(range(len(found))), list[Candidate]()
    while left and len(chosen) < count:
        marginal = (1 - strength) * values[left] - strength * nearest[left]
        at = left.pop(int(marginal.argmax()))
        candidate = found[at]
        candidate.parts["diversity"] = float(marginal.max() - values[at])
        chosen.append(candidate)
        likeness = rows @ rows[at]
        nearest = likeness if len(chosen) == 1 else np.maximum(nearest, likeness)
    return chosen


def _match(
    rank: int, candidate: Candidate, shelf: IndexedCatalogue, explain: bool
) -> dict[str, Any]:
    # Six digits: what float32 sums of some hundred products carry.
    score = round(candidate.score, 6)
    match: dict[str, Any] = {
        "rank": rank,
        "product_id": candidate.product_id,
        "filename": shelf.version.paths[candidate.row],
        "score": score,
        "distance": round(1.0 - score, 6),
    }
    facts = shelf.catalogue.facts(candidate.product_id)
    if facts:
        match["product"] = facts
    if explain:
        parts = {name: round(value, 6) for name, value in candidate.parts.items()}
        match["explain"] = {**parts, "total": round(candidate.value, 6)}
    return match
