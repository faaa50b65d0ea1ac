"""A PostgreSQL with pgvector: one primary that takes changes, and replicas that only answer.

imgrec_indexes          a row for each index: the folder of versions that it belongs to, its size
imgrec_index_<hex>      one index: a row (id, embedding) for each vector, and its HNSW graph
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from pipeline.errors import DatabaseFailed, ServerUnavailable, SetupError, one_line
from pipeline.store.backend import Row, Values
from pipeline.store.postgresql import Postgresql, PostgresTransaction
from pipeline.urls import without_password

log = logging.getLogger(__name__)

# Before 0.8.4, VACUUM could damage an HNSW index (pgvector's CHANGELOG).
MIN_VERSION = (0, 8, 4)
POOL_SIZE = 8  # connections of one process to one server; a search takes milliseconds
AVOID_S = 5.0  # a replica that has failed is not asked for so long
SETTING, READ_SETTING = "VECTOR_URL", "VECTOR_READ_URLS"
REGISTRY = """
CREATE TABLE IF NOT EXISTS imgrec_indexes (
    name       TEXT PRIMARY KEY,
    owner      TEXT NOT NULL,
    images     BIGINT NOT NULL,
    dimension  INTEGER NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    source     TEXT NOT NULL DEFAULT ''
)
"""
# What the vectors of a migration are, so that it goes on after it was killed.
SOURCE = "ALTER TABLE imgrec_indexes ADD COLUMN IF NOT EXISTS source TEXT NOT NULL DEFAULT ''"
HAS_SOURCE = """
SELECT 1 FROM pg_attribute
WHERE attrelid = 'imgrec_indexes'::regclass AND attname = 'source' AND NOT attisdropped
"""
Statement = tuple[str, Values]
Result = TypeVar("Result")


class PgvectorServer:
    """The primary and its replicas."""

    def __init__(self, url: str, read_urls: Sequence[str] = ()) -> None:
        self.shown = without_password(url)
        self._primary = Postgresql(url, SETTING, POOL_SIZE)
        self.replicas = [
            Replica(without_password(each), Postgresql(each, READ_SETTING, POOL_SIZE))
            for each in read_urls
        ]
        self._turns = itertools.count()
        self._lock = threading.Lock()
        self._ready = False

    @contextmanager
    def write(self) -> Iterator[PostgresTransaction]:
        """Run a transaction on the primary; the extension and our own table are there.

        Raises:
            SetupError: the extension is missing or too old.
            ServerUnavailable, DatabaseFailed: see `Postgresql.transaction`.
        """
        with self._lock:
            if not self._ready:
                with self._primary.transaction(read_only=False) as tx:
                    self._prepare(tx)
                self._ready = True
        with self._primary.transaction(read_only=False) as tx:
            yield tx

    def read(self, work: Callable[[PostgresTransaction], Result]) -> Result:
        """Answer with a replica, in turns, or with the primary where none can.

        A replica may be away, or lag behind, so that it has no such index yet.
        """

        def ask(server: Postgresql) -> Result:
            with server.transaction(read_only=True) as tx:
                return work(tx)

        return self._answer(ask)

    def read_at_once(self, *statements: Statement) -> list[Row]:
        """Answer as `read` does, see `Postgresql.read_at_once`."""
        return self._answer(lambda server: server.read_at_once(*statements))

    def _answer(self, ask: Callable[[Postgresql], Result]) -> Result:
        replicas = self.replicas
        if replicas:
            turn = next(self._turns) % len(replicas)
            for replica in [*replicas[turn:], *replicas[:turn]]:
                if time.monotonic() < replica.avoid_until:
                    continue
                try:
                    return ask(replica.server)
                except (ServerUnavailable, DatabaseFailed) as error:
                    replica.avoid_until = time.monotonic() + AVOID_S
                    log.warning("The replica is left out for %g s: %s", AVOID_S, error)
        return ask(self._primary)

    def version(self) -> str:
        """Return the version of the extension, after trying what a rebuild needs.

        Raises:
            SetupError: it is missing or too old.
            ServerUnavailable, DatabaseFailed: see `Postgresql.transaction`.
        """
        with self.write() as tx:
            # A name of no index: two checks at once do not disturb each other.
            tx.rows("CREATE TEMPORARY TABLE imgrec_check (embedding halfvec(4)) ON COMMIT DROP")
            return str(_extension(tx))

    def _prepare(self, tx: PostgresTransaction) -> None:
        tx.lock_schema()
        version = _extension(tx)
        if version is None:
            try:
                # In a transaction of its own: a refusal ends it.
                with self._primary.transaction(read_only=False) as own:
                    own.rows("CREATE EXTENSION IF NOT EXISTS vector")
                    version = _extension(own)
            except DatabaseFailed as error:
                raise SetupError(
                    f"The extension pgvector cannot be made in the database {self.shown} "
                    f"({one_line(error.__cause__ or error)}): install pgvector on the server and "
                    "have an administrator run CREATE EXTENSION vector."
                ) from error
        numbers = tuple(int(part) for part in str(version).split("."))
        if numbers < MIN_VERSION:
            raise SetupError(
                f"The database {self.shown} has pgvector {version}, and imgrec needs "
                f"{'.'.join(map(str, MIN_VERSION))} or later, because of a defect in VACUUM: "
                "update it and run ALTER EXTENSION vector UPDATE."
            )
        tx.rows(REGISTRY)
        if not tx.rows(HAS_SOURCE):  # made by an earlier release
            tx.rows(SOURCE)


class Replica:
    """A replica; `avoid_until` is a time of the monotonic clock."""

    def __init__(self, shown: str, server: Postgresql) -> None:
        self.shown, self.server, self.avoid_until = shown, server, 0.0

    def lag_s(self) -> float | None:
        """Return how many seconds its data is behind; None for a server that is no replica.

        Raises:
            ServerUnavailable, DatabaseFailed: it cannot tell.
        """
        with self.server.transaction(read_only=True) as tx:
            row = tx.rows(
                "SELECT pg_is_in_recovery() AS replica, CASE WHEN"
                " pg_last_wal_receive_lsn() IS NOT DISTINCT FROM pg_last_wal_replay_lsn() THEN 0"
                " ELSE EXTRACT(EPOCH FROM now() - pg_last_xact_replay_timestamp()) END::float8"
                " AS lag"
            )[0]
        return float(row["lag"] or 0.0) if row["replica"] else None


def _extension(tx: PostgresTransaction) -> str | None:
    rows = tx.rows("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
    return str(rows[0]["extversion"]) if rows else None
