"""PostgreSQL with pgvector: rebuilds and queries over it, its faults, its replicas."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from catalogue_files import import_rows
from engine_tools import answers, changed, check_search, moved, shop_url, tables
from index_stand import clustered, publish, store_in
from inline_worker import InlineWorker
from live_stack import FAILPOINTS, ROOT, until
from postgres_server import Postgres

from pipeline.engines import patched, pgvector, pgvector_server
from pipeline.engines.pgvector import PgvectorEngine
from pipeline.engines.pgvector_index import PgvectorIndex
from pipeline.engines.pgvector_server import PgvectorServer
from pipeline.errors import ImgrecError, SetupError, WrongUse
from pipeline.index.engine import Engines
from pipeline.index.faiss_engine import FaissEngine
from pipeline.index.versions import Version, VersionStore
from pipeline.rebuild.migrate import migrate
from workers import query

COUNT, DIM = 3000, 16


@pytest.fixture
def engine(vector_url: str) -> Iterator[PgvectorEngine]:
    engine = PgvectorEngine(PgvectorServer(vector_url), lambda: "a folder", 64 << 20)
    yield engine
    engine.keep_only([])


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    return store_in(tmp_path / "index")


@pytest.fixture
def vectors() -> np.ndarray:
    return clustered(COUNT, DIM)


@pytest.fixture
def shop(inline_worker: InlineWorker, vector_url: str) -> Iterator[InlineWorker]:
    """A shop whose vectors are searched by PostgreSQL; its job table stays in SQLite."""
    inline_worker.start_again(vector_url=vector_url)
    yield inline_worker
    inline_worker.resources.engines.current.keep_only([])


def ask(inline_worker: InlineWorker, name: str, **options: Any) -> dict[str, Any]:
    """Ask for an image once the published version is loaded, which no query waits for."""
    resources, data = inline_worker.resources, (inline_worker.toy.root / name).read_bytes()
    published = resources.versions.current_name()
    until(lambda: resources.live_index.current().version.name == published, "it is loaded", 20)
    return query.query_image(resources, data, 3, options)


@pytest.mark.parametrize(("chosen", "used"), [("", "1"), ("3", "3")])
def test_a_graph_is_built_by_two_processes_unless_the_servers_owner_says_how_many(
    shop: InlineWorker,
    vector_server: Postgres,
    monkeypatch: pytest.MonkeyPatch,
    chosen: str,
    used: str,
) -> None:
    build, seen = pgvector._build_graph, list[str]()

    def look(tx: Any, name: str) -> None:
        (row,) = tx.rows("SELECT current_setting('max_parallel_maintenance_workers') AS n")
        seen.append(row["n"])
        build(tx, name)

    monkeypatch.setattr(pgvector, "_build_graph", look)
    if chosen:
        vector_server.admin(f"ALTER ROLE shop SET max_parallel_maintenance_workers = {chosen}")
    try:
        assert shop.job(shop.rebuild()).state == "published"
    finally:
        vector_server.admin("ALTER ROLE shop RESET max_parallel_maintenance_workers")
    assert seen == [used]


def test_a_rebuild_is_searched_in_postgresql_from_end_to_end(
    shop: InlineWorker, vector_server: Postgres
) -> None:
    assert shop.job(shop.rebuild()).state == "published"
    version = shop.resources.versions.current()
    assert tables(vector_server) == [version.manifest["index"]["table"]]
    assert not (version.folder / "index.bin").exists()
    answer = ask(shop, "kind0/04.png", explain=True)
    assert answer["matches"][0]["filename"] == "kind0/04.png"
    assert answer["matches"][0]["score"] == 1
    assert answer["search"] == "exact search, 20 of 20 rows allowed"
    products = [{"product_id": f"kind{n % 2}/{n:02d}", "price": n} for n in range(20)]
    import_rows(shop.resources.products, products)
    answer = ask(shop, "kind0/04.png", where=["price>=17"])
    assert {match["product"]["price"] for match in answer["matches"]} == {17, 18, 19}


def test_an_unchanged_folder_publishes_no_new_table_and_a_changed_one_does(
    shop: InlineWorker, vector_server: Postgres
) -> None:
    for _ in range(2):
        shop.rebuild()
    assert shop.resources.versions.current_name() == "v0001"
    shop.toy.draw("new.png", seed=99)
    shop.rebuild()
    assert shop.resources.versions.current_name() == "v0002"
    assert len(tables(vector_server)) == 2
    assert ask(shop, "new.png")["matches"][0]["filename"] == "new.png"
    shop.resources.versions.rollback(verify=shop.resources.engines.verify)
    assert ask(shop, "new.png")["index_version"] == "v0001"


def test_versions_that_are_pruned_leave_no_table(
    shop: InlineWorker, vector_server: Postgres
) -> None:
    for seed in range(5):
        shop.toy.draw("new.png", seed=seed)
        shop.rebuild(full=True)
    kept = shop.resources.versions.versions()
    assert len(kept) < 5
    assert tables(vector_server) == sorted(each.manifest["index"]["table"] for each in kept)


def test_faiss_and_postgresql_take_turns_and_a_rollback_crosses_over(
    inline_worker: InlineWorker, vector_url: str
) -> None:
    inline_worker.rebuild()
    inline_worker.start_again(vector_url=vector_url)
    assert ask(inline_worker, "kind0/04.png")["index_version"] == "v0001"  # of FAISS, as before
    inline_worker.rebuild()  # nothing has changed but the engine
    assert ask(inline_worker, "kind0/04.png")["index_version"] == "v0002"
    inline_worker.start_again(vector_url="")
    with pytest.raises(SetupError, match="v0002 is in pgvector, and VECTOR_URL does not name one"):
        ask(inline_worker, "kind0/04.png")
    inline_worker.resources.versions.rollback(verify=inline_worker.resources.engines.verify)
    assert ask(inline_worker, "kind0/04.png")["index_version"] == "v0001"
    inline_worker.start_again(vector_url=vector_url)
    inline_worker.resources.engines.current.keep_only([])


def test_two_folders_share_a_server_and_drop_only_their_own(
    engine: PgvectorEngine, store: VersionStore, vectors: np.ndarray
) -> None:
    version = publish(store, engine, vectors)
    other = PgvectorEngine(engine.server, lambda: "another folder")
    assert other.keep_only([]) == []
    engine.verify(version)
    assert engine.keep_only([]) == [version.manifest["index"]["table"]]


BUILD = """
import sys
sys.path[:0] = [{tests!r}, {failpoints!r}]
import failpoint_actions
from pathlib import Path
from index_stand import clustered, publish, store_in
from pipeline.engines.pgvector import PgvectorEngine
from pipeline.engines.pgvector_server import PgvectorServer
failpoint_actions.install()
engine = PgvectorEngine(PgvectorServer({url!r}), lambda: "a folder")
publish(store_in(Path({folder!r})), engine, clustered(3000, 16))
"""


@pytest.mark.parametrize("line", ["pgvector.before_index", "pgvector.before_commit"])
def test_a_killed_indexer_leaves_no_table(
    vector_server: Postgres, vector_url: str, engine: PgvectorEngine, tmp_path: Path, line: str
) -> None:
    script = BUILD.format(
        tests=str(ROOT / "tests"), failpoints=str(FAILPOINTS), url=vector_url, folder=str(tmp_path)
    )
    environment = {"IMGREC_FAILPOINT": line, "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    assert done.returncode == -9, done.stderr
    until(lambda: tables(vector_server) == [], "the server has noticed", 20)
    assert engine.keep_only([]) == []


def test_a_table_without_a_version_is_dropped_by_the_next_build(
    engine: PgvectorEngine, store: VersionStore, vectors: np.ndarray, vector_server: Postgres
) -> None:
    facts = engine.build(vectors, store.workspace(), lambda: None)  # then the indexer was killed
    assert tables(vector_server) == [facts["table"]]
    assert engine.keep_only([]) == [facts["table"]]
    assert tables(vector_server) == []


def test_a_missing_extension_is_named(vector_server: Postgres) -> None:
    vector_server.admin("CREATE DATABASE bare OWNER shop")
    url = shop_url(vector_server, "bare")
    with pytest.raises(SetupError, match="run CREATE EXTENSION vector"):
        PgvectorServer(url).version()


def test_an_extension_that_is_too_old_is_refused(
    vector_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgvector_server, "MIN_VERSION", (99, 0, 1))
    with pytest.raises(SetupError, match=r"imgrec needs 99\.0\.1 or later"):
        PgvectorServer(vector_url).version()


def test_a_user_without_rights_is_told_the_setting(vector_server: Postgres) -> None:
    vector_server.admin("CREATE USER guest PASSWORD 'secret'")
    url = f"postgresql://guest:secret@127.0.0.1:{vector_server.port}/shop"
    with pytest.raises(ImgrecError, match=r"too few rights.*correct VECTOR_URL"):
        PgvectorServer(url).version()


def test_vectors_of_too_many_dimensions_are_refused(engine: PgvectorEngine, tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match="pgvector indexes up to 4,000"):
        engine.build(np.zeros((1, 4001), np.float32), tmp_path, lambda: None)


@pytest.fixture
def fragile() -> Iterator[Postgres]:
    """A server of this test's own, to be killed."""
    server = Postgres()
    server.admin("CREATE USER shop PASSWORD 'secret'")
    server.admin("CREATE DATABASE shop OWNER shop")
    server.admin("CREATE EXTENSION vector", "shop")
    yield server
    server.close()


