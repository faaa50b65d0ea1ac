"""The engine on Milvus: a collection with an HNSW index for each version."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.engines import patched
from pipeline.engines.milvus_server import BUILD_S, CALL_S, MilvusServer, NotLoaded
from pipeline.engines.scores import TARGET_RECALL, deepening, scored, tune
from pipeline.errors import IndexBroken
from pipeline.failpoints import failpoint
from pipeline.index.engine import (
    Base,
    EngineState,
    Hits,
    Migration,
    OpenIndex,
    QueryByQuery,
    Vectors,
    age_s,
    is_own_name,
    new_name,
)
from pipeline.index.faiss_index import exact
from pipeline.index.versions import ADVICE, Version

M, EF_CONSTRUCTION = 16, 200  # https://milvus.io/docs/index.md recommends 8 to 64, and up from 100
EF_SEARCH = (64, 100, 160, 250, 400, 640, 1000)
MIGRATED = " vectors "  # in a description; no owner holds a space
BATCH_BYTES = 1 << 20  # of one insert; Milvus takes messages of 64 MB
MAX_LIMIT = 16_384  # rows of one answer
MAX_NAMED = 4096  # allowed rows that are named one by one
# An answer of so many rows, filtered afterwards, costs less than to name rows: of 30,000 x 512 with
# 5 % allowed, 1,500 named rows took 24 ms, an answer of 20 with 50 % allowed took 4 ms.
CHEAP_LIMIT = 1000
SPARE = 2  # an answer that is filtered afterwards is so many times as long as needed on average


@dataclass(frozen=True)
class MilvusIndex(QueryByQuery):
    """A version whose vectors are in a collection; scores are computed here."""

    version: Version
    server: MilvusServer

    exact = False

    @property
    def collection(self) -> str:
        return str(self.version.manifest["index"]["collection"])

    @property
    def n_vectors(self) -> int:
        return int(self.version.manifest["images"])

    def search_deepening(
        self, vector: Vectors, first: int, allowed: NDArray[np.bool_] | None = None
    ) -> Iterator[Hits]:
        """Yield ever deeper lists of (row, score), see `OpenIndex`."""
        total = self.n_vectors if allowed is None else int(allowed.sum())
        return deepening(first, total, lambda depth: self._hits(vector, depth, allowed))

    def plan(self, first: int, allowed: NDArray[np.bool_] | None) -> str:
        """Tell whether rows are named to Milvus, or its answer is filtered here."""
        total = self.n_vectors
        n_allowed = total if allowed is None else int(allowed.sum())
        within = f"{n_allowed:,} of {total:,} rows allowed"
        limit = self._limit(min(first, n_allowed), n_allowed)
        if allowed is not None and _is_named(n_allowed, limit):
            return f"Milvus among named rows, {within}"
        if limit > MAX_LIMIT:
            return f"exact search in this process, {within}"
        return f"HNSW, {within}" + ("" if allowed is None else ", filtered afterwards")

    @cached_property
    def _ef_search(self) -> int:
        return int(self.version.manifest["index"]["ef_search"])

    def _limit(self, depth: int, n_allowed: int) -> int:
        """Return how many rows hold `depth` allowed ones, on average and with some to spare."""
        if n_allowed == self.n_vectors:
            return depth
        return SPARE * depth * self.n_vectors // max(1, n_allowed) + 10

    def _hits(self, vector: Vectors, depth: int, allowed: NDArray[np.bool_] | None) -> Hits:
        """Return the best `depth` allowed rows; there are so many."""
        n_allowed = self.n_vectors if allowed is None else int(allowed.sum())
        rows = self._found(vector, depth, n_allowed, allowed)
        if len(rows) < depth:  # Milvus cannot tell more at once, or the allowed rows are far away
            among = np.arange(self.n_vectors) if allowed is None else np.flatnonzero(allowed)
            allowed_vectors: Any = patched.SelectedVectors(self.version.vectors, among)
            _, best = exact(allowed_vectors, vector[None, :], depth)
            rows = among[best[0]].tolist()
        return scored(self.version.vectors, rows, vector)

    def _found(
        self, vector: Vectors, depth: int, n_allowed: int, allowed: NDArray[np.bool_] | None
    ) -> list[int]:
        if depth > MAX_LIMIT:
            return []
        limit = self._limit(depth, n_allowed)
        if allowed is not None and _is_named(n_allowed, limit):
            return self._ask(vector, depth, f"id in {np.flatnonzero(allowed).tolist()}")
        if limit > MAX_LIMIT:
            return []
        rows = self._ask(vector, min(limit, self.n_vectors), "")
        if allowed is not None:
            rows = [row for row in rows if allowed[row]]
        return rows[:depth]

    def _ask(self, vector: Vectors, limit: int, condition: str) -> list[int]:
        try:
            with self.server.client() as client:
                return _search(client, self.collection, vector, limit, self._ef_search, condition)
        except NotLoaded:  # the server was started again, or somebody has released it
            with self.server.client() as client:
                client.load_collection(self.collection, timeout=BUILD_S)
                return _search(client, self.collection, vector, limit, self._ef_search, condition)


class MilvusEngine:
    """Builds a collection, and drops it where the build fails."""

    name = "milvus"
    builds_in_memory = False

    def __init__(self, server: MilvusServer, owner: Callable[[], str], replicas: int = 1) -> None:
        """Keep the versions of one data folder on a server.

        Args:
            owner: returns the id of the data folder; other folders may share the server.
            replicas: copies of an index in the memory of query nodes.
        """
        self.server = server
        self._owner, self._replicas = owner, replicas

    def build(
        self,
        vectors: Vectors,
        workspace: Path,
        check: Callable[[], None],
        base: Base | None = None,
        migration: Migration | None = None,
    ) -> dict[str, Any]:
        """Fill a collection, index and load it, and check that it finds its own vectors."""
        count, dim = vectors.shape
        report = migration.report if migration else _silent
        facts = patched.patch(base, self.name, vectors, workspace, self._has, self._search, check)
        if facts is not None:
            return facts
        with self.server.client() as client:
            name, done = self._unfinished(client, vectors, migration) if migration else ("", 0)
            try:
                if not name:
                    name = new_name()
                    key = migration.key if migration else ""
                    schema = _schema(client, dim, _description(self._owner(), key))
                    client.create_collection(name, schema=schema, timeout=CALL_S)
                _fill(client, name, vectors, done, check, report)
                failpoint("milvus.before_index")
                report("graph", 0, count)
                _index(client, name, self._replicas)
                check()
                report("checking", count, count)
                ef_search, recall = _tuned(client, name, vectors, check)
            except BaseException as error:
                # What a migration has done is there for the next one.
                if migration is None or isinstance(error, IndexBroken):
                    with contextlib.suppress(Exception):  # the next build drops it
                        client.drop_collection(name, timeout=CALL_S)
                raise
        size = vectors.size * 4 + len(vectors) * 2 * M * 4
        return {
            "engine": self.name,
            "collection": name,
            "ef_search": ef_search,
            "factory": f"milvus HNSW{M}",
            "nlist": 0,
            "nprobe": 0,
            "recall_at_10": recall,
            "rerank": 0,
            "memory": size,
            "reason": f"{len(vectors):,} vectors in {self.server.shown}; the memory is an estimate",
        }

    def _search(self, version: Version) -> MilvusIndex:
        return MilvusIndex(version, self.server)

    def _has(self, version: Version) -> bool:
        """Tell whether the collection of a version is on this server; load it."""
        name = version.manifest["index"]["collection"]
        with self.server.client() as client:
            if not client.has_collection(name, timeout=CALL_S):
                return False
            client.load_collection(name, replica_number=self._replicas, timeout=BUILD_S)
            return _count(client, name) == patched.base_images(version)

    def _unfinished(self, client: Any, vectors: Vectors, migration: Migration) -> tuple[str, int]:
        """Return the collection of a migration of these vectors that was killed, and its rows."""
        used = {version.manifest["index"].get("collection") for version in migration.versions}
        wanted = _description(self._owner(), migration.key)
        for name in sorted(client.list_collections(timeout=CALL_S), reverse=True):
            if not is_own_name(name) or name in used:
                continue
            if client.describe_collection(name, timeout=CALL_S).get("description") != wanted:
                continue
            client.flush(name, timeout=BUILD_S)
            rows = int(client.get_collection_stats(name, timeout=CALL_S)["row_count"])
            # A batch is stored whole or not at all; of anything else, nobody knows what it is.
            if rows == len(vectors) or rows % _batch_rows(vectors) == 0:
                return name, rows
            client.drop_collection(name, timeout=CALL_S)
        return "", 0

    def open(self, version: Version) -> OpenIndex:
        """Find the collection of a version, and compare a few vectors with those of the folder.

        Raises:
            IndexBroken: it is gone, or holds other vectors.
        """
        name, ids = version.manifest["index"]["collection"], patched.ids_of(version)
        row_of = patched.sample(ids)
        good = self._has(version)
        if good:
            with self.server.client() as client:
                stored = client.query(
                    name,
                    filter=f"id in {list(row_of)}",
                    output_fields=["id", "embedding"],
                    timeout=CALL_S,
                )
            good = patched.holds(version, row_of, [(row["id"], row["embedding"]) for row in stored])
        if not good:
            raise IndexBroken(
                f"Index {version.name} and the collection {name} of "
                f"{self.server.shown} do not belong together: {ADVICE}."
            )
        return patched.opened(version, self._search, ids)

    def verify(self, version: Version) -> None:
        """Count a version's vectors and look at some, see `open`."""
        self.open(version)

    def keep_only(self, versions: Collection[Version], min_age_s: float = 0.0) -> list[str]:
        """Drop this folder's collections that no version names."""
        used = {version.manifest["index"]["collection"] for version in versions}
        dropped, owner = [], _description(self._owner())
        with self.server.client() as client:
            for name in sorted(client.list_collections(timeout=CALL_S)):
                if not is_own_name(name) or name in used or age_s(name) < min_age_s:
                    continue
                facts = client.describe_collection(name, timeout=CALL_S)
                description = str(facts.get("description", ""))
                if description == owner or description.startswith(f"{owner}{MIGRATED}"):
                    client.drop_collection(name, timeout=CALL_S)
                    dropped.append(name)
        return dropped

    def check(self) -> EngineState:
        """Prove the login, the version, and the right to make collections."""
        with self.server.client() as client:
            version = client.get_server_version(timeout=CALL_S)
            name = f"imgrec_check_{uuid.uuid4().hex[:8]}"
            client.create_collection(
                name, schema=_schema(client, 4, "imgrec check"), timeout=CALL_S
            )
            client.drop_collection(name, timeout=CALL_S)
        return EngineState(f"{self.server.shown}, Milvus {version}, writable")


