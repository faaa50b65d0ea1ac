"""FAISS, PostgreSQL and Milvus beside their bare clients; publishing and changes under queries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import synthetic_vectors
from harness import Run
from index_stand import publish, store_in
from milvus_server import PROGRAM, Milvus
from postgres_server import Postgres

from pipeline.engines.choice import engines
from pipeline.index import faiss_index
from pipeline.index.engine import Base, Engines, OpenIndex
from pipeline.index.live_changes import AddedImage, ChangedIndexes, RemovedImage
from pipeline.index.live_index import PublishedIndex
from pipeline.index.versions import VersionStore
from pipeline.settings import Settings
from pipeline.store.database import Database
from pipeline.store.live_changes import LiveChanges
from pipeline.store.refreshing import RevisionCache

TITLE = "The engines beside their bare clients, and under publishing"
QUICK = False  # servers are started, and graphs built: minutes
HERE = Path(__file__).parent
COUNT, QUERIES, K = 30_000, 400, 10
SHARES = (0.5, 0.05, 0.001)
MAX_OVERHEAD_MS = 1.5
CHANGES = 40  # half of them additions
PAUSE_S = 0.02  # between two queries while something else is measured: 30 to 50 a second

Bare = Callable[[np.ndarray], object]


@dataclass
class Stand:
    """An engine with its published version, and what asks its server without imgrec."""

    name: str
    url: str
    engines: Engines
    store: VersionStore
    opened: OpenIndex
    bare: Bare


def measure(run: Run) -> None:
    vectors = synthetic_vectors.clustered(COUNT, 0)
    queries = synthetic_vectors.clustered(QUERIES, 1)
    run.fact("vectors", f"{COUNT:,} x {synthetic_vectors.DIM}; {synthetic_vectors.HOW}")
    for name in ("faiss", "pgvector", "milvus"):
        if name == "milvus" and not os.environ.get(PROGRAM):
            run.fact("milvus", f"not measured: {PROGRAM} names no milvus-server")
            continue
        with server_of(name) as url:
            start = time.perf_counter()
            stand = made(run, name, url, vectors)
            run.fact(f"{name}: built and published in, s", round(time.perf_counter() - start, 1))
            beside_bare(run, stand, queries)
            filtered(run, stand, vectors, queries)
            if name != "faiss":
                small_change(run, stand, vectors, queries)
            under_changes(run, stand, vectors, queries)
            under_publishing(run, stand, queries)
            stand.engines.keep_only([])


@contextmanager
def server_of(name: str) -> Iterator[str]:
    """Start an engine's server; yield its VECTOR_URL."""
    if name == "faiss":
        yield ""
    elif name == "milvus":
        milvus = Milvus()
        try:
            yield milvus.url
        finally:
            milvus.close()
    else:
        server = Postgres()
        try:
            server.admin("CREATE USER shop PASSWORD 'secret'")
            server.admin("CREATE DATABASE shop OWNER shop")
            server.admin("CREATE EXTENSION vector", "shop")
            yield f"postgresql://shop:secret@127.0.0.1:{server.port}/shop"
        finally:
            server.close()


def engines_at(url: str) -> Engines:
    settings = Settings(_env_file=None, vector_url=url, flat_max_vectors=1000, cpu_threads=1)
    return engines(settings, lambda: "bench")


def made(run: Run, name: str, url: str, vectors: np.ndarray) -> Stand:
    found = engines_at(url)
    store = store_in(run.folder / name)
    opened = found.open(publish(store, found.current, vectors))
    bare = {"faiss": bare_faiss, "pgvector": bare_pgvector, "milvus": bare_milvus}[name]
    return Stand(name, url, found, store, opened, bare(opened, url))


def bare_faiss(opened: Any, url: str) -> Bare:
    """Ask FAISS itself."""
    import faiss

    kind = opened.kind
    options = faiss.SearchParametersIVF(nprobe=kind.nprobe)
    depth = max(K, kind.rerank)  # what is ranked exactly afterwards costs the same to find

    def ask(query: np.ndarray) -> object:
        return opened.faiss.search(query[None, :], depth, params=options)

    return ask


def bare_pgvector(opened: Any, url: str) -> Bare:
    """Ask PostgreSQL through a connection that stays open, its settings made once."""
    import psycopg

    connection = psycopg.connect(url, autocommit=True)
    connection.execute(f"SET hnsw.ef_search = {opened.table.ef_search}")
    connection.execute("SET enable_seqscan = off")
    connection.execute("SET enable_sort = off")
    connection.execute("SET jit = off")
    sql = f"SELECT id FROM {opened.table.name} ORDER BY embedding <#> %s::halfvec LIMIT {K}"

    def ask(query: np.ndarray) -> object:
        text = "[" + ",".join(map(repr, query.tolist())) + "]"
        return connection.execute(sql, (text,)).fetchall()

    return ask


