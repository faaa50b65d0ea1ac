"""Run Redis and the workers of one machine as children, and start again what dies."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import imgrec
from cli import die_with_parent, redis_server
from cli.web import SERVING
from pipeline.cgroup import cores
from pipeline.errors import ImgrecError, WrongUse
from pipeline.listener import listen
from pipeline.settings import Settings
from pipeline.store.database import Database
from pipeline.store.heartbeat import READY, read_reason
from pipeline.store.identity import PARTS
from pipeline.store.jobs import Jobs
from pipeline.store.redis_client import answers
from workers.routes import FETCH, QUEUES

WEB = "web"
STOP_S = 30.0  # a worker gives its shard back after the current image; then it is killed
SETTLED_S = 60.0  # a child that lived so long starts again without a pause
MAX_PAUSE_S = 30.0
START_S = 180.0  # to the first heartbeat: the imports, on a cold disk
LOOK_S = 1.0  # between two looks at whether a job needs a fetch worker
HUNG_S = 60.0  # six missed heartbeats

Say = Callable[[str], None]


@dataclass
class Child:
    """One process of the stack."""

    name: str
    command: list[str]
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    # Times are by the monotonic clock: nobody sets it, and it stops while the machine sleeps.
    started: float = 0.0
    pause_s: float = 0.0
    next_start: float = 0.0
    heartbeat: Path | None = None
    heartbeat_ns: int = 0  # the file's mtime, when it last changed
    last_heartbeat: float = 0.0
    awake: bool = False  # there was a heartbeat since its start
    kill_at: float | None = None
    relay: threading.Thread | None = None
    last_line: str = ""
    served: bool = False  # the web server: it has accepted connections

    def look(self) -> float:
        """Look for a new heartbeat; return the seconds since the last, or since the start."""
        now, mtime_ns = time.monotonic(), _mtime_ns(self.heartbeat)
        if mtime_ns != self.heartbeat_ns:
            self.heartbeat_ns, self.last_heartbeat, self.awake = mtime_ns, now, True
        return now - self.last_heartbeat


@dataclass
class Stack:
    """Redis, if none answers, and one worker a queue; more for embed.

    The fetch worker starts when the first job needs it.
    """

    settings: Settings
    embed_workers: int
    say: Say
    web: tuple[str, int] | None = None  # the address of `imgrec web`
    children: list[Child] = field(default_factory=list)
    _look_at: float = 0.0
    _jobs: Jobs | None = None

    def start(self) -> None:
        """Start everything; Redis first.

        Raises:
            WrongUse: another server listens where the web server shall.
            ServerUnavailable: a foreign Redis does not answer. SetupError: no server binary here.
            SettingsDiffer: workers with another database or folder listen there already.
        """
        if self.web is not None:
            listen(*self.web).close()
        if not answers(self.settings.redis_url):
            server = Child("redis", redis_server.command(self.settings), {})
            self._spawn(server)
            self.children.append(server)
            redis_server.wait_for(self.settings.redis_url, server.process)
        else:
            self._require_broker()
        self.children += self._worker_children()
        if self.web is not None:
            host, port = self.web
            command = [sys.executable, "-P", imgrec.__file__, "web", "--host", host]
            command += ["--port", str(port)]
            self.children.append(Child(WEB, command, {"METRICS_PORT": "0"}))
        for child in self.children:
            if child.process is None:
                self._spawn(child)

    def _require_broker(self) -> None:
        """Refuse a Redis that cannot serve, or serves workers of another database or folder."""
        from workers.dispatch import CeleryDispatcher
        from workers.resources import Resources

        dispatcher = CeleryDispatcher(self.settings.redis_url)
        dispatcher.require_broker()
        Resources(self.settings, dispatcher).require_agreement(QUEUES, *PARTS)

    def ready(self) -> bool:
        """Tell whether every worker takes messages since its start, and the web server serves."""
        for child in self.children:
            child.look()
        workers = [child for child in self.children if child.heartbeat is not None]
        return all(child.awake and _said(child.heartbeat) == READY for child in workers) and all(
            child.served for child in self.children if child.name == WEB
        )

    def tend(self) -> None:
        """Start again what has died, after a pause that doubles while it keeps dying.

        What hangs, or is unhealthy, is asked to end, then killed.

        Raises:
            WrongUse, ImgrecError: the web server cannot serve at all, e.g. at this address.
        """
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            self._start_fetching()
        for child in self.children:
            if child.process is None:
                if now >= child.next_start:
                    self._try_to_spawn(child)
                continue
            code = child.process.poll()
            if code is None:
                self._look_after(child)
                continue
            child.process = None
            if child.name == WEB and not child.served:
                _require_restart_to_help(child, code)
            lived = now - child.started
            child.pause_s = 0.0 if lived > SETTLED_S else min(MAX_PAUSE_S, 2 * child.pause_s or 1.0)
            child.next_start = now + child.pause_s
            self.say(
                f"{child.name} ended ({_how(code)}) after {lived:.0f} s; "
                f"restarting it in {child.pause_s:.0f} s."
            )

    def _start_fetching(self) -> None:
        """Start a fetch worker once a job fetches the images of a feed."""
        if any(child.name == FETCH for child in self.children):
            return
        self._jobs = self._jobs or Jobs(Database(self.settings.database_url))
        try:
            if not self._jobs.any_fetching():
                return
        except ImgrecError:
            return  # whoever needs the database says so
        n_workers = sum(child.heartbeat is not None for child in self.children)
        child = self._worker_child(FETCH, FETCH, 1, n_workers, n_workers + 1)
        self._try_to_spawn(child)
        self.children.append(child)

    def _look_after(self, child: Child) -> None:
        if child.process is None or child.heartbeat is None:  # Redis has none
            return
        if child.kill_at is not None:
            if time.monotonic() >= child.kill_at:
                child.process.kill()
            return
        silent_s = child.look()
        if silent_s > (HUNG_S if child.awake else START_S):
            why = read_reason(child.heartbeat) or f"no heartbeat for {silent_s:.0f} s"
            self.say(f"{child.name} is unhealthy ({why}); stopping it.")
            child.process.terminate()
            child.kill_at = time.monotonic() + STOP_S

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
                    self.say(
                        f"Process {process.pid} did not end within {STOP_S:.0f} s; killing it."
                    )
                    process.kill()
                    process.wait()

    def _try_to_spawn(self, child: Child) -> None:
        """Start a child; try again later where this machine has no memory or process left."""
        try:
            self._spawn(child)
        except (OSError, RuntimeError) as error:  # RuntimeError: no new thread
            if child.process is not None:
                child.process.kill()
                child.process.wait()
                child.process = None
            child.pause_s = min(MAX_PAUSE_S, 2 * child.pause_s or 1.0)
            child.next_start = time.monotonic() + child.pause_s
            self.say(
                f"{child.name} could not be started ({error}); trying again in "
                f"{child.pause_s:.0f} s."
            )

    def _spawn(self, child: Child) -> None:
        child.started = child.last_heartbeat = time.monotonic()
        child.heartbeat_ns = _mtime_ns(child.heartbeat)
        child.awake, child.kill_at = False, None
        child.process = subprocess.Popen(
            _tied_to_this_process(child.command),
            env={**os.environ, **child.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this supervisor only, which ends them in order
        )
        child.relay = threading.Thread(
            target=self._relay, args=(child, child.process), name=child.name, daemon=True
        )
        child.relay.start()

    def _relay(self, child: Child, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None  # it was opened as a pipe
        for line in process.stdout:
            child.last_line = line.decode(errors="replace").rstrip()
            child.served = child.served or child.last_line.startswith(SERVING)
            self.say(f"{child.name:8} | {child.last_line}")

    def _worker_children(self) -> list[Child]:
        shares = share_threads(cores(), self.embed_workers)
        names = [("index", "index"), ("query", "query")]
        numbers = range(1, self.embed_workers + 1)
        names += [("embed" if number == 1 else f"embed{number}", "embed") for number in numbers]
        children: list[Child] = []
        for name, queue in names:
            # A share that the user has set holds for all.
            threads = self.settings.cpu_threads or shares[queue]
            children.append(self._worker_child(name, queue, threads, len(children), len(names)))
        return children

    def _worker_child(
        self, name: str, queue: str, threads: int, place: int, memory_shares: int
    ) -> Child:
        node = f"{name}@{socket.gethostname()}"
        command = [sys.executable, "-P", imgrec.__file__, "celery", "--quiet", "worker"]
        command += ["-Q", queue, "-n", node]
        command += ["--without-gossip", "--without-mingle", "-l", "INFO"]
        environment = {
            "CPU_THREADS": str(threads),
            "OMP_NUM_THREADS": str(threads),
            "MEMORY_SHARES": str(memory_shares),
        }
        if self.settings.metrics_port:  # one for each worker, counted up
            environment["METRICS_PORT"] = str(self.settings.metrics_port + place)
        heartbeat = self.settings.run_dir / f"{node}.alive"
        heartbeat.unlink(missing_ok=True)
        return Child(name, command, environment, heartbeat=heartbeat)


def share_threads(total: int, embed_workers: int) -> dict[str, int]:
    """Divide the cores among the workers of one machine, so that they do not slow each other.

    Each worker needs one thread, so fewer cores than workers are shared by waiting: the index
    worker computes only when no shard is left.
    """
    index = 1
    query = max(1, min(total // 4, total - index - embed_workers))
    embed = max(1, (total - index - query) // embed_workers)
    return {"index": index, "query": query, "embed": embed}


def _require_restart_to_help(child: Child, code: int) -> None:
    """Refuse to start a web server again that has said why it cannot serve.

    Raises:
        WrongUse, ImgrecError: with its sentence.
    """
    if code not in (WrongUse.exit_code, ImgrecError.exit_code):
        return  # a server that it needs does not answer, or it was killed
    if child.relay is not None:
        child.relay.join(5.0)  # it reads what was said last
    message = child.last_line.removeprefix("Error: ")
    raise WrongUse(message) if code == WrongUse.exit_code else ImgrecError(message)


def _mtime_ns(file: Path | None) -> int:
    try:
        return file.stat().st_mtime_ns if file else 0
    except OSError:
        return 0


def _said(heartbeat: Path | None) -> str:
    try:
        return heartbeat.read_text() if heartbeat else ""
    except OSError:
        return ""


def _how(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _tied_to_this_process(command: list[str]) -> list[str]:
    """Return a command that becomes this one and ends with the supervisor (Linux only)."""
    if sys.platform != "linux":
        return command
    return [sys.executable, "-IS", die_with_parent.__file__, str(os.getpid()), *command]
