"""The web server beside the command line's own client: 64 clients, with a rebuild beside them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import urllib3
from harness import Run, anonymous_bytes
from live_stack import LiveStack, draw_folder, draw_product
from sample_images import MINI
from web_stand import WebServer, start_web

ROOT = Path(__file__).parent.parent.parent
TITLE = "64 clients of the web server beside a rebuild"
QUICK = False
CLIENTS = 64


def measure(run: Run) -> None:
    stack = LiveStack(run.folder / "web", MINI)
    stack.folder.mkdir()
    try:
        stack.start_redis()
        draw_folder(stack.products, 60 if run.quick else 300)
        stack.workers("embed", "index", "query")
        stack.rebuild()
        web = start_web(stack, RATE_LIMIT="0")
        compare(run, stack, web)
    finally:
        stack.close()


def compare(run: Run, stack: LiveStack, web: WebServer) -> None:
    """Ask in turns, each round in the other order, beside rebuilds that never pause."""
    rounds, seconds = (2, 4.0) if run.quick else (4, 15.0)
    photo = run.folder / "photo.jpg"
    draw_product(photo, 9_999)
    ways = {"client": own_client, "web": crowd}
    times: dict[str, list[list[float]]] = {name: [] for name in ways}
    memory = []
    done = threading.Event()
    rebuilds = threading.Thread(target=rebuild, args=(stack, done))
    rebuilds.start()
    try:
        crowd(web, photo, 5.0)  # caches, pools and threads are there
        for number in range(rounds):
            for name in sorted(ways, reverse=bool(number % 2)):
                times[name].append(sorted(ways[name](web, photo, seconds)))
            memory.append(anonymous_bytes(web.process.pid))
    finally:
        done.set()
        rebuilds.join()
    p99 = {name: [quantile(each, 0.99) for each in times[name]] for name in ways}
    run.ratio(
        "p99 of the web server / p99 of the command line's own client",
        [web_s / client_s for web_s, client_s in zip(p99["web"], p99["client"], strict=True)],
        what=f"{CLIENTS} clients, queries of new images, beside rebuilds",
        target=1.5,
        better="lower",
    )
    run.ratio(
        "memory of the web server after the last round / after the first",
        [memory[-1] / memory[0]],
        what="anonymous memory",
        target=1.05,
        better="lower",
    )
    for name in ways:
        every = sorted(each for round_times in times[name] for each in round_times)
        run.fact(f"{name}: queries, none of which failed", len(every))
        run.fact(f"{name}: queries a second", round(len(every) / rounds / seconds, 1))
        run.fact(f"{name}: median, ms", round(1000 * quantile(every, 0.5), 1))
        run.fact(f"{name}: p99, ms", round(1000 * quantile(every, 0.99), 1))
    run.fact("memory of the web server, MiB", [round(each / 2**20, 1) for each in memory])


def crowd(web: WebServer, photo: Path, seconds: float) -> list[float]:
    """Ask over HTTP from threads of this process; return the seconds of each query.

    Raises:
        RuntimeError: an answer is no success.
    """
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


def own_client(web: WebServer, photo: Path, seconds: float) -> list[float]:
    """Ask with `cli.query_client` from as many threads of one process."""
    script = str(Path(__file__).parent / "web_client.py")
    command = [sys.executable, script, str(photo), str(CLIENTS), str(seconds)]
    done = subprocess.run(
        command, cwd=ROOT, env=web.stack.env(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    times: list[float] = json.loads(done.stdout.splitlines()[-1])
    return times


def rebuild(stack: LiveStack, done: threading.Event) -> None:
    while not done.is_set():
        stack.answer("enqueue-rebuild", str(stack.products), "--full", "--wait", "--timeout", "240")


def quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
