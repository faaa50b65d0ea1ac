"""Run the same SQL on SQLite and on PostgreSQL; make and migrate the schema.

SQL is written with `?` for values. A connection lives for one transaction: nothing to reconnect
after a server's restart, nothing shared between threads or over a fork.
"""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import ImgrecError, ServerUnavailable, WrongUse
from pipeline.urls import without_password

Row = dict[str, Any]
# A server that vanished with its network is given up in half a minute, not in two hours.
PATIENCE = {
    "connect_timeout": 5,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
NOT_TO_US = re.compile(
    r"\w+ authentication failed.*|\S+: no password supplied|(database|role) \".*\" does not exist"
    r"|no pg_hba.conf entry.*|permission denied for database.*"
)
SQLITE = "sqlite:///"
LOCKED_S = 30.0  # patience with another process that writes
SCHEMA_LOCK = 0x696D6772  # "imgr": the advisory lock of a PostgreSQL schema change


class Transaction(Protocol):
    """What a repository writes its SQL against."""

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]: ...

    def many(self, sql: str, values: Sequence[Sequence[Any]]) -> None: ...


class Database:
    """A database by its URL; the schema is made at first use."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._ready = False
        self._kept: sqlite3.Connection | None = None
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
                if not self._is_migrated():
                    with self._open() as transaction:
                        _migrate(transaction)
                self._keep_open()
                self._ready = True
        with self._open(read_only) as transaction:
            yield transaction

    def revision(self, name: str) -> int:
        """Return how often something was changed, see `count_change`."""
        with self.transaction(read_only=True) as tx:
            found = tx.rows("SELECT n FROM revisions WHERE name = ?", (name,))
        return int(found[0]["n"]) if found else 0

    def _is_migrated(self) -> bool:
        """Tell whether an SQLite file has the current schema, without taking its write lock."""
        if not self.url.startswith(SQLITE):
            return False
        with self._open(read_only=True) as tx:
            if not tx.rows("SELECT 1 FROM sqlite_master WHERE name = 'schema_version'"):
                return False
            version = tx.rows("SELECT MAX(version) AS version FROM schema_version")[0]["version"]
        return bool(version == max(_sections()))

    def _keep_open(self) -> None:
        """Hold one connection of SQLite that does nothing.

        Whoever closes the last one writes the log into the file and waits for the disk: without
        this one, after each transaction (https://sqlite.org/wal.html, "The WAL File").
        """
        if not self.url.startswith(SQLITE):
            return
        file = self.url.removeprefix(SQLITE)
        try:
            self._kept = sqlite3.connect(file, timeout=LOCKED_S, check_same_thread=False)
            # Only a connection that has read counts as one.
            self._kept.execute("SELECT MAX(version) FROM schema_version").fetchone()
        except sqlite3.Error as error:
            raise ServerUnavailable(f"The database {file} cannot be opened: {error}.") from error

    def _open(self, read_only: bool = False) -> Any:
        if self.url.startswith(SQLITE):
            return _sqlite(Path(self.url.removeprefix(SQLITE)), read_only)
        return _postgres(self.url)


def count_change(tx: Transaction, name: str) -> None:
    """Tell readers, within a transaction that changes something, that it changed."""
    tx.rows(
        "INSERT INTO revisions VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET n = revisions.n + 1",
        (name,),
    )


class _SqliteTransaction:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        return [dict(row) for row in self._connection.execute(sql, values)]

    def many(self, sql: str, values: Sequence[Sequence[Any]]) -> None:
        self._connection.executemany(sql, values)

    def migration_lock(self) -> None:
        """BEGIN IMMEDIATE already keeps other writers out."""


@contextmanager
def _sqlite(file: Path, read_only: bool) -> Iterator[_SqliteTransaction]:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(file, timeout=LOCKED_S, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        raise ServerUnavailable(f"The database {file} cannot be opened: {error}.") from error
    with closing(connection):
        connection.row_factory = sqlite3.Row
        try:
            # WAL: readers never wait for the writer; NORMAL still survives kill -9.
            _use_wal(connection)
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA foreign_keys=ON")  # as PostgreSQL always has
            connection.execute("BEGIN" if read_only else "BEGIN IMMEDIATE")
            yield _SqliteTransaction(connection)
            connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise ServerUnavailable(f"The database {file} does not work: {error}.") from error
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:
                raise  # a subclass, e.g. IntegrityError: a bug, which PostgreSQL lets through, too
            raise ServerUnavailable(f"The file {file} is no usable database: {error}.") from error


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to the write-ahead log; only a new file is not there yet.

    SQLite does not wait for a lock here: several processes that make a file at once meet.
    """
    deadline = time.monotonic() + LOCKED_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


class _PostgresTransaction:
    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        self._cursor.execute(_percent(sql), values)
        return list(self._cursor.fetchall()) if self._cursor.description else []

    def many(self, sql: str, values: Sequence[Sequence[Any]]) -> None:
        self._cursor.executemany(_percent(sql), values)

    def migration_lock(self) -> None:
        self.rows("SELECT pg_advisory_xact_lock(?)", (SCHEMA_LOCK,))


@contextmanager
def _postgres(url: str) -> Iterator[_PostgresTransaction]:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.rows import dict_row

    try:
        wanted: Any = {**PATIENCE, **conninfo_to_dict(url)}
    except psycopg.ProgrammingError:
        # Without its cause, which may quote a piece of the password.
        raise WrongUse(
            f"The setting DATABASE_URL cannot be used: {without_password(url)} is no address like "
            "postgresql://USER:PASSWORD@HOST/NAME (special characters are written %XX)."
        ) from None
    try:
        with (
            psycopg.connect(**wanted, row_factory=dict_row) as connection,
            connection.cursor() as cursor,
        ):
            yield _PostgresTransaction(cursor)
    except (
        psycopg.OperationalError,
        psycopg.InterfaceError,  # lost between two statements
        psycopg.errors.InsufficientPrivilege,
        psycopg.errors.ReadOnlySqlTransaction,
    ) as error:
        raise ServerUnavailable(_why(without_password(url), error)) from error


def _why(shown: str, error: Exception) -> str:
    """Say why a PostgreSQL cannot be used, and what to do."""
    import psycopg

    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return (
            f"The database {shown} lets this user do too little ({reason}): make it the owner "
            "with ALTER DATABASE NAME OWNER TO USER, or correct DATABASE_URL."
        )
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return (
            f"The database {shown} takes no changes ({reason}): DATABASE_URL must name the "
            "primary server."
        )
    refused = NOT_TO_US.search(reason)
    if refused:
        return (
            f"The database {shown} refuses the login ({reason[refused.start() :]}): correct the "
            "user, the password or the name in DATABASE_URL."
        )
    return f"The database {shown} does not answer: {reason}. Start it, or correct DATABASE_URL."


def _percent(sql: str) -> str:
    return sql.replace("%", "%%").replace("?", "%s")


def _migrate(transaction: Any) -> None:
    transaction.migration_lock()
    transaction.rows("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
    found = transaction.rows("SELECT MAX(version) AS version FROM schema_version")
    have = int(found[0]["version"] or 0)
    sections = _sections()
    if have > max(sections):
        raise ImgrecError(
            f"The database has schema version {have}, this imgrec knows up to {max(sections)}: "
            "update imgrec."
        )
    for version in sorted(sections):
        if version > have:
            for statement in sections[version]:
                transaction.rows(statement)
            transaction.rows("INSERT INTO schema_version VALUES (?)", (version,))


def _sections() -> dict[int, list[str]]:
    """Read schema.sql -> {version: statements}."""
    text = files("pipeline.store").joinpath("schema.sql").read_text()
    parts = re.split(r"^-- version (\d+)$", text, flags=re.MULTILINE)
    sections = {}
    for number, body in zip(parts[1::2], parts[2::2], strict=True):
        bare = re.sub(r"--.*", "", body)
        statements = [statement.strip() for statement in bare.split(";")]
        sections[int(number)] = [statement for statement in statements if statement]
    return sections
