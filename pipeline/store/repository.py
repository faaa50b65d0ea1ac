"""What the repositories share: each statement that stands alone has a transaction of its own."""

from __future__ import annotations

from pipeline.store.backend import Row, Values
from pipeline.store.database import Database


class Repository:
    """The rows of some tables."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def _read(self, sql: str, values: Values = ()) -> list[Row]:
        """Run one statement that only reads, see `Database.transaction`."""
        with self._database.transaction(read_only=True) as tx:
            return tx.rows(sql, values)

    def _write(self, sql: str, values: Values = ()) -> list[Row]:
        """Run one statement, see `Database.transaction`."""
        with self._database.transaction() as tx:
            return tx.rows(sql, values)
