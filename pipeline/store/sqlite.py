"""Transactions on an SQLite file. A connection lives for one transaction and one thread."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path

from pipeline.access import require_usable_file, require_writable
from pipeline.errors import DatabaseFailed, FolderUnavailable, ServerUnavailable
from pipeline.store.backend import Row, Values
from pipeline.store.file_system import file_system, shares_memory

log = logging.getLogger(__name__)

LOCKED_S = 30.0  # patience with another process that writes
# Bugs and bad data, no fault of the file's: whoever meets one must not wait for a better day.
NOT_RETRYABLE = (
    *(sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError),
    *(sqlite3.InternalError, sqlite3.NotSupportedError),
)
# Errors of the file, its disk or its lock, which every transaction meets: all work waits. Whatever
# else an OperationalError says, like a table that is gone, is counted.
OUTAGES = frozenset(
    {
        *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL),
        *(sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL),
        *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_NOLFS),
    }
)
PRIMARY = 0xFF  # https://sqlite.org/rescode.html: extended codes have the primary one in a byte


class SqliteTransaction:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def rows(self, sql: str, values: Values = ()) -> list[Row]:
        return [dict(row) for row in self._connection.execute(sql, values)]

    def many(self, sql: str, values: Sequence[Values]) -> None:
        self._connection.executemany(sql, values)

    def table_exists(self, name: str) -> bool:
        return bool(self.rows("SELECT 1 FROM sqlite_master WHERE name = ?", (name,)))

    def encoding(self) -> str:
        return "UTF8"  # or UTF-16: it holds the same text

    def lock_schema(self) -> None:
        """BEGIN IMMEDIATE already keeps other writers out."""


class Sqlite:
    """An SQLite file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._open: sqlite3.Connection | None = None

    @contextmanager
    def transaction(self, read_only: bool) -> Iterator[SqliteTransaction]:
        """Commit at the end, roll back on an error.

        Raises:
            ServerUnavailable: the file cannot be opened, is locked for too long, or is broken.
            DatabaseFailed: it can, and does not do this.
        """
        file = self._file
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(file, timeout=LOCKED_S, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise self._trouble(error) from error
        with closing(connection):
            connection.row_factory = sqlite3.Row
            # The kernel's clock, which all processes that share the file read alike.
            connection.create_function("now_s", 0, lambda: time.clock_gettime(time.CLOCK_REALTIME))
            try:
                if self._journal == "WAL":
                    # Readers never wait for the writer; NORMAL still survives kill -9.
                    _set_journal(connection, "WAL")
                    connection.execute("PRAGMA synchronous=NORMAL")
                else:
                    self._use_rollback_journal(connection)
                connection.execute("PRAGMA foreign_keys=ON")
                connection.execute("BEGIN" if read_only else "BEGIN IMMEDIATE")
                yield SqliteTransaction(connection)
                connection.execute("COMMIT")
            except NOT_RETRYABLE:
                raise
            except sqlite3.OperationalError as error:
                code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & PRIMARY
                if code in OUTAGES:
                    raise self._trouble(error) from error
                raise DatabaseFailed(f"The database {file} cannot do this: {error}.") from error
            except sqlite3.DatabaseError as error:
                raise ServerUnavailable(
                    f"The file {file} is not a usable database: {error}."
                ) from error

    @cached_property
    def _journal(self) -> str:
        """The journal mode: the write-ahead log, unless processes cannot share its index.

        "WAL does not work over a network filesystem" (https://sqlite.org/wal.html).
        """
        if shares_memory(self._file):
            return "WAL"
        log.warning(
            "The database %s is on a network file system (%s), where SQLite's write-ahead log "
            "does not work: a slower journal is used. Put it on a local disk, or use PostgreSQL.",
            self._file,
            file_system(self._file),
        )
        return "DELETE"

    def _use_rollback_journal(self, connection: sqlite3.Connection) -> None:
        try:
            _set_journal(connection, "DELETE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            raise ServerUnavailable(
                f"The database {self._file} is on a network file system, and another process uses "
                "it with SQLite's write-ahead log, which does not work there: stop that process, "
                "or use PostgreSQL."
            ) from error

    def _trouble(self, error: Exception) -> ServerUnavailable:
        """Return the sentence for an error of the file: most come from a right that is missing."""
        file, setting = self._file, "DATABASE_URL"
        logs = [file.with_name(f"{file.name}{suffix}") for suffix in ("-wal", "-shm")]
        try:
            require_writable(file.parent, setting)  # SQLite makes and deletes its logs there
            for each in filter(Path.exists, (file, *logs)):
                require_usable_file(each, setting)
        except FolderUnavailable as missing_right:
            return missing_right
        return ServerUnavailable(f"The database {file} does not work: {error}.")

    def keep_open(self) -> None:
        """Hold one connection that does nothing.

        Whoever closes the last one writes the log into the file and waits for the disk: without
        this one, after each transaction (https://sqlite.org/wal.html, "The WAL File").
        """
        try:
            self._open = sqlite3.connect(self._file, timeout=LOCKED_S, check_same_thread=False)
            # Only a connection that has read counts as one.
            self._open.execute("SELECT MAX(version) FROM schema_version").fetchone()
        except sqlite3.Error as error:
            raise self._trouble(error) from error


def _set_journal(connection: sqlite3.Connection, mode: str) -> None:
    """Switch to a journal mode, which only a new file does not have yet.

    SQLite does not wait for a lock here: several processes that make a file at once meet.
    """
    deadline = time.monotonic() + LOCKED_S
    while True:
        try:
            connection.execute(f"PRAGMA journal_mode={mode}")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