def bare_milvus(opened: Any, url: str) -> Bare:
    """Ask Milvus through its client."""
    from pymilvus import MilvusClient

    client = MilvusClient(uri=url.replace("milvus://", "http://"))
    options = {"metric_type": "IP", "params": {"ef": opened.version.manifest["index"]["ef_search"]}}

    def ask(query: np.ndarray) -> object:
        return client.search(
            opened.collection,
            data=[query],
            limit=K,
            search_params=options,
            consistency_level="Eventually",
        )

    return ask


def took(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start)


def quantiles(times: list[float]) -> str:
    p50, p99 = np.quantile(times, [0.5, 0.99])
    return f"p50 {p50:.2f} ms, p99 {p99:.2f} ms"


def beside_bare(run: Run, stand: Stand, queries: np.ndarray) -> None:
    """Time single queries in turns, each round in the other order."""

    def own(query: np.ndarray) -> object:
        return next(stand.opened.search_deepening(query, K))

    for query in queries[:20]:  # both are warm
        own(query)
        stand.bare(query)
    overheads, ours, theirs = [], [], []
    for part in np.array_split(np.arange(len(queries)), 5):
        here, there = list[float](), list[float]()
        for row in part:
            query = queries[row]
            pair = [(here, lambda q=query: own(q)), (there, lambda q=query: stand.bare(q))]
            for times, ask in pair[:: 1 if row % 2 else -1]:
                times.append(took(ask))
        overheads.append(float(np.median(here) - np.median(there)))
        ours += here
        theirs += there
    run.fact(f"{stand.name}: a search", quantiles(ours))
    run.fact(f"{stand.name}: the bare client", quantiles(theirs))
    run.ratio(
        f"{stand.name}: p50 of a search beyond the bare client's, ms",
        overheads,
        what=f"top {K} of {COUNT:,} x {synthetic_vectors.DIM}, exact scores included, in turns",
        better="lower",
        target=MAX_OVERHEAD_MS,
    )


def filtered(run: Run, stand: Stand, vectors: np.ndarray, queries: np.ndarray) -> None:
    """Measure the recall under conditions against exact search of the allowed rows."""
    queries = queries[:100]
    for share in (1.0, *SHARES):
        allowed = np.random.default_rng(1).random(len(vectors)) < share
        rows = np.flatnonzero(allowed)
        best, _ = faiss_index.exact(vectors[rows], queries, K)
        reached, times = 0, []
        mask = None if share == 1 else allowed
        for query, truth in zip(queries, best, strict=True):
            start = time.perf_counter()
            hits = next(stand.opened.search_deepening(query, K, mask))
            times.append(1000 * (time.perf_counter() - start))
            reached += sum(score >= truth[-1] - 1e-5 for _, score in hits)
        told = f"recall@10 {reached / best.size:.3f}, {quantiles(times)}"
        run.fact(f"{stand.name}: with {share:.1%} of the rows allowed", told)


def small_change(run: Run, stand: Stand, vectors: np.ndarray, queries: np.ndarray) -> None:
    """Publish 1 % of other rows over the index that is there, beside a whole one; search both."""
    n_changed = len(vectors) // 100
    rows = np.insert(np.arange(n_changed, len(vectors)), np.arange(n_changed) * 50, -1)
    now = vectors[np.maximum(rows, 0)]
    now[rows < 0] = synthetic_vectors.clustered(n_changed, 3)
    store, engine = store_in(run.folder / f"{stand.name}-changed"), stand.engines.current
    start = time.perf_counter()
    patched = publish(store, engine, now, Base(stand.opened.version, rows))
    between = time.perf_counter()
    whole = publish(store, engine, now)
    ratio = (between - start) / (time.perf_counter() - between)
    run.fact(f"{stand.name}: seconds to publish 1 % of changes", round(between - start, 1))
    run.ratio(
        f"{stand.name}: time to publish 1 % of changes / a whole index",
        [ratio],
        what=f"{n_changed:,} of {len(vectors):,} rows new, as many gone; once each, with checks",
        better="lower",
    )
    both = [engine.open(patched), engine.open(whole)]
    times: list[list[float]] = [[], []]
    for number, query in enumerate(queries[:200]):
        for each in (number % 2, 1 - number % 2):
            times[each].append(took(lambda q=query, i=both[each]: next(i.search_deepening(q, K))))
    run.fact(f"{stand.name}: a search after 1 % of changes", quantiles(times[0]))
    run.fact(f"{stand.name}: of a whole index", quantiles(times[1]))


