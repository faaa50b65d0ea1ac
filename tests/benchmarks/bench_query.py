"""The query path: its round trip beside a bare embed-and-search, many clients, publications."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import noop_task
import numpy as np
import psutil
from base_clip import base_clip
from harness import ROOT, Run
from live_stack import LiveStack, until
from published import publish_random, settings_of

from pipeline.index.live_changes import AddedImage, RemovedImage
from pipeline.index.versions import VersionStore
from pipeline.store.database import Database
from pipeline.store.live_changes import LiveChanges

TITLE = "Query: the round trip, 32 clients, the cache, the shell"
ROWS, DIM = 20_000, 512
CLIENTS = 32
CHANGE_S = 0.25  # between two changes of the index
AFTER_S = 2.0  # the new version is loaded beside, the old one let go


def measure(run: Run) -> None:
    stack = LiveStack(run.folder, base_clip())
    publish_random(settings_of(stack), ROWS, DIM, stack.products)
    stack.start_redis()
    try:
        worker = psutil.Process(stack.worker("query").pid)
        empty_worker(stack)
        until(lambda: "The model is loaded" in stack.log("query"), "the query worker is warm")
        one_client(run, stack, worker)
        many_clients(run, stack, worker)
        publishing(run, stack)
        changing(run, stack)
        shell(run, stack)
    finally:
        stack.close()


def one_client(run: Run, stack: LiveStack, worker: psutil.Process) -> None:
    used = cpu_s(worker)
    count = 20 if run.quick else 150
    found = client(run, stack, "latency", count=count)
    used = (cpu_s(worker) - used) / (2 * count)
    bare, asked, again, _, empty = (sorted(column) for column in zip(*found["rows"], strict=True))
    over = sorted(1000 * (row[1] - row[0]) for row in found["rows"])
    what = f"one client, ViT-B/32 on one thread, {ROWS:,} vectors, photos no cache knows"
    run.ratio(
        "round trip minus bare embed-and-search, ms",
        over,
        what=f"by picture, in turns; {what}",
        target=6.0,
        better="lower",
    )
    run.ratio(
        "the same, 99th percentile, ms",
        [quantile(over, 0.99)],
        what=f"of the differences above; {what}",
        target=25.0,
        better="lower",
    )
    run.ratio(
        "a repeated query, ms",
        [1000 * seconds for seconds in again],
        what="from the cache, round trip of one client",
        target=5.0,
        better="lower",
    )
    run.ratio(
        "a repeated query / Celery's client and a task that does nothing",
        [row[2] / row[4] for row in found["rows"]],
        what="the same bytes to a plain Celery worker of threads on the same Redis",
        better="lower",
    )
    run.fact("an empty Celery task, ms (median)", round(1000 * statistics.median(empty), 1))
    run.fact("bare embed-and-search, ms (median)", round(1000 * statistics.median(bare), 1))
    run.fact("round trip, ms (median)", round(1000 * statistics.median(asked), 1))
    jitter = [1000 * abs(row[3] - row[0]) for row in found["rows"]]
    run.fact("bare beside bare, ms (99th percentile: noise)", round(quantile(jitter, 0.99), 1))
    run.fact("CPU of the client a query, ms", round(1000 * found["client_cpu_s"], 2))
    run.fact("CPU of the worker a query, half of them cached, ms", round(1000 * used, 2))
    shares = [(at / 100, quantile(over, at / 100)) for at in range(1, 100)]
    run.plot(
        "Round trip minus bare embed-and-search",
        "share of the queries",
        "ms",
        {"one client": shares},
    )


def empty_worker(stack: LiveStack) -> None:
    """Start the worker whose task does nothing."""
    command = ["celery", "-A", "noop_task", "worker", "-Q", noop_task.QUEUE, "-P", "threads"]
    command += ["-c", "4", "-l", "INFO", "--without-gossip", "--without-mingle"]
    log = stack.folder / "empty.log"
    with log.open("wb") as out:
        stack.processes.append(
            subprocess.Popen(
                command,
                cwd=Path(__file__).parent,
                env=stack.env(),
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        )
    until(lambda: "ready" in log.read_text(), "the empty task is served")


def many_clients(run: Run, stack: LiveStack, worker: psutil.Process) -> None:
    used = cpu_s(worker)
    queries, rounds = (48, 1) if run.quick else (320, 5)
    found = client(run, stack, "throughput", clients=CLIENTS, queries=queries, rounds=rounds)
    used = (cpu_s(worker) - used) / (queries * rounds + 2 * CLIENTS)
    rows = found["rows"]
    run.ratio(
        "throughput of 32 clients / batched forward pass",
        [asked / forward for forward, asked, _ in rows],
        what="pictures a second, ViT-B/32, batches of 32 on one thread in both",
        target=0.85,
    )
    run.fact("batched forward pass, pictures/s", round(statistics.median(r[0] for r in rows), 1))
    run.fact("32 clients, pictures/s", round(statistics.median(r[1] for r in rows), 1))
    run.fact("CPU of the clients a query, ms", round(1000 * rows[0][2], 2))
    run.fact("CPU of the worker a query of 32 clients, ms", round(1000 * used, 2))


def publishing(run: Run, stack: LiveStack) -> None:
    """Swap the published version again and again while one client asks."""
    versions = VersionStore(settings_of(stack).index_dir)
    publish_random(settings_of(stack), ROWS, DIM, stack.products)
    pause_s, times = (3.0, 3) if run.quick else (15.0, 6)
    ready, swaps = run.folder / "asking", list[float]()
    options = {"seconds": pause_s * (times + 1), "ready": str(ready)}
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(client, run, stack, "steady", **options)
        until(lambda: ready.exists() or asking.done(), "the client asks")
        for number in range(times):
            time.sleep(pause_s)
            swaps.append(time.time())
            versions.point_to(versions.versions()[number % 2])
        rows = asking.result()["rows"]
    if {version for _, _, version in rows} != {each.name for each in versions.versions()}:
        raise RuntimeError("the worker has not met both versions")

    def met(at: float, took: float) -> bool:
        return any(at + took >= swap and at < swap + AFTER_S for swap in swaps)

    within = [took for at, took, _ in rows if met(at, took)]
    calm = [took for at, took, _ in rows if not met(at, took)]
    p99 = quantile(calm, 0.99)
    run.ratio(
        "slowest query while a version is published / p99 of the others",
        [max(within) / p99],
        what=f"round trips of one client, new pictures; {AFTER_S:g} s from each of {times} swaps",
        target=3.0,
        better="lower",
    )
    run.fact("queries while a version is published", len(within))
    run.fact("slowest of them, ms", round(1000 * max(within), 1))
    run.fact("p99 of the others, ms", round(1000 * p99, 1))


def changing(run: Run, stack: LiveStack) -> None:
    """Add and remove images without a pause while one client asks."""
    settings, rng = settings_of(stack), np.random.default_rng(0)
    version = VersionStore(settings.index_dir).current()
    changes = LiveChanges(Database(settings.database_url))
    ready, seconds, n_changes = run.folder / "asking too", 10.0 if run.quick else 30.0, 0
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(client, run, stack, "steady", seconds=seconds, ready=str(ready))
        until(lambda: ready.exists() or asking.done(), "the client asks")
        while not asking.done():
            path = version.paths[10 * n_changes]
            if n_changes % 2:
                changes.remove([RemovedImage(path, path, 0, 0)], version)
            else:
                vector = rng.normal(size=DIM).astype(np.float32)
                vector /= np.linalg.norm(vector)
                place = (f"new/{n_changes}.jpg", "new", 1, 1, "0" * 64, version.fingerprint)
                changes.add(AddedImage(*place, vector), version)
            n_changes += 1
            time.sleep(CHANGE_S)
        times = [took for _, took, _ in asking.result()["rows"]]
    run.ratio(
        "slowest query while images are added and removed / p99 of the same time",
        [max(times) / quantile(times, 0.99)],
        what=f"{len(times)} round trips of one client, new pictures; {n_changes} changes",
        target=3.0,
        better="lower",
    )
    run.fact("slowest of them, ms, with changes", round(1000 * max(times), 1))


def shell(run: Run, stack: LiveStack) -> None:
    """`imgrec query FILE --wait --json` from a shell, minus the same round trip."""
    rows = []
    for number in range(3 if run.quick else 20):
        file = tailed(run, number)
        start, used = time.perf_counter(), children_cpu_s()
        answer = stack.query(file)
        taken, used = time.perf_counter() - start, children_cpu_s() - used
        assert answer["matches"]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        rows.append((taken, used, time.perf_counter() - start))
    asked = client(run, stack, "latency", count=5)["rows"]
    trip = statistics.median(row[1] for row in asked)
    run.ratio(
        "`imgrec query` from the shell minus the round trip, s",
        [taken - trip for taken, _, _ in rows],
        what="start of Python, imports, the picture's check; the round trip as measured above",
        target=0.6,
        better="lower",
    )
    run.fact("CPU of one `imgrec query`, s", round(statistics.median(r[1] for r in rows), 3))
    run.fact("`python -c pass`, s", round(statistics.median(r[2] for r in rows), 3))


def tailed(run: Run, number: int) -> Path:
    """Return a picture that no cache knows."""
    file = run.folder / f"shell-{number}.jpg"
    photo = run.photos(20)[number % 20]
    file.write_bytes(photo.read_bytes() + file.name.encode())
    return file


def client(run: Run, stack: LiveStack, mode: str, **options: Any) -> Any:
    options |= {"photos": [str(photo) for photo in run.photos(40)]}
    options |= {"folder": str(run.folder / "asked")}
    script = str(Path(__file__).parent / "query_client.py")
    done = subprocess.run(
        [sys.executable, script, mode, json.dumps(options)],
        cwd=ROOT,
        env=stack.env(),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{done.stderr}\n{stack.log('query')[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def children_cpu_s() -> float:
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def quantile(ordered: list[float], share: float) -> float:
    ordered = sorted(ordered)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
