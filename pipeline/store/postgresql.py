"""Transactions on PostgreSQL, on connections that are kept in a pool."""

from __future__ import annotations

import logging
import os
import re
import select
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo, ConnStatus, ExecStatus, TransactionStatus
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool, PoolTimeout

from pipeline.errors import DatabaseFailed, ServerUnavailable, WrongUse, one_line
from pipeline.store.backend import Row, Values
from pipeline.urls import without_password

# A server that vanished with its network is given up in half a minute, not in two hours.
PATIENCE = {
    "connect_timeout": 5,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
POOL_SIZE = 4  # connections of one process, each made when all others are in use
IDLE_S = 60.0  # one that was not needed for so long is closed
LIFETIME_S = 1800.0  # so that a server behind a proxy or a new address is found in the end
ANSWER_S = 3.0  # for a pooled connection to show that its server still answers
WAIT_S = 10.0  # for a connection, while all are in use
POLL_S = 0.1
CLOSE_S = 1.0
# Read anew in each statement: a transaction may have waited for a lock.
NOW_S = "EXTRACT(EPOCH FROM clock_timestamp())::float8"
SCHEMA_LOCK = 0x696D6772  # "imgr": the advisory lock of a schema change
REFUSED = re.compile(
    r"\w+ authentication failed.*|\S+: no password supplied|(database|role) \".*\" does not exist"
    r"|no pg_hba.conf entry.*|permission denied for database.*"
)
# SQLSTATEs of a server that is away, full of connections, or refuses the login: all work waits for
# it, and nothing could be counted there. Whatever else a server that answers says is counted.
# https://www.postgresql.org/docs/current/errcodes-appendix.html
OUTAGES = (
    "08",  # connection exceptions
    "28",  # the login is refused
    "57P",  # the server shuts down or starts
    "53300",  # too many connections
    "25006",  # read-only, as a replica is that takes over
)
# What is told in a sentence. The rest, like a value that no column takes, is a bug or bad data.
TROUBLE = (
    psycopg.OperationalError,
    psycopg.InterfaceError,  # lost between two statements
    psycopg.InternalError,  # with it, a transaction that the server has ended
    psycopg.NotSupportedError,
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
)
# Each failure to connect reaches whoever wanted the connection, as a sentence.
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)


class PostgresTransaction:
    def __init__(self, cursor: psycopg.Cursor[Row]) -> None:
        self._cursor = cursor

    def rows(self, sql: str, values: Values = ()) -> list[Row]:
        self._cursor.execute(_for_psycopg(sql), values)
        return list(self._cursor.fetchall()) if self._cursor.description else []

    def many(self, sql: str, values: Sequence[Values]) -> None:
        self._cursor.executemany(_for_psycopg(sql), values)

    def copy(self, sql: str, blocks: Iterable[bytes]) -> None:
        """Run COPY ... FROM STDIN with what `blocks` yields."""
        with self._cursor.copy(sql) as copy:
            for block in blocks:
                copy.write(block)

    def notices(self, sql: str) -> list[str]:
        """Run a statement; return the messages that the server sends beside it."""
        messages: list[str] = []
        connection = self._cursor.connection

        def note(diagnostic: psycopg.errors.Diagnostic) -> None:
            messages.append(diagnostic.message_primary or "")

        connection.add_notice_handler(note)
        try:
            self.rows(sql)
        finally:
            connection.remove_notice_handler(note)
        return messages

    def table_exists(self, name: str) -> bool:
        return self.rows("SELECT to_regclass(?) AS name", (name,))[0]["name"] is not None

    def encoding(self) -> str:
        return str(self.rows("SHOW server_encoding")[0]["server_encoding"])

    def lock_schema(self) -> None:
        self.rows("SELECT pg_advisory_xact_lock(?)", (SCHEMA_LOCK,))