class Asker:
    """Asks without end in a thread; remembers when each query began and how long it took."""

    def __init__(self, ask: Callable[[int], object]) -> None:
        self.times: list[tuple[float, float]] = []
        self._ask, self._ended = ask, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Asker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._ended.wait(PAUSE_S):
            start = time.perf_counter()
            self._ask(number)
            self.times.append((start, 1000 * (time.perf_counter() - start)))
            number += 1

    def between(self, start: float, end: float) -> list[float]:
        return [ms for at, ms in self.times if start <= at < end]


def under_changes(run: Run, stand: Stand, vectors: np.ndarray, queries: np.ndarray) -> None:
    """Add and remove while queries run; time how soon each change is seen."""
    changes = LiveChanges(Database(f"sqlite:///{run.folder}/{stand.name}.db"))
    changed = ChangedIndexes(RevisionCache(changes.revision, changes.all).get)
    base = stand.opened

    def find(query: np.ndarray) -> list[str]:
        opened = changed.of(base)
        return [opened.version.paths[row] for row, _ in next(opened.search_deepening(query, K))]

    seen: list[float] = []
    with Asker(lambda n: find(queries[n % len(queries)])) as asker:
        quiet = time.perf_counter()
        time.sleep(15)
        start = time.perf_counter()
        for number in range(CHANGES):
            row = 100 * number
            path = base.version.paths[row]
            if number % 2:
                changes.remove([RemovedImage(path, path, 0, 0)], base.version)
            else:
                path = f"new/{number}.jpg"
                added = AddedImage(path, path, 1, 1, "0" * 64, "f", vectors[row])
                changes.add(added, base.version)
            at = time.perf_counter()
            while (path in find(vectors[row])) == bool(number % 2):
                time.sleep(0.01)
            seen.append(time.perf_counter() - at)
        end = time.perf_counter()
    run.fact(f"{stand.name}: seconds until a change is seen", f"at most {max(seen):.2f}")
    before, within = asker.between(quiet, start), asker.between(start, end)
    compare(run, f"{stand.name}: {{}} images are added and removed", before, within)


def compare(run: Run, title: str, before: list[float], within: list[float]) -> None:
    """Compare the milliseconds of queries before something and within it; {} is the time."""
    run.fact(title.format("queries before"), quantiles(before))
    run.fact(title.format("queries while"), quantiles(within))
    slower, slowest = stalls(before, within)
    run.ratio(
        f"{title.format('p99 while')} / before",
        [slower],
        what=f"{len(before)} and {len(within)} queries of one thread, on the same cores",
        better="lower",
        target=3.0,
    )
    run.ratio(
        f"{title.format('slowest query while')} / p99 of the same time",
        [slowest],
        what=f"{len(within)} queries; before, {stalls(before, before)[1]:.2f}",
        better="lower",
        target=3.0,
    )


def under_publishing(run: Run, stand: Stand, queries: np.ndarray) -> None:
    """Publish another version from a process of its own while queries run."""
    published = PublishedIndex(stand.store, engines=stand.engines)
    names: set[str] = set()

    def ask(number: int) -> None:
        opened = published.current()
        names.add(opened.version.name)
        assert len(next(opened.search_deepening(queries[number % len(queries)], K))) == K

    published.current()
    with Asker(ask) as asker:
        quiet = time.perf_counter()
        time.sleep(30)
        busy = time.perf_counter()
        with busy_cores():
            time.sleep(15)
        start = time.perf_counter()
        script = [sys.executable, str(HERE / "bench_engines.py")]
        done = subprocess.run(
            [*script, stand.url, str(stand.store.folder)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        time.sleep(3)  # it is loaded beside the old one, and swapped
        end = time.perf_counter()
    assert len(names) == 2, names
    facts = json.loads(done.stdout.splitlines()[-1])
    run.fact(f"{stand.name}: seconds of publishing", f"{facts['seconds']:.0f}")
    before, within = asker.between(quiet, busy), asker.between(start, end)
    compare(run, f"{stand.name}: {{}} a version is built and published", before, within)
    run.fact(
        f"{stand.name}: p99 / before, and the slowest / p99, while each core runs a loop instead",
        "{:.2f} and {:.2f}".format(*stalls(before, asker.between(busy, start))),
    )


@contextmanager
def busy_cores() -> Iterator[None]:
    """Keep each core busy by a process: what any work of others on this machine does to queries."""
    loop = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(loop) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def stalls(before: list[float], within: list[float]) -> tuple[float, float]:
    """Return the p99 within something by that before, and the slowest within by its p99."""
    p99 = float(np.quantile(within, 0.99))
    return p99 / float(np.quantile(before, 0.99)), max(within) / p99


def publish_another(url: str, folder: Path) -> None:
    """Build and publish a version like a merge does, as the index worker's process."""
    vectors = synthetic_vectors.clustered(COUNT, 2)
    start = time.perf_counter()
    publish(VersionStore(folder), engines_at(url).current, vectors)
    print(json.dumps({"seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    publish_another(sys.argv[1], Path(sys.argv[2]))
