"""Milvus: its kills under queries and under a build, and migrations that go on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from index_stand import clustered, publish, store_in
from live_stack import until
from milvus_server import Milvus

from pipeline.engines.milvus import MilvusEngine
from pipeline.engines.milvus_server import MilvusServer
from pipeline.errors import DatabaseFailed, ServerUnavailable
from pipeline.index.engine import PREFIX, Base, Engines, OpenIndex
from pipeline.index.faiss_engine import FaissEngine
from pipeline.index.versions import VersionStore
from pipeline.rebuild.migrate import migrate

COUNT, DIM = 3000, 16
AGAIN_S = 240  # until a server that was killed answers


@pytest.fixture(scope="module")
def milvus() -> Iterator[Milvus]:
    """A server of these tests' own, to be killed."""
    pytest.importorskip("pymilvus", reason="pymilvus is not installed")
    server = Milvus()
    yield server
    server.close()


@pytest.fixture
def engine(milvus: Milvus) -> Iterator[MilvusEngine]:
    engine = MilvusEngine(MilvusServer(milvus.url, ""), lambda: "a folder")
    yield engine
    engine.keep_only([])


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    return store_in(tmp_path / "index")


@pytest.fixture
def vectors() -> np.ndarray:
    return clustered(COUNT, DIM)


def collections(engine: MilvusEngine) -> list[str]:
    with engine.server.client() as client:
        names = client.list_collections(timeout=10)
    return sorted(name for name in names if name.startswith(PREFIX))


def answers(opened: OpenIndex, vectors: np.ndarray) -> bool:
    """Tell whether an answer is whole; a server that is away is an error that says so."""
    try:
        hits = next(opened.search_deepening(vectors[5], 10))
    except (ServerUnavailable, DatabaseFailed):
        return False
    assert hits[0][0] == 5
    assert len(hits) == 10
    return True


def test_a_killed_server_gives_whole_answers_or_a_clear_error_and_loses_nothing(
    milvus: Milvus, engine: MilvusEngine, store: VersionStore, vectors: np.ndarray
) -> None:
    version = publish(store, engine, vectors)
    opened = engine.open(version)
    ended, outcomes, wrong = threading.Event(), list[bool](), list[BaseException]()

    def work() -> None:
        while not ended.is_set():
            try:
                outcomes.append(answers(opened, vectors))
            except BaseException as error:
                wrong.append(error)
                return

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: outcomes.count(True) > 100 or wrong, "queries are answered", 60)
        milvus.kill()
        until(lambda: not outcomes[-1] or wrong, "queries fail", 60)
        milvus.start()
        before = outcomes.count(True)
        until(lambda: outcomes.count(True) > before + 100 or wrong, "answered again", AGAIN_S)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    engine.verify(version)


@pytest.mark.parametrize("step", [1, 3], ids=["while rows are inserted", "before it is checked"])
def test_a_server_that_is_killed_in_a_build_keeps_the_version_before(
    milvus: Milvus, engine: MilvusEngine, store: VersionStore, vectors: np.ndarray, step: int
) -> None:
    version = publish(store, engine, vectors)
    steps = 0

    def kill() -> None:
        nonlocal steps
        steps += 1
        if steps == step:
            milvus.kill()

    with pytest.raises((ServerUnavailable, DatabaseFailed)):
        engine.build(vectors, store.workspace(), kill)
    assert store.current_name() == version.name
    milvus.start()
    until(lambda: answers(engine.open(version), vectors), "the version before answers", AGAIN_S)
    engine.keep_only([version])
    assert collections(engine) == [version.manifest["index"]["collection"]]
    again = publish(store, engine, vectors)
    assert answers(engine.open(again), vectors)


def test_a_small_change_writes_nothing_on_the_server(
    engine: MilvusEngine, store: VersionStore, vectors: np.ndarray
) -> None:
    first = publish(store, engine, vectors)
    (collection,) = collections(engine)
    rows = np.insert(np.arange(30, COUNT), np.arange(30) * 5, -1)
    now = vectors[np.maximum(rows, 0)]
    now[rows < 0] = clustered(30, DIM, seed=1)
    second = publish(store, engine, now, Base(first, rows))
    assert collections(engine) == [collection]
    opened = engine.open(second)
    for row in (0, 5, 10, 2000):
        assert next(opened.search_deepening(now[row], 10))[0][0] == row
    lists = list(opened.search_deepening(now[1], 10, np.arange(COUNT) < 500))
    assert sorted(row for row, _ in lists[-1]) == list(range(500))
    assert engine.keep_only([second]) == []


@pytest.mark.parametrize(
    ("line", "copied"),
    [("milvus.after_rows", 1000), ("milvus.before_index", COUNT), ("migrate.before_commit", COUNT)],
)
def test_a_move_that_was_stopped_goes_on_where_it_was(
    engine: MilvusEngine,
    store: VersionStore,
    vectors: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    copied: int,
) -> None:
    monkeypatch.setattr("pipeline.engines.milvus.BATCH_BYTES", 1000 * 4 * DIM)
    engines = Engines({"faiss": FaissEngine(), engine.name: engine}, engine.name)
    publish(store, engines.named("faiss"), vectors)

    def stop(name: str, *_: object) -> None:
        if name == line:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.engines.milvus.failpoint", stop)
        patch.setattr("pipeline.rebuild.migrate.failpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            migrate(store, engines, engine.name)
    assert store.current_name() == "v0001"
    (collection,) = collections(engine)
    copies = list[int]()

    def note(step: str, done: int, total: int) -> None:
        if step == "copying":
            copies.append(done)

    _, new = migrate(store, engines, engine.name, report=note)
    assert copies[0] == copied  # what was inserted before is not inserted again
    assert new.manifest["index"]["collection"] == collection
    assert answers(engine.open(new), vectors)
    engine.verify(new)