class Postgresql:
    """A PostgreSQL by its URL.

    Raises:
        WrongUse: the URL can never work.
    """

    def __init__(self, url: str, setting: str = "DATABASE_URL", pool_size: int = POOL_SIZE) -> None:
        """Connect to nothing yet.

        Args:
            setting: the one that names the server, for messages.
            pool_size: the connections of this process at most.
        """
        self._shown = without_password(url)
        self._setting = setting
        self._pool_size = pool_size
        self._last_failure: tuple[float, psycopg.Error] | None = None
        self._pool = ConnectionPool(
            connection_class=self._connection_class(),
            kwargs={
                **PATIENCE,
                **_options(url, setting),
                "client_encoding": "UTF8",
                "prepare_threshold": None,  # PgBouncer may give each transaction another server
                "row_factory": dict_row,
            },
            min_size=0,
            max_size=pool_size,
            max_idle=IDLE_S,
            max_lifetime=LIFETIME_S,
            check=_require_answer,
            reconnect_timeout=0,
            num_workers=1,
            open=False,
        )
        weakref.finalize(self, _close, self._pool, os.getpid())

    @contextmanager
    def transaction(self, read_only: bool) -> Iterator[PostgresTransaction]:
        """Commit at the end, roll back on an error.

        Raises:
            ServerUnavailable: the server does not answer, refuses us, or was lost on the way.
            DatabaseFailed: it answers, and cannot do this.
            WrongUse: it cannot hold a text in its encoding.
        """
        with (
            self._connection() as connection,
            connection,
            connection.cursor() as cursor,
        ):
            yield PostgresTransaction(cursor)

    def read_at_once(self, *statements: tuple[str, Values]) -> list[Row]:
        """Run statements as one transaction in one round trip; return the rows of the last.

        The values are written into the text: the protocol takes several statements only so.

        Raises:
            ServerUnavailable, DatabaseFailed, WrongUse: see `transaction`.
        """
        sql = "; ".join(_for_psycopg(statement) for statement, _ in statements)
        values = [value for _, values in statements for value in values]
        with self._connection() as connection:
            connection.autocommit = True  # the statements of one text are one transaction
            try:
                with psycopg.ClientCursor(connection) as cursor:
                    cursor.execute(sql.encode(), values)
                    while cursor.nextset():
                        pass
                    return list(cursor.fetchall())
            finally:
                if connection.info.transaction_status == TransactionStatus.IDLE:
                    connection.autocommit = False
                else:
                    connection.close()  # it is lost, or was interrupted; the pool makes another

    @contextmanager
    def _connection(self) -> Iterator[psycopg.Connection[Row]]:
        """Lend a connection; name what goes wrong with it."""
        connection = None
        try:
            connection = self._connect()
            try:
                yield connection
            finally:
                self._pool.putconn(connection)
        except TROUBLE as error:
            lost = connection is None or connection.pgconn.status != ConnStatus.OK
            if is_outage(error, lost=lost):
                raise ServerUnavailable(
                    _why(self._shown, error, self._setting, self._pool_size)
                ) from error
            raise DatabaseFailed(_why_failed(self._shown, error, self._setting)) from error
        except psycopg.errors.UntranslatableCharacter as error:
            raise WrongUse(
                f"The database {self._shown} cannot hold this text ({one_line(error)}): use one "
                "of encoding UTF8, see 'imgrec check'."
            ) from error

    def keep_open(self) -> None:
        """The pool holds the connections."""

    def _connect(self) -> psycopg.Connection[Row]:
        """Take a connection from the pool; an attempt to connect that fails is told at once."""
        self._pool.open()
        began = time.monotonic()
        while True:
            try:
                return self._pool.getconn(timeout=POLL_S)
            except PoolTimeout:
                failure = self._last_failure
                if failure is not None and failure[0] >= began:
                    raise failure[1] from None
                if time.monotonic() - began > WAIT_S:
                    raise

    def _connection_class(self) -> type[psycopg.Connection[Row]]:
        """Return a class whose failures to connect are noted here: the pool only logs them."""
        backend = weakref.ref(self)

        class Connection(psycopg.Connection[Row]):
            @classmethod
            def connect(cls, conninfo: str = "", **options: Any) -> Any:
                try:
                    return super().connect(conninfo, **options)
                except psycopg.Error as error:
                    if (noted_by := backend()) is not None:
                        noted_by._last_failure = (time.monotonic(), error)
                    raise

        return Connection


