"""Search one index of a PostgreSQL with pgvector."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.pgvector_server import PgvectorServer, Statement
from pipeline.engines.scores import deepening, scored
from pipeline.index.engine import Hits, QueryByQuery, Vectors
from pipeline.index.versions import Version

MAX_EF = 1000  # pgvector's limit of hnsw.ef_search
# The graph is asked for so many times the allowed rows that are needed. With fewer, recall@50 fell
# to 0.86 where a tenth of 50,000 x 512 was allowed.
SPARE = 2
# A row of the graph is read at random and with its neighbours, those of exact search in order.
# Measured with 50,000 x 512: a row of the graph costs 15 to 30 times as much.
ROW_COST = 20
# Up to so many allowed rows are named one by one; more are tested while the table is read.
MAX_NAMED = 50_000
STATEMENT_S = 30.0
SETTINGS = {
    # Off by default: a search with conditions then ends early, with too few rows.
    "hnsw.iterative_scan": "relaxed_order",
    "hnsw.max_scan_tuples": str(2**31 - 1),
    "jit": "off",  # it would compile for longer than the search takes
    "statement_timeout": f"{1000 * STATEMENT_S:.0f}",
}


@dataclass(frozen=True)
class Step:
    """How rows are found: the best `depth` of `n_allowed`, over the graph or over every row.

    ef_search: rows of the graph that are compared at first.
    """

    depth: int
    n_allowed: int
    total: int
    ef_search: int
    exact: bool

    def __str__(self) -> str:
        within = f"{self.n_allowed:,} of {self.total:,} rows allowed"
        if self.exact:
            return f"exact search, {within}"
        return f"HNSW, ef_search {self.ef_search}, {within}"


@dataclass(frozen=True)
class Table:
    """A table of vectors, and how widely its graph is searched."""

    name: str
    n_rows: int
    ef_search: int

    def step(self, depth: int, allowed: NDArray[np.bool_] | None) -> Step:
        """Choose exact search where it reads less: for few allowed rows, or a long list."""
        n_allowed = self.n_rows if allowed is None else int(allowed.sum())
        depth = min(depth, n_allowed)
        ef_search = max(self.ef_search, SPARE * depth * self.n_rows // max(1, n_allowed))
        is_exact = n_allowed <= ROW_COST * ef_search
        return Step(depth, n_allowed, self.n_rows, min(MAX_EF, ef_search), is_exact)

    def search(
        self, vector: Vectors, step: Step, allowed: NDArray[np.bool_] | None
    ) -> tuple[Statement, Statement]:
        """Return what sets how wide the graph is searched, and what selects the best rows.

        Their ids are fewer than `step.depth` where the graph does not reach more.
        """
        where, values = "", list[Any]()
        if allowed is not None and step.exact and step.n_allowed <= MAX_NAMED:
            where, values = "WHERE id = ANY (?::int4[])", [_array(np.flatnonzero(allowed))]
        elif allowed is not None:
            # One bit a row: PostgreSQL counts bits from the lowest of each byte.
            where = "WHERE get_bit(?, id) = 1"
            values = [np.packbits(allowed, bitorder="little").tobytes()]
        # The sum keeps the planner from the graph, whose operator it then does not see.
        order = "(embedding <#> ?::halfvec) + 0" if step.exact else "embedding <#> ?::halfvec"
        settings = SETTINGS | {"hnsw.ef_search": str(step.ef_search)}
        if not step.exact:
            settings |= {"enable_seqscan": "off", "enable_sort": "off"}
        set_local = "SELECT " + ", ".join(["set_config(?, ?, true)"] * len(settings))
        return (
            (set_local, [part for pair in settings.items() for part in pair]),
            (
                f"SELECT id FROM {self.name} {where} ORDER BY {order} LIMIT ?",
                [*values, _text(vector), step.depth],
            ),
        )


@dataclass(frozen=True)
class PgvectorIndex(QueryByQuery):
    """A version whose vectors are in a table; scores are computed here, in float32."""

    version: Version
    server: PgvectorServer

    exact = False

    @cached_property
    def table(self) -> Table:
        facts = self.version.manifest["index"]
        return Table(facts["table"], self.version.manifest["images"], facts["ef_search"])

    @property
    def n_vectors(self) -> int:
        return self.table.n_rows

    def search_deepening(
        self, vector: Vectors, first: int, allowed: NDArray[np.bool_] | None = None
    ) -> Iterator[Hits]:
        """Yield ever deeper lists of (row, score), see `OpenIndex`."""
        total = self.n_vectors if allowed is None else int(allowed.sum())
        return deepening(
            first, total, lambda depth: self._hits(vector, self.table.step(depth, allowed), allowed)
        )

    def plan(self, first: int, allowed: NDArray[np.bool_] | None) -> str:
        """Tell whether the graph or every row is searched."""
        return str(self.table.step(first, allowed))

    def _hits(self, vector: Vectors, step: Step, allowed: NDArray[np.bool_] | None) -> Hits:
        rows = self._rows(vector, step, allowed)
        if len(rows) < step.depth:  # not all rows can be reached over the graph
            step = replace(step, exact=True)
            rows = self._rows(vector, step, allowed)
        return scored(self.version.vectors, rows, vector)

    def _rows(self, vector: Vectors, step: Step, allowed: NDArray[np.bool_] | None) -> list[int]:
        statements = self.table.search(vector, step, allowed)
        return [row["id"] for row in self.server.read_at_once(*statements)]


def _text(vector: Vectors) -> str:
    return "[" + ",".join(map(repr, vector.tolist())) + "]"


def _array(rows: NDArray[np.int64]) -> str:
    return "{" + ",".join(map(str, rows.tolist())) + "}"
