"""The engine on PostgreSQL with pgvector: a table and its HNSW graph for each version."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.engines import patched
from pipeline.engines.pgvector_index import MAX_EF, PgvectorIndex, Table
from pipeline.engines.pgvector_server import PgvectorServer
from pipeline.engines.scores import TARGET_RECALL, share_found, tune
from pipeline.errors import Conflict, DatabaseFailed, ImgrecError, IndexBroken, WrongUse
from pipeline.failpoints import failpoint
from pipeline.images.memory_budget import format_bytes
from pipeline.index.engine import Base, EngineState, Migration, OpenIndex, Vectors, age_s, new_name
from pipeline.index.faiss_index import SAMPLE, SELF_SCORE
from pipeline.index.versions import ADVICE, Version
from pipeline.store.postgresql import PostgresTransaction

log = logging.getLogger(__name__)

M, EF_CONSTRUCTION = 16, 64  # pgvector's defaults
EF_SEARCH = (40, 64, 100, 160, 250, 400, 640, MAX_EF)
MAX_DIM = 4000  # of a halfvec with an HNSW index
BUILD_WORKERS = 1  # beside the leader, where the server's owner has chosen no number
BLOCK_ROWS = 4096
MAX_LAG_S = 10.0  # of a replica, before the check warns
CHUNK_ROWS = 65_536  # of a transaction of a migration
LOOK_S = 1.0  # between two looks at how far a graph is
HAS_GRAPH = """
SELECT 1 FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam
WHERE indrelid = ?::regclass AND amname = 'hnsw' AND indisvalid
"""
GRAPH_PROGRESS = """
SELECT (blocks_done::float8 / greatest(blocks_total, 1)) AS share
FROM pg_stat_progress_create_index WHERE relid = ?::regclass
"""
LOCK_S = 5.0  # for the last query of a table that is dropped
# A binary COPY: https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-FILE-FORMATS
COPY_HEAD, COPY_END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"


class PgvectorEngine:
    """Builds each version in one transaction: a killed indexer or server leaves nothing of it."""

    name = "pgvector"
    builds_in_memory = False

    def __init__(
        self, server: PgvectorServer, owner: Callable[[], str], memory: int | None = None
    ) -> None:
        """Keep the versions of one data folder on a server.

        Args:
            owner: returns the id of the data folder; other folders may share the server.
            memory: bytes for the server to build a graph in; None leaves it to the server.
        """
        self.server = server
        self._owner = owner
        self._memory = memory

    def build(
        self,
        vectors: Vectors,
        workspace: Path,
        check: Callable[[], None],
        base: Base | None = None,
        migration: Migration | None = None,
    ) -> dict[str, Any]:
        """Write a table and its graph, and check that it finds its own vectors.

        A migration commits what is done on the way; anything else is one transaction.
        """
        count, dim = vectors.shape
        if dim > MAX_DIM:
            raise WrongUse(
                f"The vectors have {dim:,} dimensions; pgvector indexes up to {MAX_DIM:,}. Choose "
                "another EMBEDDING_MODEL, or leave VECTOR_URL empty."
            )
        if migration is not None:
            return self._migrate(vectors, check, migration)
        facts = patched.patch(base, self.name, vectors, workspace, self._has, self._search, check)
        if facts is not None:
            return facts
        name = new_name()
        owner = self._owner()
        with self.server.write() as tx:
            self._set_build(tx)
            _create(tx, name, dim)
            rows = _copy(vectors, 0, count, check)
            tx.copy(f"COPY {name} FROM STDIN (FORMAT BINARY, FREEZE)", rows)
            tx.rows(f"ALTER TABLE {name} ADD PRIMARY KEY (id)")
            check()
            failpoint("pgvector.before_index")
            _build_graph(tx, name)
            check()
            facts = self._tuned_facts(tx, name, vectors, check)
            _register(tx, name, owner, vectors, "")
            failpoint("pgvector.before_commit")
        return facts

    def _search(self, version: Version) -> PgvectorIndex:
        return PgvectorIndex(version, self.server)

    def _has(self, version: Version) -> bool:
        """Tell whether the table of a version is on this server."""
        values = (version.manifest["index"]["table"], patched.base_images(version))
        with self.server.write() as tx:
            sql = "SELECT 1 FROM imgrec_indexes WHERE name = ? AND images = ?"
            return bool(tx.rows(sql, values))

    def _migrate(
        self, vectors: Vectors, check: Callable[[], None], migration: Migration
    ) -> dict[str, Any]:
        """Do what is left of a migration: rows, the graph, the check."""
        name = self._unfinished(vectors, migration) or self._begun(vectors, migration)
        count = len(vectors)
        try:
            self._copy_rest(name, vectors, check, migration)
            failpoint("pgvector.before_index")
            with self.server.write() as tx:
                _lock(tx, name)
                if not tx.rows(HAS_GRAPH, (name,)):
                    self._set_build(tx)
                    with self._reported(name, count, migration):
                        _build_graph(tx, name)
            failpoint("pgvector.before_check")
            check()
            migration.report("checking", count, count)
            with self.server.write() as tx:
                return self._tuned_facts(tx, name, vectors, check)
        except IndexBroken:
            self._drop(name)
            raise

    def _unfinished(self, vectors: Vectors, migration: Migration) -> str | None:
        """Return the table of a migration of these vectors that was killed."""
        used = {version.manifest["index"].get("table") for version in migration.versions}
        with self.server.write() as tx:
            rows = tx.rows(
                "SELECT name FROM imgrec_indexes WHERE owner = ? AND source = ? AND images = ?"
                " AND dimension = ? ORDER BY created_at DESC",
                (self._owner(), migration.key, *vectors.shape),
            )
        names = [str(row["name"]) for row in rows if row["name"] not in used]
        return names[0] if names else None

    def _begun(self, vectors: Vectors, migration: Migration) -> str:
        name = new_name()
        with self.server.write() as tx:
            _create(tx, name, vectors.shape[1])
            tx.rows(f"ALTER TABLE {name} ADD PRIMARY KEY (id)")
            _register(tx, name, self._owner(), vectors, migration.key)
        return name

    def _copy_rest(
        self, name: str, vectors: Vectors, check: Callable[[], None], migration: Migration
    ) -> None:
        """Copy the rows that are missing, some in each transaction."""
        count, done = len(vectors), None
        while done is None or done < count:
            with self.server.write() as tx:
                _lock(tx, name)
                stored = int(tx.rows(f"SELECT coalesce(max(id) + 1, 0) AS n FROM {name}")[0]["n"])
                if done is not None and stored != done:
                    raise Conflict("Another process migrates this index: wait for its end.")
                migration.report("copying", stored, count)
                done = min(count, stored + CHUNK_ROWS)
                if stored < done:
                    rows = _copy(vectors, stored, done, check)
                    tx.copy(f"COPY {name} FROM STDIN (FORMAT BINARY)", rows)
            failpoint("pgvector.after_rows")
        migration.report("copying", count, count)

    @contextmanager
    def _reported(self, name: str, count: int, migration: Migration) -> Iterator[None]:
        """Report how far the server is with a graph; it tells other connections only."""
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(LOOK_S):
                with contextlib.suppress(ImgrecError), self.server.write() as tx:
                    for row in tx.rows(GRAPH_PROGRESS, (name,)):
                        migration.report("graph", int(count * row["share"]), count)

        migration.report("graph", 0, count)
        thread = threading.Thread(target=look, name="graph", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _set_build(self, tx: PostgresTransaction) -> None:
        """Set the memory and the processes of the build, until the transaction ends.

        PostgreSQL's default is three processes. On two cores they build no faster than two, and
        queries beside them took three times as long (99th percentile), with two twice.
        """
        tx.rows(
            "SELECT set_config(name, ?, true) FROM pg_settings"
            " WHERE name = 'max_parallel_maintenance_workers' AND source = 'default'",
            (str(BUILD_WORKERS),),
        )
        if self._memory is not None:
            tx.rows(
                "SELECT set_config('maintenance_work_mem', ?, true)",
                (f"{max(1, self._memory >> 20)}MB",),
            )

    def _tuned_facts(
        self, tx: PostgresTransaction, name: str, vectors: Vectors, check: Callable[[], None]
    ) -> dict[str, Any]:
        """Check a table with its graph, and choose how wide it is searched.

        Raises:
            IndexBroken: rows are missing, or do not find themselves.
        """
        tx.rows(f"ANALYZE {name}")
        count = len(vectors)
        stored = tx.rows(f"SELECT count(*) AS n FROM {name}")[0]["n"]
        if stored != count:
            raise IndexBroken(f"The table holds {stored} vectors, {count} were written.")
        ef_search, recall = _tuned(tx, name, vectors, check)
        size = int(tx.rows("SELECT pg_total_relation_size(?) AS n", (name,))[0]["n"])
        return {
            "engine": self.name,
            "table": name,
            "ef_search": ef_search,
            "factory": f"pgvector HNSW{M}",
            "nlist": 0,
            "nprobe": 0,
            "recall_at_10": recall,
            "rerank": 0,
            "memory": size,
            "reason": f"{count:,} vectors in {self.server.shown}: {format_bytes(size)} there",
        }

    def open(self, version: Version) -> OpenIndex:
        """Find the table of a version, and compare a few of its vectors with those of the folder.

        Raises:
            IndexBroken: it is gone, or holds other vectors.
        """
        name, ids = version.manifest["index"]["table"], patched.ids_of(version)
        row_of = patched.sample(ids)

        def look(tx: PostgresTransaction) -> bool:
            registered = tx.rows("SELECT images FROM imgrec_indexes WHERE name = ?", (name,))
            if not registered or registered[0]["images"] != patched.base_images(version):
                return False
            stored = tx.rows(
                f"SELECT id, embedding::real[] AS v FROM {name} WHERE id = ANY (?)",
                (list(row_of),),
            )
            return patched.holds(version, row_of, [(row["id"], row["v"]) for row in stored])

        # A replica may not have it yet, so the primary has the last word.
        if self.server.read(look):
            return patched.opened(version, self._search, ids)
        with self.server.write() as tx:
            if look(tx):
                return patched.opened(version, self._search, ids)
        raise IndexBroken(
            f"Index {version.name} and the table {name} of {self.server.shown} do not "
            f"belong together: {ADVICE}."
        )

    def verify(self, version: Version) -> None:
        """Count the rows of a version's table.

        Raises:
            IndexBroken: it is gone or has lost some.
        """
        self.open(version)
        name, images = version.manifest["index"]["table"], patched.base_images(version)
        with self.server.write() as tx:
            stored = tx.rows(f"SELECT count(*) AS n FROM {name}")[0]["n"]
        if stored != images:
            raise IndexBroken(
                f"The table {name} of {self.server.shown} has {stored:,} rows, its version "
                f"{version.name} has {images:,}: {ADVICE}."
            )

    def keep_only(self, versions: Collection[Version], min_age_s: float = 0.0) -> list[str]:
        """Drop this folder's tables that no version names."""
        used = {version.manifest["index"]["table"] for version in versions}
        with self.server.write() as tx:
            rows = tx.rows("SELECT name FROM imgrec_indexes WHERE owner = ?", (self._owner(),))
        dropped = []
        for name in sorted(row["name"] for row in rows if row["name"] not in used):
            if age_s(name) < min_age_s:
                continue
            try:
                self._drop(name)
                dropped.append(name)
            except DatabaseFailed as error:  # a query still reads it: the next one drops it
                log.warning("The table %s is not dropped yet: %s", name, error)
        return dropped

    def _drop(self, name: str) -> None:
        with self.server.write() as tx:
            tx.rows(f"SET LOCAL lock_timeout = '{LOCK_S:.0f}s'")
            tx.rows(f"DROP TABLE IF EXISTS {name}")
            tx.rows("DELETE FROM imgrec_indexes WHERE name = ?", (name,))

    def check(self) -> EngineState:
        """Prove the extension, its version and the rights; ask each replica how far behind it is.

        Raises:
            SetupError, ServerUnavailable, DatabaseFailed: see `PgvectorServer.write`.
        """
        found, warnings = [f"{self.server.shown}, pgvector {self.server.version()}, writable"], []
        for replica in self.server.replicas:
            lag_s = replica.lag_s()
            if lag_s is None:
                warnings.append(f"{replica.shown} is no replica")
            elif lag_s > MAX_LAG_S:
                warnings.append(f"the replica {replica.shown} is {lag_s:.0f} s behind")
            else:
                found.append(f"replica {replica.shown}, {lag_s:.1f} s behind")
        return EngineState("; ".join(found), "; ".join(warnings))


