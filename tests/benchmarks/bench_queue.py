"""What Celery, Redis, the ledger, shards and the merge cost, with an embedder that does nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from harness import ROOT, Run, anonymous_bytes
from live_stack import LiveStack, until
from PIL import Image

from pipeline.store.database import Database
from pipeline.store.jobs import Jobs

TITLE = "The queue's own cost: a rebuild without pictures"
HERE = Path(__file__).parent
BUDGET_MS = 0.5
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Cost:
    """One rebuild of `images`: seconds by the clock, CPU seconds and peak bytes by process."""

    images: int
    seconds: float
    planning: float
    cpu: dict[str, float]
    peak: dict[str, int]
    ledger_bytes: int
    spun: float  # seconds by the clock that BUDGET_MS an image of computing took just then


def measure(run: Run) -> None:
    sizes = (1_000, 4_000, 16_000) if run.quick else (10_000, 100_000, 1_000_000)
    costs = []
    for size in sizes:
        rounds = 3 if size == sizes[0] else 1
        found = [rebuild(run.folder / f"{size}-{number}", size) for number in range(rounds)]
        best = min(found, key=lambda cost: cost.seconds)
        costs.append(best)
        run.fact(
            f"{size:,} images",
            f"{best.seconds:.1f} s by the clock = {1000 * best.seconds / size:.3f} ms an image; "
            f"the budget of CPU took {best.spun:.1f} s then; "
            f"CPU {1000 * per_image(best):.3f} ms an image "
            f"({', '.join(f'{n} {1000 * c / size:.3f}' for n, c in best.cpu.items())}); "
            f"peak MiB above idle {', '.join(f'{n} {b >> 20}' for n, b in best.peak.items())}; "
            f"ledger {best.ledger_bytes >> 20} MiB",
        )
    last = costs[-1]
    run.ratio(
        "clock time of a rebuild / computing for 0.5 ms an image",
        [last.seconds / last.spun],
        what="plan to publication, one embed and one index worker, 512 numbers an image, "
        f"index built: {last.images:,} images; a single process that computes without a pause, "
        "before and after, shows what else the machine was doing",
        better="lower",
        target=1.0,
    )
    run.ratio(
        "CPU time an image, most images / fewer",
        [per_image(last) / per_image(costs[-2])],
        what=f"all processes, {last.images:,} / {costs[-2].images:,} images; from "
        "FLAT_MAX_VECTORS on the index is trained, which is most of the difference",
        better="lower",
        target=1.5,
    )
    run.ratio(
        "planning an image, most images / fewer",
        [last.planning / last.images / (costs[-2].planning / costs[-2].images)],
        what=f"CPU of writing the plan, {last.images:,} / {costs[-2].images:,} images",
        better="lower",
        target=1.25,
    )
    run.plot(
        "Cost of a rebuild without pictures",
        "images",
        "ms an image",
        {
            "by the clock": [(c.images, 1000 * c.seconds / c.images) for c in costs],
            "CPU, all processes": [(c.images, 1000 * per_image(c)) for c in costs],
            "CPU, planning": [(c.images, 1000 * c.planning / c.images) for c in costs],
        },
        log_x=True,
    )
    run.plot(
        "Peak anonymous memory above idle",
        "images",
        "MiB",
        {n: [(c.images, c.peak[n] / 2**20) for c in costs] for n in last.peak},
        log_x=True,
    )


def per_image(cost: Cost) -> float:
    return sum(cost.cpu.values()) / cost.images


def rebuild(folder: Path, count: int) -> Cost:
    folder.mkdir(parents=True)
    more = {"PYTHONPATH": f"{ROOT}:{HERE}", "LEASE_S": "15", "RECONCILE_S": "5"}
    stack = LiveStack(folder, ROOT / "models" / "imgrec-mini", environment=more)
    stack.products.mkdir()
    Image.new("RGB", (16, 16)).save(stack.products / "one.jpg")  # an empty folder is refused
    jobs = Jobs(Database(stack.environment["DATABASE_URL"]))
    try:
        stack.start_redis()
        pids = {"embed": worker(stack, "embed"), "index": worker(stack, "index")}
        assert stack.server is not None
        pids["redis"] = stack.server.pid
        spun = spin(count)
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        with Peaks(pids) as peaks:
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, str(HERE / "noop_worker.py"), str(count), str(stack.products)],
                cwd=ROOT,
                env=stack.env(),
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            plan = json.loads(done.stdout)
            until(lambda: not jobs.get(plan["job"]).open, "the rebuild ends", 1800)
            seconds = time.perf_counter() - start
        job = jobs.get(plan["job"])
        assert job.state == "published", f"{job.error}\n{stack.log('index')[-2000:]}"
        assert jobs.progress(job.id).embedded == count
        cpu = {name: cpu_seconds(pid) - before[name] for name, pid in pids.items()}
        sizes = [file.stat().st_size for file in stack.data.glob("app.db*")]
        return Cost(
            count,
            seconds,
            plan["cpu"],
            {"plan": plan["cpu"], **cpu},
            {"plan": plan["bytes"], **peaks.above},
            sum(sizes),
            (spun + spin(count)) / 2,
        )
    finally:
        stack.close()


def worker(stack: LiveStack, queue: str) -> int:
    """Start a worker whose embedder does nothing; return its process when it is ready."""
    log = stack.folder / f"{queue}-noop.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["celery", "worker", "-Q", queue, "-l", "INFO", "--include", "noop_worker"],
            cwd=ROOT,
            env=stack.env(),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    stack.processes.append(process)
    until(lambda: " ready." in log.read_text(errors="replace"), f"the worker of {queue} is ready")
    return process.pid


def spin(images: int) -> float:
    """Return how long one process computes for 1/10 of the budget now, times 10."""
    start, end = time.perf_counter(), time.process_time() + images * BUDGET_MS / 10_000
    while time.process_time() < end:
        sum(range(1000))
    return 10 * (time.perf_counter() - start)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Peaks:
    """Looks ten times a second how much anonymous memory processes have."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self._idle = {name: anonymous_bytes(pid) for name, pid in pids.items()}
        self.above = dict.fromkeys(pids, 0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Peaks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.1):
            for name, pid in self._pids.items():
                above = anonymous_bytes(pid) - self._idle[name]
                self.above[name] = max(self.above[name], above)