@pytest.fixture
def replicated(fragile: Postgres) -> Iterator[tuple[Postgres, Postgres]]:
    replica = Postgres(primary=fragile)
    yield fragile, replica
    replica.close()


def has_table(replica: Postgres, version: Version) -> bool:
    return version.manifest["index"]["table"] in tables(replica)


def test_replicas_answer_and_the_primary_where_they_cannot(
    replicated: tuple[Postgres, Postgres],
    store: VersionStore,
    vectors: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    primary, replica = replicated
    monkeypatch.setattr(pgvector_server, "AVOID_S", 0)
    server = PgvectorServer(shop_url(primary), [shop_url(replica)])
    engine = PgvectorEngine(server, lambda: "a folder")
    version = publish(store, engine, vectors)
    opened = engine.open(version)  # whether or not the replica has it yet
    until(lambda: has_table(replica, version), "the replica follows", 30)
    assert "replica postgresql://" in engine.check().found
    primary.stop("fast")
    assert answers(opened, vectors)  # by the replica
    primary.start()
    replica.stop("fast")
    assert answers(opened, vectors)  # by the primary
    replica.start()
    primary.kill()
    replica.admin("SELECT pg_promote()")
    until(lambda: replica.admin("SELECT pg_is_in_recovery()") == [(False,)], "promoted", 30)
    promoted = PgvectorEngine(PgvectorServer(shop_url(replica)), lambda: "a folder")
    promoted.verify(version)
    assert answers(promoted.open(version), vectors)
    publish(store, promoted, vectors)


def test_a_server_that_is_no_replica_is_told(vector_url: str) -> None:
    engine = PgvectorEngine(PgvectorServer(vector_url, [vector_url]), lambda: "a folder")
    assert engine.check().warning.endswith("is no replica")


def test_an_index_moves_to_postgresql_and_back_without_being_embedded(
    inline_worker: InlineWorker, vector_url: str, vector_server: Postgres
) -> None:
    inline_worker.rebuild()
    inline_worker.start_again(vector_url=vector_url)
    resources = inline_worker.resources
    before = ask(inline_worker, "kind0/04.png")["matches"]
    names = []
    for engine in ("pgvector", "pgvector", "faiss"):
        with resources.versions.lock():
            names.append(migrate(resources.versions, resources.engines, engine)[1].name)
        assert ask(inline_worker, "kind0/04.png")["matches"] == before
    assert names == ["v0002", "v0002", "v0003"]
    assert len(tables(vector_server)) == 1
    for name in ("v0001", "v0002", "v0003"):
        resources.versions.rollback(name, resources.engines.verify)
        resources.versions.verify(resources.versions.current())
    inline_worker.rebuild()  # VECTOR_URL decides where the next one is built
    assert resources.versions.current().manifest["index"]["engine"] == "pgvector"
    resources.engines.current.keep_only([])


def test_what_has_changed_too_much_is_built_anew(
    engine: PgvectorEngine, store: VersionStore, vectors: np.ndarray, vector_server: Postgres
) -> None:
    version = publish(store, engine, vectors)
    for seed in range(3):  # 2 % each time, and 5 % are the limit
        _, version = changed(store, engine, version, COUNT // 50, seed)
    assert len(tables(vector_server)) == 2
    assert isinstance(engine.open(version), PgvectorIndex)


def test_a_base_that_the_server_does_not_have_is_built_anew(
    engine: PgvectorEngine, store: VersionStore, vectors: np.ndarray, vector_server: Postgres
) -> None:
    first = publish(store, engine, vectors)
    engine.keep_only([])
    _, second = changed(store, engine, first, 30, seed=1)
    assert tables(vector_server) == [second.manifest["index"]["table"]]


def test_a_version_of_few_changes_moves_to_faiss(
    engine: PgvectorEngine, store: VersionStore, vectors: np.ndarray
) -> None:
    now, _ = changed(store, engine, publish(store, engine, vectors), 30, seed=1)
    engines = Engines({"faiss": FaissEngine(), engine.name: engine}, engine.name)
    _, there = migrate(store, engines, "faiss")
    check_search(engines.open(there), now)
    assert not (there.folder / patched.FILE).exists()


def test_a_second_move_of_a_published_version_makes_a_table_of_its_own(
    engine: PgvectorEngine, store: VersionStore, vectors: np.ndarray, vector_server: Postgres
) -> None:
    moved(engine, store, vectors)
    store.rollback("v0001")
    steps, new = moved(engine, store, vectors)
    assert steps[0] == ("copying", 0)
    assert new is not None
    assert len(tables(vector_server)) == 2


def test_a_rebuild_drops_what_a_stopped_move_has_left(
    engine: PgvectorEngine, store: VersionStore, vectors: np.ndarray, vector_server: Postgres
) -> None:
    moved(engine, store, vectors, "pgvector.before_index")
    version = publish(store, engine, vectors[:100])
    engine.keep_only([version])
    assert tables(vector_server) == [version.manifest["index"]["table"]]


def test_a_registry_of_an_earlier_release_is_extended(vector_server: Postgres) -> None:
    vector_server.admin("CREATE DATABASE early OWNER shop")
    vector_server.admin("CREATE EXTENSION vector", "early")
    url = shop_url(vector_server, "early")
    with PgvectorServer(url).write() as tx:
        tx.rows("ALTER TABLE imgrec_indexes DROP COLUMN source")
    with PgvectorServer(url).write() as tx:
        assert tx.rows("SELECT source FROM imgrec_indexes") == []


def test_an_engine_without_a_server_is_named(inline_worker: InlineWorker) -> None:
    inline_worker.rebuild()
    with pytest.raises(SetupError, match="The settings name no pgvector: set VECTOR_URL"):
        migrate(inline_worker.resources.versions, inline_worker.resources.engines, "pgvector")
