"""PostgreSQL with pgvector: rebuilds and queries over it, its faults, its replicas."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from catalogue_files import import_rows
from index_stand import clustered, publish, store_in
from inline_worker import InlineWorker
from live_stack import FAILPOINTS, ROOT, until
from postgres_server import Postgres

from pipeline.engines import patched, pgvector_server
from pipeline.engines.pgvector import PgvectorEngine
from pipeline.engines.pgvector_index import PgvectorIndex
from pipeline.engines.pgvector_server import PgvectorServer
from pipeline.errors import ImgrecError, ServerUnavailable, SetupError, WrongUse
from pipeline.index.engine import Base, Engines
from pipeline.index.faiss_engine import FaissEngine
from pipeline.index.versions import Version, VersionStore
from pipeline.rebuild.migrate import migrate
from workers import query

COUNT, DIM = 3000, 16


def tables(server: Postgres) -> list[str]:
    rows = server.admin(
        "SELECT relname FROM pg_class WHERE relname ~ '^imgrec_index_' AND relkind = 'r'", "shop"
    )
    return sorted(str(name) for (name,) in rows)


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
    data = (inline_worker.toy.root / name).read_bytes()
    return query.query_image(inline_worker.resources, data, 3, options)


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
    url = shop_of(vector_server, "bare")
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


def shop_of(server: Postgres, database: str = "shop") -> str:
    return f"postgresql://shop:secret@127.0.0.1:{server.port}/{database}"


def answers(opened: PgvectorIndex, vectors: np.ndarray) -> bool:
    """Tell whether an answer is whole; a server that is away is an error that says so."""
    try:
        hits = next(opened.search_deepening(vectors[5], 10))
    except ServerUnavailable:
        return False
    assert hits[0][0] == 5
    assert len(hits) == 10
    return True


@pytest.fixture
def fragile() -> Iterator[Postgres]:
    """A server of this test's own, to be killed."""
    server = Postgres()
    server.admin("CREATE USER shop PASSWORD 'secret'")
    server.admin("CREATE DATABASE shop OWNER shop")
    server.admin("CREATE EXTENSION vector", "shop")
    yield server
    server.close()


def test_a_killed_server_gives_whole_answers_or_a_clear_error_and_loses_nothing(
    fragile: Postgres, store: VersionStore, vectors: np.ndarray
) -> None:
    engine = PgvectorEngine(PgvectorServer(shop_of(fragile)), lambda: "a folder")
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

    threads = [threading.Thread(target=work) for _ in range(32)]
    for thread in threads:
        thread.start()
    until(lambda: outcomes.count(True) > 100 or wrong, "queries are answered", 30)
    fragile.kill()
    until(lambda: not outcomes[-1] or wrong, "queries fail", 30)
    fragile.start()
    before = outcomes.count(True)
    until(lambda: outcomes.count(True) > before + 100 or wrong, "queries are answered again", 60)
    ended.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    engine.verify(version)


def test_a_server_that_is_killed_in_a_build_keeps_the_version_before_and_nothing_else(
    fragile: Postgres, store: VersionStore, vectors: np.ndarray
) -> None:
    engine = PgvectorEngine(PgvectorServer(shop_of(fragile)), lambda: "a folder")
    version = publish(store, engine, vectors)
    steps = 0

    def kill() -> None:
        nonlocal steps
        steps += 1
        if steps == 2:  # rows are written, and the index is to be built
            fragile.kill()

    with pytest.raises(ServerUnavailable):
        engine.build(vectors, store.workspace(), kill)
    fragile.start()
    engine.verify(version)
    assert tables(fragile) == [version.manifest["index"]["table"]]
    publish(store, engine, vectors)
    assert len(tables(fragile)) == 2


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
    server = PgvectorServer(shop_of(primary), [shop_of(replica)])
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
    promoted = PgvectorEngine(PgvectorServer(shop_of(replica)), lambda: "a folder")
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


