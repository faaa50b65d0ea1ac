"""Searches for near-duplicates and what people decided about their results, in the database."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from pipeline.duplicates.pairs import pair_key
from pipeline.duplicates.result import Published, SearchResult
from pipeline.errors import NotFound
from pipeline.store.backend import Row
from pipeline.store.database import count_change, revision
from pipeline.store.repository import Repository

NAME = "duplicates"  # of the revision
KEEP = 5  # finished searches
PLANNED, RUNNING, DONE, FAILED = "planned", "running", "done", "failed"
# The lease has ended, or is from before the database's clock was set back; see queries.sql.
LEFT = "(lease_until < now_s() OR lease_until > now_s() + 7200)"
COLUMNS = (
    "id, index_version, threshold, state, images, looked_at, error, created_at, finished_at, "
    f"attempts, CASE WHEN state = 'planned' OR (state = 'running' AND {LEFT}) "
    "THEN 1 ELSE 0 END AS is_stale"
)


@dataclass(frozen=True)
class Search:
    """One search without its result; times are seconds by the database's clock.

    Attributes:
        index_version: the identity of the version, see `Version.identity`.
        threshold: lowest cosine of a pair; None: auto.
        images, looked_at: of the step that it is at.
        attempts: how often it was begun without being given back, with this time.
        is_stale: nobody works at it, so it must be sent again.
    """

    id: str
    index_version: str
    threshold: float | None
    state: str
    images: int
    looked_at: int
    error: str | None
    created_at: float
    finished_at: float | None
    attempts: int
    is_stale: bool

    @classmethod
    def from_row(cls, row: Row) -> Search:
        return cls(**{**row, "is_stale": bool(row["is_stale"])})

    @property
    def open(self) -> bool:
        return self.state in (PLANNED, RUNNING)


class Duplicates(Repository):
    """The rows of `duplicate_searches` and `not_duplicates`."""

    def plan(self, index_version: str, threshold: float | None) -> Search:
        """Return the search of this version and threshold that is open or done, or add one.

        One that is done becomes the newest again, which queries and the page refer to.
        """
        search_id = f"d{secrets.token_hex(6)}"
        with self._database.transaction() as tx:
            rows = tx.rows(
                f"SELECT {COLUMNS} FROM duplicate_searches WHERE index_version = ? "
                "AND state <> 'failed' AND COALESCE(threshold, 9) = ? "
                "ORDER BY created_at DESC, id LIMIT 1",
                (index_version, 9.0 if threshold is None else threshold),
            )
            if rows and rows[0]["state"] == DONE:
                tx.rows(
                    "UPDATE duplicate_searches SET finished_at = now_s() WHERE id = ?",
                    (rows[0]["id"],),
                )
                count_change(tx, NAME)
            if not rows:
                rows = tx.rows(
                    "INSERT INTO duplicate_searches (id, index_version, threshold, state, "
                    f"created_at) VALUES (?, ?, ?, 'planned', now_s()) RETURNING {COLUMNS}",
                    (search_id, index_version, threshold),
                )
        return Search.from_row(rows[0])

    def get(self, search_id: str) -> Search:
        """Return a search.

        Raises:
            NotFound: there is none.
        """
        rows = self._read(f"SELECT {COLUMNS} FROM duplicate_searches WHERE id = ?", (search_id,))
        if not rows:
            raise NotFound(f"There is no search for duplicates {search_id[:50]!r}.")
        return Search.from_row(rows[0])

    def newest(self) -> Search | None:
        """Return the search that was begun last, whatever became of it."""
        rows = self._read(
            f"SELECT {COLUMNS} FROM duplicate_searches ORDER BY created_at DESC, id LIMIT 1"
        )
        return Search.from_row(rows[0]) if rows else None

    def claim(self, search_id: str, owner: str, lease_s: float) -> Search | None:
        """Take a search that nobody works at; None for any other."""
        rows = self._write(
            "UPDATE duplicate_searches SET state = 'running', owner = ?, looked_at = 0, "
            "attempts = attempts + 1, lease_until = now_s() + ? WHERE id = ? "
            f"AND (state = 'planned' OR (state = 'running' AND {LEFT})) "
            f"RETURNING {COLUMNS}",
            (owner, lease_s, search_id),
        )
        return Search.from_row(rows[0]) if rows else None

    def renew(
        self, search_id: str, owner: str, lease_s: float, looked_at: int, images: int
    ) -> bool:
        """Renew the lease and note the progress; False where another process has it."""
        rows = self._write(
            "UPDATE duplicate_searches SET lease_until = now_s() + ?, looked_at = ?, "
            "images = ? WHERE id = ? AND owner = ? AND state = 'running' RETURNING id",
            (lease_s, looked_at, images, search_id, owner),
        )
        return bool(rows)

    def finish(self, search_id: str, owner: str, result: SearchResult) -> bool:
        """Store the result, and delete old ones; False where another process has it."""
        with self._database.transaction() as tx:
            rows = tx.rows(
                "UPDATE duplicate_searches SET state = 'done', result = ?, error = NULL, "
                "finished_at = now_s() WHERE id = ? AND owner = ? AND state = 'running' "
                "RETURNING id",
                (result.to_json(), search_id, owner),
            )
            tx.rows(
                "DELETE FROM duplicate_searches WHERE state IN ('done', 'failed') AND id NOT IN "
                "(SELECT id FROM duplicate_searches WHERE state IN ('done', 'failed') "
                "ORDER BY finished_at DESC, id LIMIT ?)",
                (KEEP,),
            )
            count_change(tx, NAME)
        return bool(rows)

    def fail(self, search_id: str, owner: str, error: str) -> None:
        """Record why a search ended without a result."""
        self._write(
            "UPDATE duplicate_searches SET state = 'failed', error = ?, finished_at = now_s() "
            "WHERE id = ? AND owner = ? AND state = 'running'",
            (error, search_id, owner),
        )

    def release(self, search_id: str, owner: str) -> None:
        """Give a search back, for another worker to begin it anew; the attempt does not count."""
        self._write(
            "UPDATE duplicate_searches SET state = 'planned', lease_until = 0, "
            "attempts = attempts - 1 WHERE id = ? AND owner = ? AND state = 'running'",
            (search_id, owner),
        )

    def published(self, search_id: str | None = None) -> Published:
        """Return a finished search, by default the newest, with the decisions."""
        where, values = ("AND id = ?", (search_id,)) if search_id else ("", ())
        with self._database.transaction(read_only=True) as tx:
            n_changes = revision(tx, NAME)
            rows = tx.rows(
                "SELECT index_version, threshold, result FROM duplicate_searches "
                f"WHERE state = 'done' {where} ORDER BY finished_at DESC, id LIMIT 1",
                values,
            )
            decisions = tx.rows("SELECT path, other FROM not_duplicates")
        not_same = frozenset((row["path"], row["other"]) for row in decisions)
        if not rows:
            return Published(not_same=not_same, revision=n_changes)
        row = rows[0]
        result = SearchResult.from_json(row["result"])
        return Published(row["index_version"], row["threshold"], result, not_same, n_changes)

    def decide(self, path: str, other: str, *, same: bool) -> None:
        """Remember that two images are not the same; with `same`, forget it."""
        first, second = pair_key(path, other)
        with self._database.transaction() as tx:
            if same:
                tx.rows("DELETE FROM not_duplicates WHERE path = ? AND other = ?", (first, second))
            else:
                tx.rows(
                    "INSERT INTO not_duplicates VALUES (?, ?, now_s()) ON CONFLICT DO NOTHING",
                    (first, second),
                )
            count_change(tx, NAME)

    def revision(self) -> int:
        """Return a number that every finished search and every decision changes."""
        return self._database.revision(NAME)
