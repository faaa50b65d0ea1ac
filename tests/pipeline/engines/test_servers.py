"""What PostgreSQL and Milvus both keep: through kills, small changes and moves that are stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_tools import answers, changed, check_search, collections, moved, shop_url, tables
from index_stand import clustered, publish, store_in
from live_stack import until
from milvus_server import Milvus
from postgres_server import Postgres

from pipeline.engines.milvus import MilvusEngine
from pipeline.engines.milvus_server import MilvusServer
from pipeline.engines.pgvector import PgvectorEngine
from pipeline.engines.pgvector_server import PgvectorServer
from pipeline.errors import DatabaseFailed, ServerUnavailable
from pipeline.index.versions import Version, VersionStore

COUNT, DIM = 3000, 16
AGAIN_S = 240  # until a server that was killed answers


@dataclass(frozen=True)
class Killable:
    """An engine and its server, which the tests may kill.

    Attributes:
        place: the key of a manifest that names a version's table or collection.
        places: returns those on the server.
        clients: how many query at once.
    """

    server: Any
    engine: Any
    place: str
    places: Callable[[], list[str]]
    clients: int

    def place_of(self, version: Version) -> str:
        return str(version.manifest["index"][self.place])


@pytest.fixture(scope="module", params=["pgvector", "milvus"])
def server(request: pytest.FixtureRequest) -> Iterator[Postgres | Milvus]:
    """A server of these tests' own, to be killed."""
    if request.param == "milvus":
        pytest.importorskip("pymilvus", reason="pymilvus is not installed")
        started: Postgres | Milvus = Milvus()
    else:
        started = Postgres()
        started.admin("CREATE USER shop PASSWORD 'secret'")
        started.admin("CREATE DATABASE shop OWNER shop")
        started.admin("CREATE EXTENSION vector", "shop")
    yield started
    started.close()


@pytest.fixture
def killable(server: Postgres | Milvus) -> Iterator[Killable]:
    if isinstance(server, Milvus):
        milvus = MilvusEngine(MilvusServer(server.url, ""), lambda: "a folder")
        made = Killable(server, milvus, "collection", lambda: collections(milvus), 8)
    else:
        engine = PgvectorEngine(PgvectorServer(shop_url(server)), lambda: "a folder", 64 << 20)
        made = Killable(server, engine, "table", lambda: tables(server), 32)
    yield made
    made.engine.keep_only([])


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    return store_in(tmp_path / "index")


@pytest.fixture
def vectors() -> np.ndarray:
    return clustered(COUNT, DIM)


def test_a_killed_server_gives_whole_answers_or_a_clear_error_and_loses_nothing(
    killable: Killable, store: VersionStore, vectors: np.ndarray
) -> None:
    engine = killable.engine
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

    threads = [threading.Thread(target=work) for _ in range(killable.clients)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: outcomes.count(True) > 100 or wrong, "queries are answered", 60)
        killable.server.kill()
        until(lambda: not outcomes[-1] or wrong, "queries fail", 60)
        killable.server.start()
        before = outcomes.count(True)
        until(lambda: outcomes.count(True) > before + 100 or wrong, "answered again", AGAIN_S)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    engine.verify(version)


@pytest.mark.parametrize("step", [1, 3], ids=["while rows are written", "before it is checked"])
def test_a_server_that_is_killed_in_a_build_keeps_the_version_before_and_nothing_else(
    killable: Killable, store: VersionStore, vectors: np.ndarray, step: int
) -> None:
    engine = killable.engine
    version = publish(store, engine, vectors)
    steps = 0

    def kill() -> None:
        nonlocal steps
        steps += 1
        if steps == step:
            killable.server.kill()

    with pytest.raises((ServerUnavailable, DatabaseFailed)):
        engine.build(vectors, store.workspace(), kill)
    assert store.current_name() == version.name
    killable.server.start()
    until(lambda: answers(engine.open(version), vectors), "the version before answers", AGAIN_S)
    engine.keep_only([version])
    assert killable.places() == [killable.place_of(version)]
    again = publish(store, engine, vectors)
    assert answers(engine.open(again), vectors)
    assert len(killable.places()) == 2


def test_a_small_change_writes_nothing_on_the_server(
    killable: Killable, store: VersionStore, vectors: np.ndarray
) -> None:
    engine = killable.engine
    first = publish(store, engine, vectors)
    places = killable.places()
    now, second = changed(store, engine, first, 30, seed=1)
    later, third = changed(store, engine, second, 30, seed=2)
    assert killable.places() == places
    for version, its in ((first, vectors), (second, now), (third, later)):
        opened = engine.open(version)
        assert opened.n_vectors == COUNT
        check_search(opened, its)
        engine.verify(version)
    opened, reached = engine.open(second), 0.0
    for gone in range(0, 210, 7):
        rows = [row for row, _ in next(opened.search_deepening(vectors[gone], 10))][:10]
        reached += len({*rows} & {*np.argsort(-(now @ vectors[gone]))[:10].tolist()}) / 300
    assert reached > 0.95
    assert third.manifest["index"]["recall_at_10"] >= 0.95
    store.rollback("v0001", engine.verify)
    assert engine.keep_only([third]) == []  # the first was pruned: its index serves the third
    check_search(engine.open(third), later)


@pytest.mark.parametrize(
    ("line", "copied", "graph"),
    [
        ("after_rows", 1000, True),
        ("before_index", COUNT, True),
        ("before_check", COUNT, False),
        ("migrate.before_commit", COUNT, False),
    ],
)
def test_a_move_that_was_stopped_goes_on_where_it_was(
    killable: Killable,
    store: VersionStore,
    vectors: np.ndarray,
    line: str,
    copied: int,
    graph: bool,
) -> None:
    engine = killable.engine
    if engine.name == "milvus":
        if line == "before_check":
            pytest.skip("Milvus builds its index and checks it in one step")
        graph = True  # to create an index that is there takes no time
    stop_at = line if "." in line else f"{engine.name}.{line}"
    _, nothing = moved(engine, store, vectors, stop_at)
    assert nothing is None
    assert store.current_name() == "v0001"
    assert list(store.folder.glob(".build-*")) == []
    places = killable.places()
    assert len(places) == 1
    steps, new = moved(engine, store, vectors)
    assert steps[0] == ("copying", copied)  # what was copied before is not copied again
    assert ("graph" in dict(steps)) == graph
    assert steps[-1] == ("checking", COUNT)
    assert new is not None
    assert killable.places() == places == [killable.place_of(new)]
    assert answers(engine.open(new), vectors)
    engine.verify(new)