def changed(
    store: VersionStore, engine: PgvectorEngine, base: Version, n_changed: int, seed: int
) -> tuple[np.ndarray, Version]:
    """Publish what comes after a version: some rows have gone, and as many are new among them."""
    kept = np.delete(np.arange(base.manifest["images"]), np.arange(n_changed) * 7)
    rows = np.insert(kept, np.arange(n_changed) * 5, -1)  # they move the rows behind them
    vectors = np.array(base.vectors)[np.maximum(rows, 0)]
    vectors[rows < 0] = clustered(n_changed, DIM, seed)
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


def test_a_small_change_writes_nothing_on_the_server(
    engine: PgvectorEngine, store: VersionStore, vectors: np.ndarray, vector_server: Postgres
) -> None:
    first = publish(store, engine, vectors)
    (table,) = tables(vector_server)
    now, second = changed(store, engine, first, 30, seed=1)
    later, third = changed(store, engine, second, 30, seed=2)
    assert tables(vector_server) == [table]
    for version, its in ((first, vectors), (second, now), (third, later)):
        opened = engine.open(version)
        assert opened.n_vectors == COUNT
        check_search(opened, its)
        engine.verify(version)
    opened, reached = engine.open(second), 0.0
    for gone in range(0, 210, 7):
        found = [row for row, _ in next(opened.search_deepening(vectors[gone], 10))][:10]
        reached += len({*found} & {*np.argsort(-(now @ vectors[gone]))[:10].tolist()}) / 300
    assert reached > 0.95
    assert third.manifest["index"]["recall_at_10"] >= 0.95
    store.rollback("v0001", engine.verify)
    assert engine.keep_only([third]) == []  # the first was pruned: its table serves the third
    check_search(engine.open(third), later)


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


Steps = list[tuple[str, int]]


def moved(
    engine: PgvectorEngine, store: VersionStore, vectors: np.ndarray, stop_at: str = ""
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
        patch.setattr("pipeline.engines.pgvector.failpoint", stop)
        patch.setattr("pipeline.rebuild.migrate.failpoint", stop)
        patch.setattr("pipeline.engines.pgvector.CHUNK_ROWS", 1000)
        patch.setattr("pipeline.engines.pgvector.LOOK_S", 0.01)
        try:
            _, new = migrate(
                store, engines, engine.name, report=lambda step, n, _: steps.append((step, n))
            )
        except KeyboardInterrupt:
            return steps, None
    return steps, new


@pytest.mark.parametrize(
    ("line", "copied", "graph"),
    [
        ("pgvector.after_rows", 1000, True),
        ("pgvector.before_index", COUNT, True),
        ("pgvector.before_check", COUNT, False),
        ("migrate.before_commit", COUNT, False),
    ],
)
def test_a_move_that_was_stopped_goes_on_where_it_was(
    engine: PgvectorEngine,
    store: VersionStore,
    vectors: np.ndarray,
    vector_server: Postgres,
    line: str,
    copied: int,
    graph: bool,
) -> None:
    _, nothing = moved(engine, store, vectors, line)
    assert nothing is None
    assert store.current_name() == "v0001"
    assert list(store.folder.glob(".build-*")) == []
    (table,) = tables(vector_server)
    steps, new = moved(engine, store, vectors)
    assert steps[0] == ("copying", copied)  # what was copied before is not copied again
    assert ("graph" in dict(steps)) == graph
    assert steps[-1] == ("checking", COUNT)
    assert new is not None
    assert new.manifest["index"]["table"] == table
    assert tables(vector_server) == [table]
    assert answers(engine.open(new), vectors)
    engine.verify(new)


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
    url = shop_of(vector_server, "early")
    with PgvectorServer(url).write() as tx:
        tx.rows("ALTER TABLE imgrec_indexes DROP COLUMN source")
    with PgvectorServer(url).write() as tx:
        assert tx.rows("SELECT source FROM imgrec_indexes") == []


def test_an_engine_without_a_server_is_named(inline_worker: InlineWorker) -> None:
    inline_worker.rebuild()
    with pytest.raises(SetupError, match="The settings name no pgvector: set VECTOR_URL"):
        migrate(inline_worker.resources.versions, inline_worker.resources.engines, "pgvector")