def _create(tx: PostgresTransaction, name: str, dim: int) -> None:
    tx.rows(f"CREATE TABLE {name} (id INTEGER NOT NULL, embedding halfvec({dim}) NOT NULL)")
    # Never beside the table, where each row would cost another read.
    tx.rows(f"ALTER TABLE {name} ALTER embedding SET STORAGE PLAIN")


def _register(
    tx: PostgresTransaction, name: str, owner: str, vectors: Vectors, source: str
) -> None:
    tx.rows(
        "INSERT INTO imgrec_indexes (name, owner, images, dimension, source)"
        " VALUES (?, ?, ?, ?, ?)",
        (name, owner, *vectors.shape, source),
    )


def _lock(tx: PostgresTransaction, name: str) -> None:
    """Have a table for this transaction alone, among those that migrate."""
    if not tx.rows("SELECT 1 FROM imgrec_indexes WHERE name = ? FOR UPDATE", (name,)):
        raise Conflict("A rebuild has published another index meanwhile: migrate that one.")


def _build_graph(tx: PostgresTransaction, name: str) -> None:
    for notice in tx.notices(
        f"CREATE INDEX ON {name} USING hnsw (embedding halfvec_ip_ops)"
        f" WITH (m = {M}, ef_construction = {EF_CONSTRUCTION})"
    ):
        # E.g. that the graph did not fit into maintenance_work_mem.
        log.warning("PostgreSQL built the index with a notice: %s", notice)


