"""The web server beside the command line's own client: 64 clients, with a rebuild beside them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import urllib3
from harness import Run
from live_stack import LiveStack, draw_folder, draw_product
from sample_images import MINI
from web_stand import start_web

ROOT = Path(__file__).parent.parent.parent
TITLE = "64 clients of the web server beside a rebuild"
QUICK = False
CLIENTS = 64


def measure(run: Run) -> None:
    stand = LiveStack(run.folder / "web", MINI)
    stand.folder.mkdir()
    try:
        stand.start_redis()
        draw_folder(stand.products, 60 if run.quick else 300)
        stand.workers("embed", "index", "query")
        stand.rebuild()
        web = start_web(stand, RATE_LIMIT="0")
        compare(run, stand, web)
    finally:
        stand.close()


def compare(run: Run, stand: LiveStack, web: Any) -> None:
    seconds = 5.0 if run.quick else 60.0
    photo = run.folder / "photo.jpg"
    draw_product(photo, 9_999)
    process = psutil.Process(web.process.pid)
    crowd(web, photo, 3.0)
    before = process.memory_info().rss
    rows: dict[str, list[float]] = {}
    for name, ask in (("client", own_client), ("web", crowd)):
        done = threading.Event()
        rebuilds = threading.Thread(target=rebuild, args=(stand, done))
        rebuilds.start()
        try:
            rows[name] = sorted(ask(web, photo, seconds))
        finally:
            done.set()
            rebuilds.join()
    after = process.memory_info().rss
    run.ratio(
        "p99 of the web server / p99 of the command line's own client",
        [quantile(rows["web"], 0.99) / quantile(rows["client"], 0.99)],
        what=f"{CLIENTS} clients, queries of new images, beside a rebuild",
        target=1.5,
        better="lower",
    )
    for name, times in rows.items():
        run.fact(f"{name}: queries a second", round(len(times) / seconds, 1))
        run.fact(f"{name}: median, ms", round(1000 * quantile(times, 0.5), 1))
        run.fact(f"{name}: p99, ms", round(1000 * quantile(times, 0.99), 1))
    run.fact("memory of the web server before, MiB", round(before / 2**20))
    run.fact("memory of the web server after, MiB", round(after / 2**20))


def crowd(web: Any, photo: Path, seconds: float) -> list[float]:
    """Ask over HTTP from threads of this process; return the seconds of each query."""
    data, end = photo.read_bytes(), time.monotonic() + seconds
    pool = urllib3.PoolManager(maxsize=CLIENTS, block=True, retries=False)

    def ask(number: int) -> list[float]:
        times = []
        while time.monotonic() < end:
            tail = f"{number}-{time.time_ns()}".encode()
            fields = {"image": ("a.jpg", data + tail), "limit": "5"}
            start = time.perf_counter()
            response = pool.request("POST", f"{web.url}/v1/search", fields=fields)
            times.append(time.perf_counter() - start)
            if response.status != 200:
                raise RuntimeError(f"{response.status}: {response.data[:500]!r}")
        return times

    with ThreadPoolExecutor(CLIENTS) as threads:
        return [each for times in threads.map(ask, range(CLIENTS)) for each in times]


def own_client(web: Any, photo: Path, seconds: float) -> list[float]:
    """Ask with `cli.query_client` from as many threads of one process."""
    script = str(Path(__file__).parent / "web_client.py")
    command = [sys.executable, script, str(photo), str(CLIENTS), str(seconds)]
    done = subprocess.run(
        command, cwd=ROOT, env=web.stand.env(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    times: list[float] = json.loads(done.stdout.splitlines()[-1])
    return times


def rebuild(stand: LiveStack, done: threading.Event) -> None:
    while not done.is_set():
        stand.answer("enqueue-rebuild", str(stand.products), "--full", "--wait", "--timeout", "240")


def quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
