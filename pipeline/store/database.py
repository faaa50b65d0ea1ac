"""Run the same SQL on SQLite and on PostgreSQL; make and migrate the schema.

SQL is written with `?` or `:name` for values and `now_s()` for the time in seconds since the epoch:
the clock of the PostgreSQL server, or of the machine that holds the SQLite file.
"""

from __future__ import annotations

import math
import os
import re
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from pipeline.errors import DatabaseFailed, ImgrecError
from pipeline.store.backend import Backend, Transaction

SQLITE = "sqlite:///"
# The oldest schema version whose imgrec works on the newest schema here. A section of schema.sql
# that only adds leaves it as it is: then the last release runs beside this one. One that the last
# release cannot live with raises it to its own version, and docs/operations.md says to stop all.
WORKS_FROM = 5
WORKS_FROM_ROW = "schema {} works from"  # the row of `revisions` that tells older releases
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
                    version = _schema_version(tx)
                if version != max(_sections()):
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
            rows = tx.rows("SELECT n FROM revisions WHERE name = ?", (name,))
        return int(rows[0]["n"]) if rows else 0

    def encoding(self) -> str:
        """Return the encoding in which the database stores text, e.g. UTF8."""
        with self.transaction(read_only=True) as tx:
            return tx.encoding()


_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_inherited: list[Backend] = []  # never closed: what a child process has is the parent's


def _begin_anew() -> None:
    for database in list(_databases):
        _inherited.append(database._backend)
        database._begin()


os.register_at_fork(after_in_child=_begin_anew)


def count_change(tx: Transaction, name: str) -> None:
    """Tell readers, within a transaction that changes something, that it changed."""
    tx.rows(
        "INSERT INTO revisions VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET n = revisions.n + 1",
        (name,),
    )


def _backend(url: str) -> Backend:
    if url.startswith(SQLITE):
        from pipeline.store.sqlite import Sqlite

        return Sqlite(Path(url.removeprefix(SQLITE)))
    from pipeline.store.postgresql import Postgresql

    return Postgresql(url)


def _schema_version(tx: Transaction) -> int:
    if not tx.table_exists("schema_version"):
        return 0
    return int(tx.rows("SELECT MAX(version) AS version FROM schema_version")[0]["version"] or 0)


def _migrate(tx: Transaction) -> None:
    tx.lock_schema()
    tx.rows("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
    have = _schema_version(tx)
    sections = _sections()
    if have > max(sections):
        if _works_from(tx, have) <= max(sections):
            return  # a newer imgrec has added to the schema, and this one may go on
        raise ImgrecError(
            f"The database has schema version {have}; this imgrec supports up to {max(sections)}: "
            "update imgrec."
        )
    for version in sorted(sections):
        if version > have:
            for statement in sections[version]:
                tx.rows(statement)
            tx.rows("INSERT INTO schema_version VALUES (?)", (version,))
    if have < max(sections) and tx.table_exists("revisions"):
        name = WORKS_FROM_ROW.format(max(sections))
        tx.rows("INSERT INTO revisions VALUES (?, ?)", (name, WORKS_FROM))


def _works_from(tx: Transaction, version: int) -> float:
    name = WORKS_FROM_ROW.format(version)
    rows = tx.rows("SELECT n FROM revisions WHERE name = ?", (name,))
    return float(rows[0]["n"]) if rows else math.inf


def _sections() -> dict[int, list[str]]:
    """Read schema.sql -> {version: statements}."""
    text = files("pipeline.store").joinpath("schema.sql").read_text(encoding="utf-8")
    parts = re.split(r"^-- version (\d+)$", text, flags=re.MULTILINE)
    sections = {}
    for number, body in zip(parts[1::2], parts[2::2], strict=True):
        bare = re.sub(r"--.*", "", body)
        statements = [statement.strip() for statement in bare.split(";")]
        sections[int(number)] = [statement for statement in statements if statement]
    return sections
