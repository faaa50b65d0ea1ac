"""The products of an index in the order of one search, to any depth: pages agree."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.index.engine import OpenIndex
from pipeline.search.catalogue_filter import IndexedCatalogue
from pipeline.search.query import Query

Vector = NDArray[np.float32]

# Similarity alone decides between blocks of products: the 50 most similar, the next 200, 1,000, ...
# Within a block, feedback and diversity may change the order. So the rank of a product depends on
# nothing that differs from page to page.
BLOCK, BLOCK_GROWTH = 50, 5
SCORE_DIGITS = 6  # what float32 sums of some hundred products carry


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
                last = by_score(candidates[count - 1])[0]
                if last < by_score(found[-1])[0]:
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
        candidates = sorted(by_product.values(), key=by_score)
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


def by_score(candidate: Candidate) -> tuple[float, str]:
    """Sort by score, then id; in the last digits equal vectors differ by their place in a file."""
    return -round(candidate.score, SCORE_DIGITS), candidate.product_id


def block_end(count: int) -> int:
    """Return the end of the block that the place before `count` is in."""
    end = BLOCK
    while end < count:
        end *= BLOCK_GROWTH
    return end