def _options(url: str, setting: str) -> dict[str, Any]:
    try:
        return dict(conninfo_to_dict(url))
    except psycopg.ProgrammingError:
        options = {option.keyword.decode() for option in Conninfo.get_defaults()} | {"ssl"}
        query = parse_qsl(url.rpartition("@")[2].partition("?")[2], keep_blank_values=True)
        unknown = [name for name, _ in query if name not in options]
        # Without its cause, which may quote a piece of the password.
        if unknown:
            raise WrongUse(
                f"The setting {setting} cannot be used: PostgreSQL knows no option "
                f"{unknown[0][:40]!r} (it is {without_password(url)})."
            ) from None
        raise WrongUse(
            f"The setting {setting} cannot be used: {without_password(url)} is not of the form "
            "postgresql://USER:PASSWORD@HOST/NAME (special characters are written %XX)."
        ) from None


def _require_answer(connection: psycopg.Connection[Any]) -> None:
    """Refuse a connection whose server is gone, or does not answer within `ANSWER_S`.

    A server that hangs still acknowledges what it is sent, so no timeout of TCP would notice.
    """
    server = connection.pgconn
    server.send_query(b"")
    server.flush()
    poll = select.poll()
    poll.register(server.socket, select.POLLIN)
    deadline = time.monotonic() + ANSWER_S
    while True:
        while server.is_busy():
            if not poll.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
                raise psycopg.OperationalError(f"no answer within {ANSWER_S:g} s")
            server.consume_input()
        result = server.get_result()
        if result is None:
            break
        if result.status == ExecStatus.FATAL_ERROR:
            raise psycopg.OperationalError(result.get_error_message())
    if server.status != ConnStatus.OK:
        raise psycopg.OperationalError("the connection was lost")


def _close(pool: ConnectionPool[Any], process: int) -> None:
    if process == os.getpid():  # after a fork, the connections are the parent's
        pool.close(CLOSE_S)


def is_outage(error: psycopg.Error, *, lost: bool) -> bool:
    """Tell whether an error is one of the server, which comes back, and not of the work.

    Args:
        lost: the connection is no longer there, or never was.
    """
    if isinstance(error, PoolTimeout):
        return True
    # libpq's own errors have no SQLSTATE, whether the network failed or the call was wrong.
    return error.sqlstate.startswith(OUTAGES) if error.sqlstate else lost


def _why_failed(address: str, error: psycopg.Error, setting: str) -> str:
    """Say why a PostgreSQL that answers cannot do something, and what to do."""
    reason = one_line(error)
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return (
            f"The database {address} gives this user too few rights ({reason}): make it the owner "
            f"with ALTER DATABASE NAME OWNER TO USER, or correct {setting}."
        )
    if isinstance(error, psycopg.errors.QueryCanceled):
        return (
            f"The database {address} has ended a statement ({reason}): raise the statement_timeout "
            "of this user, e.g. ALTER ROLE NAME SET statement_timeout = '60s'."
        )
    return f"The database {address} cannot do this: {reason}. See its log."


def _why(
    address: str,
    error: psycopg.Error,
    setting: str = "DATABASE_URL",
    pool_size: int = POOL_SIZE,
) -> str:
    """Say why a PostgreSQL cannot be used, and what to do."""
    reason = one_line(error)
    if isinstance(error, PoolTimeout):
        return (
            f"The database {address} is overloaded: all {pool_size} connections of this process "
            f"have been in use for {WAIT_S:g} s. Try again."
        )
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return (
            f"The database {address} is read-only ({reason}): {setting} must name the primary "
            "server."
        )
    if "certificate has expired" in reason or "certificate is not yet valid" in reason:
        return (
            f"The certificate of the database {address} is not valid now ({reason}): the clock of "
            f"this machine says {time.strftime('%Y-%m-%d %H:%M %Z')}. Set the clock, or renew the "
            "certificate."
        )
    refused = REFUSED.search(reason)
    if refused:
        return (
            f"The database {address} refuses the login ({reason[refused.start() :]}): correct the "
            f"user, the password or the name in {setting}."
        )
    return f"The database {address} does not answer: {reason}. Start it, or correct {setting}."


@lru_cache
def _for_psycopg(sql: str) -> str:
    sql = sql.replace("%", "%%").replace("?", "%s").replace("now_s()", NOW_S)
    return re.sub(r"(?<!:):([a-z]\w*)", r"%(\1)s", sql)
