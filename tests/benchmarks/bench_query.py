"""The query path: its round trip beside a bare embed-and-search, many clients, the shell."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from base_clip import base_clip
from harness import ROOT, Run
from published import publish_random, settings_of
from stand import Stand, until

TITLE = "Query: the round trip, 32 clients, the cache, the shell"
ROWS, DIM = 20_000, 512
CLIENTS = 32


def measure(run: Run) -> None:
    stand = Stand(run.folder, base_clip())
    publish_random(settings_of(stand), ROWS, DIM, stand.products)
    stand.start_redis()
    try:
        worker = psutil.Process(stand.worker("query").pid)
        until(lambda: "The model is loaded" in stand.log("query"), "the query worker is warm")
        one_client(run, stand, worker)
        many_clients(run, stand, worker)
        shell(run, stand)
    finally:
        stand.close()


def one_client(run: Run, stand: Stand, worker: psutil.Process) -> None:
    used = cpu_s(worker)
    count = 20 if run.quick else 300
    found = client(run, stand, "latency", count=count)
    used = (cpu_s(worker) - used) / (2 * count)
    bare, asked, again, _ = (sorted(column) for column in zip(*found["rows"], strict=True))
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


def many_clients(run: Run, stand: Stand, worker: psutil.Process) -> None:
    used = cpu_s(worker)
    queries, rounds = (48, 1) if run.quick else (320, 5)
    found = client(run, stand, "throughput", clients=CLIENTS, queries=queries, rounds=rounds)
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


def shell(run: Run, stand: Stand) -> None:
    """`imgrec query FILE --wait --json` from a shell, minus the same round trip."""
    rows = []
    for number in range(3 if run.quick else 20):
        file = tailed(run, number)
        start, used = time.perf_counter(), children_cpu_s()
        answer = stand.query(file)
        taken, used = time.perf_counter() - start, children_cpu_s() - used
        assert answer["matches"]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        rows.append((taken, used, time.perf_counter() - start))
    asked = client(run, stand, "latency", count=5)["rows"]
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


def client(run: Run, stand: Stand, mode: str, **options: Any) -> Any:
    options |= {"photos": [str(photo) for photo in run.photos(40)]}
    options |= {"folder": str(run.folder / "asked")}
    script = str(Path(__file__).parent / "query_client.py")
    done = subprocess.run(
        [sys.executable, script, mode, json.dumps(options)],
        cwd=ROOT,
        env=stand.env(),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{done.stderr}\n{stand.log('query')[-3000:]}")
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
