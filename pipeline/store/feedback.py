"""The log of queries and the feedback on them, in the database."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from pipeline.errors import NotFound, WrongUse
from pipeline.names import nfc
from pipeline.search.relevance_feedback import DISLIKE, Feedback, LoggedQuery
from pipeline.store.backend import Row
from pipeline.store.database import count_change
from pipeline.store.repository import Repository
from pipeline.vector_bytes import from_bytes, to_bytes

NAME = "feedback"  # of the revision
# Verdicts that a query worker holds, and queries that a report reads: 40 MB of 512 dimensions each.
NEWEST = 20_000
LOGGED_WITHIN_S = 2.0  # a query is written to the log a moment after its answer
LOOK_AGAIN_S = 0.1
OPPOSITE = {"like": DISLIKE, DISLIKE: "like"}

CLOCKS_AGREE_S = 1.0


def not_logged(query_id: str) -> NotFound:
    return NotFound(
        f"There is no query {query_id} in the log: it was not answered, or more than "
        "QUERY_LOG_DAYS days ago."
    )


class FeedbackLog(Repository):
    """What was shown, and what people made of it."""

    def put_queries(self, queries: Sequence[LoggedQuery]) -> None:
        """Log answered queries; one that is there already stays as it is."""
        with self._database.transaction() as tx:
            ahead = time.time() - float(tx.rows("SELECT now_s() AS now")[0]["now"])
            tx.many(
                "INSERT INTO queries VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (query_id) DO NOTHING",
                [
                    (
                        query.query_id,
                        # By the database's clock, which those who give feedback read, too.
                        query.asked_at - (ahead if abs(ahead) > CLOCKS_AGREE_S else 0.0),
                        query.user,
                        query.index_version,
                        query.fingerprint,
                        json.dumps(query.matches),
                        to_bytes(query.vector),
                        query.first_rank,
                    )
                    for query in queries
                ],
            )

    def forget_queries(self, days: float) -> None:
        """Delete what was asked so many days ago or earlier, by the database's clock."""
        self._write("DELETE FROM queries WHERE asked_at < now_s() - ?", (days * 86_400,))

    def now(self) -> float:
        """Return the database's time in seconds since the epoch: hosts need not agree on theirs."""
        return float(self._read("SELECT now_s() AS now")[0]["now"])

    def query(self, query_id: str) -> LoggedQuery | None:
        """Return a logged query, or None."""
        rows = self._read("SELECT * FROM queries WHERE query_id = ?", (query_id,))
        return _shown(rows[0]) if rows else None

    def wait_for_query(self, query_id: str) -> LoggedQuery:
        """Return a logged query, which is written a moment after its answer.

        Raises:
            NotFound: there is none.
        """
        deadline = time.monotonic() + LOGGED_WITHIN_S
        while (query := self.query(query_id)) is None:
            if time.monotonic() > deadline:
                raise not_logged(query_id)
            time.sleep(LOOK_AGAIN_S)
        return query

    def queries(self, fingerprint: str | None = None) -> list[LoggedQuery]:
        """Return the newest `NEWEST` of the log, oldest first; of a fingerprint, or all."""
        where, values = _of(fingerprint)
        rows = self._read(
            f"SELECT * FROM queries {where} ORDER BY asked_at DESC, query_id DESC LIMIT ?",
            (*values, NEWEST),
        )
        return [_shown(row) for row in reversed(rows)]

    def add(
        self, query: LoggedQuery, product_id: str, action: str, user: str, now: float
    ) -> Feedback:
        """Record feedback; given twice it counts once, a like replaces a dislike.

        Raises:
            WrongUse: the query did not show this product.
        """
        products = [product for product, _ in query.matches]
        if product_id not in products:
            product_id = nfc(product_id)
        if product_id not in products:
            available = ", ".join(products[:10]) or "nothing"
            raise WrongUse(
                f"Query {query.query_id} has no match '{product_id}'. Its matches: {available}."
            )
        feedback = Feedback(
            query.query_id,
            product_id,
            user or query.user,
            action,
            now,
            products.index(product_id) + query.first_rank,
            query.index_version,
            query.fingerprint,
            query.vector,
        )
        key = (feedback.query_id, product_id, feedback.user)
        with self._database.transaction() as tx:
            tx.rows(
                "DELETE FROM feedback WHERE query_id = ? AND product_id = ? AND who = ? "
                "AND action IN (?, ?)",
                (*key, action, OPPOSITE.get(action, action)),
            )
            tx.rows(
                "INSERT INTO feedback VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *key,
                    action,
                    now,
                    feedback.rank,
                    feedback.index_version,
                    feedback.fingerprint,
                    to_bytes(query.vector),
                ),
            )
            count_change(tx, NAME)
        return feedback

    def revision(self) -> int:
        """Return a number that every verdict changes."""
        return self._database.revision(NAME)

    def newest(self, fingerprint: str | None = None) -> list[Feedback]:
        """Return the newest `NEWEST` verdicts, on queries of a fingerprint or on all."""
        where, values = _of(fingerprint)
        rows = self._read(
            f"SELECT * FROM feedback {where} ORDER BY given_at DESC LIMIT ?", (*values, NEWEST)
        )
        return [_given(row) for row in rows]


def _of(fingerprint: str | None) -> tuple[str, tuple[str, ...]]:
    return ("", ()) if fingerprint is None else ("WHERE fingerprint = ?", (fingerprint,))


def _shown(row: Row) -> LoggedQuery:
    matches = tuple((product_id, score) for product_id, score in json.loads(row["shown"]))
    return LoggedQuery(
        query_id=row["query_id"],
        asked_at=row["asked_at"],
        user=row["who"],
        index_version=row["index_version"],
        fingerprint=row["fingerprint"],
        matches=matches,
        vector=from_bytes(row["vector"]),
        first_rank=int(row["first_rank"]),
    )


def _given(row: Row) -> Feedback:
    facts: dict[str, Any] = {**row, "user": row["who"], "vector": from_bytes(row["vector"])}
    del facts["who"]
    return Feedback(**facts)
