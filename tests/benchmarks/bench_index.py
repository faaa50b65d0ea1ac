"""The index beside exact search, autofaiss and hnswlib; a new version while queries run."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import synthetic_vectors
from competitors import TARGET
from harness import ROOT, Run

from pipeline.index import faiss_index
from pipeline.index.choose import IndexSpec
from pipeline.index.id_map import write_id_map
from pipeline.index.live_index import PublishedIndex
from pipeline.index.versions import VersionStore, order_by_hash

TITLE = "The index: recall, latency, building, and publishing under queries"
HERE = Path(__file__).parent
RIVALS = ROOT / "build" / "rivals" / "bin" / "python"
QUERIES = 300
BUDGETS = {"": 0.0, " on half the memory": 0.5, " on a tenth": 0.1}  # of the full vectors


def measure(run: Run) -> None:
    count, rival_count = (60_000, 8_000) if run.quick else (1_000_000, 100_000)
    run.fact("vectors", f"{count:,} x {synthetic_vectors.DIM}; {synthetic_vectors.HOW}")
    folder = make(run.folder / "own", count)
    for words, share in BUDGETS.items():
        if run.quick and share == 0.1:
            continue  # its codes alone train for half a minute
        own(run, folder, f"imgrec{words}", int(share * count * synthetic_vectors.DIM * 4))
    beside_flat(run, folder, 3 if run.quick else 5)
    publish(run, folder, 3 if run.quick else 5)
    shutil.rmtree(folder)
    rivals(run, make(run.folder / "rivals", rival_count), rival_count)


def make(folder: Path, count: int) -> Path:
    """Draw vectors and queries that are not among them, and find the true ten."""
    folder.mkdir()
    vectors = synthetic_vectors.clustered(count, 0, folder / "vectors.npy")
    queries = synthetic_vectors.clustered(QUERIES, 1)
    np.save(folder / "queries.npy", queries)
    np.save(folder / "best.npy", faiss_index.exact(vectors, queries, 10)[0])
    return folder


def ask(python: Path | str, name: str, folder: Path, budget: int = 0) -> dict[str, Any]:
    """Build and search in a process of its own."""
    done = subprocess.run(
        [str(python), str(HERE / "competitors.py"), name, str(folder), str(budget)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def told(found: dict[str, Any]) -> str:
    return (
        f"{found['kind']}: built in {found['seconds']:.1f} s ({found['cpu']:.1f} s of CPU), takes "
        f"{found['memory'] >> 20} MiB, peak {found['peak'] >> 20} MiB anonymous; recall@10 "
        f"{found['recall']:.3f}; p50 {1000 * found['p50']:.2f} ms, exact by numpy "
        f"{1000 * found['exact_p50']:.1f} ms"
    )


def own(run: Run, folder: Path, name: str, budget: int) -> None:
    found = ask(sys.executable, "imgrec", folder, budget)
    run.fact(name, told(found))
    run.ratio(
        f"recall@10 / exact, {name}",
        [found["recall"]],
        what=f"{found['kind']}, {QUERIES} queries that are not indexed",
        target=TARGET,
    )
    run.ratio(
        f"peak memory of building / index, {name}",
        [found["peak"] / found["memory"]],
        what=f"anonymous memory above the start / what {found['kind']} takes; vectors are mapped",
        better="lower",
        target=1.3,
    )


def beside_flat(run: Run, folder: Path, rounds: int) -> None:
    """Time single queries in turns: the inverted index mapped from disk, and FAISS's Flat."""
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    queries = np.load(folder / "queries.npy")
    built, kind = faiss_index.build(vectors, len(vectors) // 2)
    faiss_index.save(built, folder / "index.bin")
    (folder / "kind.json").write_text(json.dumps(kind.parameters()))
    del built
    inverted = faiss_index.load(folder / "index.bin", kind)
    flat, flat_kind = faiss_index.build(vectors, len(vectors))
    ratios, fast, slow = [], [], []
    for number in range(rounds):
        here: list[float] = []
        there: list[float] = []
        for query in queries[30 * number : 30 * number + 30]:
            for times, one, its in ((here, inverted, kind), (there, flat, flat_kind)):
                start = time.perf_counter()
                faiss_index.search(one, query[None, :], 10, kind=its, vectors=vectors)
                times.append(time.perf_counter() - start)
        ratios.append(statistics.median(here) / statistics.median(there))
        fast += here
        slow += there
    run.fact("p50 of one query, ms", round(1000 * statistics.median(fast), 2))
    run.fact("p50 of Flat, ms", round(1000 * statistics.median(slow), 2))
    run.ratio(
        "p50 of a query / Flat",
        ratios,
        what=f"{kind.factory}, nprobe {kind.nprobe}, one query at a time, in turns, one thread",
        better="lower",
        target=0.1,
    )


def publish(run: Run, folder: Path, rounds: int) -> None:
    """Swap the published version while a thread asks without a pause."""
    versions = VersionStore(run.folder / "faiss_index")
    for number in (1, 2):
        commit(versions, folder, number)
    first, second = versions.versions()
    versions.point_to(first)
    queries = np.load(folder / "queries.npy")
    published = PublishedIndex(versions)
    published.current()
    times: list[tuple[float, float, str]] = []
    ended = threading.Event()

    def live() -> None:
        number = 0
        while not ended.is_set():
            start = time.perf_counter()
            opened = published.current()
            hits = next(opened.search_deepening(queries[number % len(queries)], 5))
            names = [opened.version.paths[row] for row, _ in hits]
            opened.version.row_of_hash("f" * 64)
            assert len(names) == 5
            times.append((start, time.perf_counter() - start, opened.version.name))
            number += 1

    asker = threading.Thread(target=live)
    asker.start()
    quiet_s = 2.0 if run.quick else 6.0
    ratios, control, seconds, p99s, worst = [], [], [], [], []
    try:
        for number in range(rounds):
            target = (second, first)[number % 2]
            time.sleep(quiet_s)
            asked = time.perf_counter()
            versions.point_to(target)
            while times[-1][2] != target.name:
                time.sleep(0.01)
            swapped = time.perf_counter()
            time.sleep(1.0)  # the old one is let go, the new one is met for the first time
            rows = list(times)
            before = [took for at, took, _ in rows if asked - quiet_s <= at < asked]
            within = [took for at, took, _ in rows if at + took >= asked]
            p99 = float(np.quantile(before, 0.99))
            ratios.append(max(within) / p99)
            control.append(max(before[-len(within) :]) / p99)
            seconds.append(swapped - asked)
            p99s.append(p99)
            worst.append(max(within))
    finally:
        ended.set()
        asker.join()
    run.fact("from pointer to swap, s", [round(each, 2) for each in seconds])
    run.fact("p99 before, ms", [round(1000 * each, 2) for each in p99s])
    run.fact("slowest while it is published, ms", [round(1000 * each, 2) for each in worst])
    run.fact("slowest before / p99, as a measure of noise", [round(each, 2) for each in control])
    run.ratio(
        "slowest query while a version is published / p99 before",
        ratios,
        what="one thread asks without a pause: pointer moved, loaded beside, swapped, a second on",
        better="lower",
        target=3.0,
    )


def commit(versions: VersionStore, folder: Path, number: int) -> None:
    """Make a whole version of the vectors; the large files are shared by hard links."""
    workspace = versions.workspace()
    for name in ("vectors.npy", "index.bin"):
        (workspace / name).hardlink_to(folder / name)
    count = len(np.load(folder / "vectors.npy", mmap_mode="r"))
    write_id_map(workspace, [f"p/{row:07d}.jpg" for row in range(count)])
    hashes = np.array([f"{row * 2654435761 % 2**32:064x}" for row in range(count)], "S64")
    np.save(workspace / "sha256.npy", hashes)
    np.save(workspace / "by_hash.npy", order_by_hash(hashes))
    np.save(workspace / "files.npy", np.zeros((count, 2), np.int64))
    kind = IndexSpec.of(json.loads((folder / "kind.json").read_bytes()))
    manifest: dict[str, Any] = {
        "job_id": f"bench-{number}",
        "job_created_at": float(number),
        "created_at": float(number),
        "root": "/",
        "images": count,
        "dimension": synthetic_vectors.DIM,
        "index": kind.parameters(),
        "fingerprint": {"id": "bench", "summary": "bench"},
    }
    versions.commit(workspace, manifest)


def rivals(run: Run, folder: Path, count: int) -> None:
    """Build each once, one after the other, on one thread."""
    if not RIVALS.exists():
        run.fact(
            "rivals",
            "not installed; they need another numpy than imgrec, so in a folder of their own: "
            "python3 -m venv build/rivals && build/rivals/bin/pip install "
            "autofaiss hnswlib 'pyarrow<22'",
        )
        return
    mine = ask(sys.executable, "imgrec", folder)
    run.fact(f"imgrec, {count:,} vectors", told(mine))
    for name in ("hnswlib", "autofaiss"):
        found = ask(RIVALS, name, folder)
        run.fact(f"{name}, {count:,} vectors", told(found))
        for what, key, target in (
            ("time to build", "cpu", 1.0),
            ("peak memory", "peak", 1.0),
        ):
            run.ratio(
                f"{what}, imgrec / {name}",
                [mine[key] / max(1, found[key])],
                what=f"{mine['kind']} / {found['kind']}, {count:,} vectors, CPU or anonymous bytes",
                better="lower",
                target=target,
            )
        run.ratio(
            f"p50 of a query, imgrec / {name}",
            [(mine["p50"] / mine["exact_p50"]) / (found["p50"] / found["exact_p50"])],
            what=f"each against exact search in its own process; recall@10 {mine['recall']:.3f} / "
            f"{found['recall']:.3f}",
            better="lower",
        )