def _copy(vectors: Vectors, start: int, end: int, check: Callable[[], None]) -> Iterator[bytes]:
    """Yield some rows (id, embedding) of a binary COPY."""
    dim = vectors.shape[1]
    layout = np.dtype(
        [
            *(("fields", ">i2"), ("id_bytes", ">i4"), ("id", ">i4"), ("bytes", ">i4")),
            *(("dim", ">i2"), ("unused", ">i2"), ("embedding", ">f2", (dim,))),
        ]
    )
    yield COPY_HEAD
    for first in range(start, end, BLOCK_ROWS):
        check()
        block = np.asarray(vectors[first : min(end, first + BLOCK_ROWS)])
        rows = np.zeros(len(block), layout)
        rows["fields"], rows["id_bytes"], rows["bytes"] = 2, 4, 4 + 2 * dim
        rows["id"] = np.arange(first, first + len(block))
        rows["dim"], rows["embedding"] = dim, block
        yield rows.tobytes()
    yield COPY_END


def _tuned(
    tx: PostgresTransaction, name: str, vectors: Vectors, check: Callable[[], None]
) -> tuple[int, float]:
    """Return the least ef_search that reaches the target, and its recall@10.

    Raises:
        IndexBroken: sampled vectors do not find themselves.
    """

    def find(ef_search: int, query: Vectors, k: int) -> list[int]:
        table = Table(name, len(vectors), ef_search)
        settings, select = table.search(query, table.step(k, None), None)
        tx.rows(*settings)
        return [row["id"] for row in tx.rows(*select)]

    ef_search, recall = tune(vectors, EF_SEARCH, find, check)
    rows = np.linspace(0, len(vectors) - 1, min(SAMPLE, len(vectors))).astype(np.int64)
    themselves, scores = np.ascontiguousarray(vectors[rows]), np.full((len(rows), 1), SELF_SCORE)
    own = share_found(vectors, themselves, scores, partial(find, ef_search))
    # A graph may miss a row; that of other vectors would miss all.
    if not own >= TARGET_RECALL - 0.02:
        raise IndexBroken(f"{1 - own:.0%} of {len(rows)} sampled vectors do not find themselves.")
    return ef_search, recall
