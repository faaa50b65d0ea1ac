"""Build one index and ask it, in a process of its own: `python competitors.py NAME FOLDER BUDGET`.

FOLDER has vectors.npy, queries.npy and best.npy (scores of the true ten). Prints JSON. Runs in
another environment than imgrec where a rival needs other versions of numpy and FAISS.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Search = Callable[[Any, int], Any]  # ((1, d) query, k) -> (k,) rows
TARGET = 0.95
THREADS = 1
QUICK_QUERIES = 50  # that choose a rival's search depth


def imgrec(folder: Path, vectors: Any, budget: int | None) -> tuple[Search, dict[str, Any]]:
    sys.path.insert(0, str(Path(__file__).parent.parent.parent))
    from pipeline.index import faiss_index

    flat_max = len(vectors) // 2
    built, kind = faiss_index.build(vectors, flat_max, THREADS, budget)
    faiss_index.self_check(built, vectors, kind)
    faiss_index.save(built, folder / "imgrec.bin")
    del built
    loaded = faiss_index.load(folder / "imgrec.bin", kind)

    def search(query: Any, k: int) -> Any:
        return faiss_index.search(loaded, query, k, kind=kind, vectors=vectors)[1][0]

    return search, {"kind": kind.factory, "memory": kind.memory, "nprobe": kind.nprobe}


def hnswlib(folder: Path, vectors: Any, budget: int | None) -> tuple[Search, dict[str, Any]]:
    import hnswlib as library

    index = library.Index(space="ip", dim=vectors.shape[1])
    index.init_index(max_elements=len(vectors), ef_construction=200, M=16)
    index.add_items(vectors, num_threads=THREADS)
    index.set_num_threads(THREADS)
    queries, best = np.load(folder / "queries.npy"), np.load(folder / "best.npy")
    for depth in (10, 20, 40, 80, 160, 320):  # its user must choose; the least that reaches it
        index.set_ef(depth)
        some = slice(QUICK_QUERIES)
        rows, _ = index.knn_query(queries[some], 10)
        if reached(vectors, queries[some], rows, best[some]) >= TARGET:
            break
    size = index.index_file_size()
    return lambda query, k: index.knn_query(query, k)[0][0], {
        "kind": f"M=16, ef={depth}",
        "memory": size,
    }


def autofaiss(folder: Path, vectors: Any, budget: int | None) -> tuple[Search, dict[str, Any]]:
    import logging

    import faiss
    from autofaiss import build_index

    faiss.omp_set_num_threads(THREADS)
    limit = f"{(budget or 2 * vectors.nbytes) // 2**20}MB"
    index, facts = build_index(
        np.ascontiguousarray(vectors),
        save_on_disk=False,
        metric_type="ip",
        max_index_memory_usage=limit,
        current_memory_available="8GB",
        nb_cores=THREADS,
        min_nearest_neighbors_to_retrieve=10,
        verbose=logging.ERROR,
    )
    faiss.omp_set_num_threads(THREADS)
    kind = str(facts.get("index_key", type(index).__name__))
    return lambda query, k: index.search(query, k)[1][0], {
        "kind": kind,
        "memory": facts["size in bytes"],
    }


def reached(vectors: Any, queries: Any, rows: Any, best: Any) -> float:
    """Return recall@10: a row is right when it scores like the true tenth."""
    scores = np.einsum("qd,qkd->qk", queries, vectors[np.maximum(rows, 0)])
    return float(((scores >= best[:, -1:] - 1e-5) & (np.asarray(rows) >= 0)).mean())


class Peak:
    """Looks how much anonymous memory this process has had, above the start."""

    def __init__(self) -> None:
        self.most = self._first = self._now()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    @staticmethod
    def _now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    def _look(self) -> None:
        while not self._ended.wait(0.02):
            self.most = max(self.most, self._now())

    def end(self) -> int:
        self._ended.set()
        self._thread.join()
        return self.most - self._first


def main(name: str, folder: Path, budget: int | None) -> None:
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    queries, best = np.load(folder / "queries.npy"), np.load(folder / "best.npy")
    importlib.import_module("faiss" if name == "imgrec" else name)  # its code is no index
    peak = Peak()
    start, cpu = time.perf_counter(), time.process_time()
    search, facts = globals()[name](folder, vectors, budget)
    facts |= {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    facts["peak"] = peak.end()
    found, times, exact = [], [], []
    for number, query in enumerate(queries):
        start = time.perf_counter()
        found.append(search(query[None, :], 10))
        times.append(time.perf_counter() - start)
        if number % 10 == 0:  # exact search by numpy, in turns, is what all are measured by
            start = time.perf_counter()
            np.argpartition(vectors @ query, -10)
            exact.append(time.perf_counter() - start)
    facts["recall"] = reached(vectors, queries, np.array(found), best)
    facts |= {"p50": float(np.median(times)), "exact_p50": float(np.median(exact))}
    print(json.dumps(facts))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) or None)
