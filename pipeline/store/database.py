"""Run the same SQL on SQLite and on PostgreSQL; make and migrate the schema.

SQL is written with `?` or `:name` for values and `now_s()` for the time in seconds since the epoch:
the clock of the PostgreSQL server, or of the machine that holds the SQLite file.
"""

from __future__ import annotations

import os
import re
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from pipeline.errors import DatabaseFailed, ImgrecError
from pipeline.store.backend import Backend, Transaction

SQLITE = "sqlite:///"
UNICODE = ("UTF8", "SQL_ASCII")  # encodings that hold any text; SQL_ASCII stores bytes as they come


class Database:
    """A database by its URL; the schema is made at first use."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._begin()
        _databases.add(self)

    def _begin(self) -> None:
        self._backend = _backend(self._url)
        self._ready = False
        self._lock = threading.Lock()

    @contextmanager
    def transaction(self, *, read_only: bool = False) -> Iterator[Transaction]:
        """Commit at the end, roll back on an error.

        Args:
            read_only: on SQLite, wait for no writer.

        Raises:
            ServerUnavailable: the database cannot be opened, refuses us, or was lost on the way.
        """
        with self._lock:
            if not self._ready:
                # A look without a lock first: a reader waits for no writer.
                with self._backend.transaction(read_only=True) as tx:
                    version = schema_version(tx)
                if version != _sections()[-1].version:
                    with self._backend.transaction(read_only=False) as tx:
                        _migrate(tx)
                self._backend.keep_open()
                self._ready = True
        try:
            with self._backend.transaction(read_only) as tx:
                yield tx
        except DatabaseFailed:
            self._ready = False  # an empty one may have taken its place: look again
            raise

    def revision(self, name: str) -> int:
        """Return how often something was changed, see `count_change`."""
        with self.transaction(read_only=True) as tx:
            return revision(tx, name)


_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_inherited: list[Backend] = []  # never closed: what a child process has is the parent's


def _begin_anew() -> None:
    for database in list(_databases):
        _inherited.append(database._backend)
        database._begin()


os.register_at_fork(after_in_child=_begin_anew)


def count_change(tx: Transaction, name: str, *, after: int = 0) -> None:
    """Tell readers, within a transaction that changes something, that it changed.

    Args:
        after: a revision that somebody remembers; the new one is larger, in a database that was
            restored from an older backup, too.
    """
    tx.rows(
        "INSERT INTO revisions VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET "
        "n = CASE WHEN revisions.n < excluded.n THEN excluded.n ELSE revisions.n + 1 END",
        (name, after + 1),
    )


def revision(tx: Transaction, name: str) -> int:
    """Return how often something was changed, see `count_change`."""
    rows = tx.rows("SELECT n FROM revisions WHERE name = ?", (name,))
    return int(rows[0]["n"]) if rows else 0


def _backend(url: str) -> Backend:
    if url.startswith(SQLITE):
        from pipeline.store.sqlite import Sqlite

        return Sqlite(Path(url.removeprefix(SQLITE)))
    from pipeline.store.postgresql import Postgresql

    return Postgresql(url)


def schema_version(tx: Transaction) -> int:
    """Return the version of the newest section of schema.sql that has run; 0 before the first."""
    newest = 0
    for table in ("schema_version", "schema_additions"):
        if tx.table_exists(table):
            rows = tx.rows(f"SELECT MAX(version) AS version FROM {table}")
            newest = max(newest, int(rows[0]["version"] or 0))
    return newest


def _migrate(tx: Transaction) -> None:
    tx.lock_schema()
    for table in ("schema_version", "schema_additions"):
        tx.rows(f"CREATE TABLE IF NOT EXISTS {table} (version INTEGER NOT NULL)")
    sections = _sections()
    breaking = int(tx.rows("SELECT MAX(version) AS n FROM schema_version")[0]["n"] or 0)
    if breaking > max(section.version for section in sections):
        raise ImgrecError(
            f"The database has schema version {breaking}; this imgrec supports up to "
            f"{sections[-1].version}: update imgrec."
        )
    have = schema_version(tx)
    for section in sections:
        if section.version > have:
            for statement in section.statements:
                tx.rows(statement)
            # The last release looks at the first table only, and refuses a version that it does
            # not know: so it works on beside this one until a section breaks it.
            table = "schema_additions" if section.only_adds else "schema_version"
            tx.rows(f"INSERT INTO {table} VALUES (?)", (section.version,))


@dataclass(frozen=True)
class Section:
    """A part of schema.sql; one that only adds leaves the last release working."""

    version: int
    only_adds: bool
    statements: list[str]


def _sections() -> list[Section]:
    """Read schema.sql, by version."""
    text = files("pipeline.store").joinpath("schema.sql").read_text(encoding="utf-8")
    parts = re.split(r"^-- version (\d+)(, only adds)?$", text, flags=re.MULTILINE)
    sections = []
    for number, adds, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        bare = re.sub(r"--.*", "", body)
        statements = [statement.strip() for statement in bare.split(";")]
        kept = [statement for statement in statements if statement]
        sections.append(Section(int(number), bool(adds), kept))
    return sections
