"""What every kind of database does for the repositories: SQLite, PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from contextlib import AbstractContextManager
from typing import Any, Protocol

Row = dict[str, Any]
Values = Sequence[Any] | Mapping[str, Any]


def placeholders(values: Sized) -> str:
    """Return what stands for a list of values in SQL, as in `IN (?, ?)`."""
    return ", ".join("?" * len(values))


class Transaction(Protocol):
    """What a repository writes its SQL against."""

    def rows(self, sql: str, values: Values = ()) -> list[Row]: ...

    def many(self, sql: str, values: Sequence[Values]) -> None: ...

    def table_exists(self, name: str) -> bool: ...

    def encoding(self) -> str:
        """Return the encoding in which the database stores text, e.g. UTF8."""

    def lock_schema(self) -> None:
        """Keep other processes from a migration until the transaction ends."""


class Backend(Protocol):
    """One kind of database: how SQL is run there."""

    def transaction(self, read_only: bool) -> AbstractContextManager[Transaction]:
        """Commit at the end, roll back on an error."""

    def keep_open(self) -> None:
        """Hold on to what makes the next transaction cheap."""
