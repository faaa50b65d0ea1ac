"""What the tests of the engines on servers share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from index_stand import clustered, publish
from postgres_server import Postgres

from pipeline.engines.milvus import MilvusEngine
from pipeline.errors import DatabaseFailed, ServerUnavailable
from pipeline.index.engine import PREFIX, Base, Engine, Engines, OpenIndex
from pipeline.index.faiss_engine import FaissEngine
from pipeline.index.versions import Version, VersionStore
from pipeline.rebuild.migrate import migrate

Steps = list[tuple[str, int]]


def shop_url(server: Postgres, database: str = "shop") -> str:
    return f"postgresql://shop:secret@127.0.0.1:{server.port}/{database}"


def tables(server: Postgres) -> list[str]:
    rows = server.admin(
        "SELECT relname FROM pg_class WHERE relname ~ '^imgrec_index_' AND relkind = 'r'", "shop"
    )
    return sorted(str(name) for (name,) in rows)


def collections(engine: MilvusEngine) -> list[str]:
    with engine.server.client() as client:
        names = client.list_collections(timeout=10)
    return sorted(name for name in names if name.startswith(PREFIX))


def answers(opened: OpenIndex, vectors: np.ndarray) -> bool:
    """Tell whether an answer is whole; an unavailable server is an error that says so."""
    try:
        hits = next(opened.search_deepening(vectors[5], 10))
    except (ServerUnavailable, DatabaseFailed):
        return False
    assert hits[0][0] == 5
    assert len(hits) == 10
    return True


def changed(
    store: VersionStore, engine: Engine, base: Version, n_changed: int, seed: int
) -> tuple[np.ndarray, Version]:
    """Publish what comes after a version: some rows have gone, and as many are new among them."""
    kept = np.delete(np.arange(base.manifest["images"]), np.arange(n_changed) * 7)
    rows = np.insert(kept, np.arange(n_changed) * 5, -1)  # they move the rows behind them
    vectors = np.array(base.vectors)[np.maximum(rows, 0)]
    vectors[rows < 0] = clustered(n_changed, vectors.shape[1], seed)
    return vectors, publish(store, engine, vectors, Base(base, rows))


def check_search(opened: Any, vectors: np.ndarray) -> None:
    """Compare with exact search: without a condition, with some, and down to the last row."""
    reached = 0.0
    for share in (1, 0.5, 0.02):
        allowed = np.random.default_rng(3).random(len(vectors)) < share
        mask, rows = (None if share == 1 else allowed), np.flatnonzero(allowed)
        for row in (0, 5, 10, 2000):
            found = [each for each, _ in next(opened.search_deepening(vectors[row], 10, mask))][:10]
            best = rows[np.argsort(-(vectors[rows] @ vectors[row]))[:10]]
            reached += len({*found} & {*best.tolist()}) / 120
            assert (row in found) == bool(allowed[row])
        lists = list(opened.search_deepening(vectors[1], 3, mask))
        assert sorted(each for each, _ in lists[-1]) == rows.tolist()
    assert reached > 0.95


def moved(
    engine: Engine, store: VersionStore, vectors: np.ndarray, stop_at: str = ""
) -> tuple[Steps, Version | None]:
    """Migrate to a server, or until a failpoint; return what was reported, and the new version."""
    engines = Engines({"faiss": FaissEngine(), engine.name: engine}, engine.name)
    steps: Steps = []

    def stop(name: str, *_: object) -> None:
        if name == stop_at:
            raise KeyboardInterrupt

    if store.current_name() is None:
        publish(store, engines.named("faiss"), vectors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"pipeline.engines.{engine.name}.failpoint", stop)
        patch.setattr("pipeline.rebuild.migrate.failpoint", stop)
        patch.setattr("pipeline.engines.pgvector.CHUNK_ROWS", 1000)
        patch.setattr("pipeline.engines.pgvector.LOOK_S", 0.01)
        patch.setattr("pipeline.engines.milvus.BATCH_BYTES", 1000 * 4 * vectors.shape[1])
        try:
            _, new = migrate(
                store, engines, engine.name, report=lambda step, n, _: steps.append((step, n))
            )
        except KeyboardInterrupt:
            return steps, None
    return steps, new