def _is_named(n_allowed: int, limit: int) -> bool:
    return n_allowed <= MAX_NAMED and limit > CHEAP_LIMIT


def _silent(step: str, done: int, total: int) -> None:
    """Report nothing."""


def _description(owner: str, key: str = "") -> str:
    """Return what tells whose a collection is, and the key of a migration's vectors."""
    return f"imgrec {owner}{MIGRATED}{key}" if key else f"imgrec {owner}"


def _schema(client: Any, dim: int, description: str) -> Any:
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, description=description)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=dim)
    return schema


def _batch_rows(vectors: Vectors) -> int:
    return max(1, BATCH_BYTES // (4 * int(vectors.shape[1])))


def _fill(
    client: Any,
    name: str,
    vectors: Vectors,
    done: int,
    check: Callable[[], None],
    report: Callable[[str, int, int], None],
) -> None:
    """Insert the rows from `done` on."""
    count, size = len(vectors), _batch_rows(vectors)
    for start in range(done, count, size):
        check()
        report("copying", start, count)
        block = np.asarray(vectors[start : start + size])
        rows = [{"id": start + at, "embedding": row} for at, row in enumerate(block)]
        client.insert(name, rows, timeout=BUILD_S)
        failpoint("milvus.after_rows")
    client.flush(name, timeout=BUILD_S)
    report("copying", count, count)


def _index(client: Any, name: str, replicas: int) -> None:
    parameters = client.prepare_index_params()
    parameters.add_index(
        "embedding",
        index_type="HNSW",
        metric_type="IP",
        params={"M": M, "efConstruction": EF_CONSTRUCTION},
    )
    client.create_index(name, parameters, timeout=BUILD_S)
    client.load_collection(name, replica_number=replicas, timeout=BUILD_S)


def _count(client: Any, name: str) -> int:
    rows = client.query(
        name, filter="", output_fields=["count(*)"], consistency_level="Strong", timeout=CALL_S
    )
    return int(rows[0]["count(*)"])


def _search(
    client: Any, name: str, vector: Vectors, limit: int, ef_search: int, condition: str
) -> list[int]:
    # A collection never changes once it is published, so no query needs to wait for a newer state.
    (hits,) = client.search(
        name,
        data=[vector],
        limit=limit,
        filter=condition,
        search_params={"metric_type": "IP", "params": {"ef": max(ef_search, limit)}},
        consistency_level="Eventually",
        timeout=CALL_S,
    )
    return [int(hit["id"]) for hit in hits]


def _tuned(
    client: Any, name: str, vectors: Vectors, check: Callable[[], None]
) -> tuple[int, float]:
    """Return the least ef that reaches the target, and its recall@10.

    Raises:
        IndexBroken: vectors are missing, or sampled ones do not find themselves.
    """
    stored = _count(client, name)
    if stored != len(vectors):
        raise IndexBroken(f"The collection holds {stored} vectors, {len(vectors)} were written.")
    ef_search, recall = tune(
        vectors,
        EF_SEARCH,
        lambda ef_search, query, k: _search(client, name, query, k, ef_search, ""),
        check,
    )
    if recall < TARGET_RECALL - 0.1:  # a graph that is merely poor reaches more
        raise IndexBroken(f"Sampled vectors find {recall:.0%} of their neighbors.")
    return ef_search, recall
