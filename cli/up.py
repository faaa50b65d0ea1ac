"""Commands that start and stop everything on one machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import click
from filelock import FileLock, Timeout

import imgrec
from cli.output import echo_err
from cli.up_log import UpLog
from cli.wiring import Wiring, pass_wiring
from pipeline.access import require_data_dir
from pipeline.atomic_files import write_atomic
from pipeline.errors import ImgrecError, ServerUnavailable, WrongUse
from pipeline.settings import Settings

READY_S = 120.0  # the first import of torch and rembg on a cold disk takes most of it
DOWN_S = 90.0


@click.command()
@click.option(
    "--embed-workers",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Number of embed workers; the cores are divided among all workers.",
)
@click.option(
    "--detach", is_flag=True, help="Return when everything is ready; 'imgrec down' stops it."
)
@click.option("--web", is_flag=True, help="Serve the HTTP API and the page, too.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="With --web: address to listen on."
)
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(1, 65_535),
    help="With --web: port to listen on.",
)
@pass_wiring
def up(wiring: Wiring, embed_workers: int, detach: bool, web: bool, host: str, port: int) -> None:
    """Start Redis and the workers on this machine.

    If no Redis answers at REDIS_URL, one is started with its data below DATA_DIR. Workers that die
    or hang are restarted. Ctrl-C stops everything.
    """
    settings = wiring.settings
    require_data_dir(settings)
    if settings.artifacts_url:
        wiring.resources.require_fit_artifacts()
    run = settings.run_dir
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / "up.lock", timeout=0)
    try:
        with lock:
            if not detach:
                _supervise(settings, embed_workers, run, (host, port) if web else None)
                return
    except Timeout as error:
        raise WrongUse(
            f"'imgrec up' is already running for {settings.data_dir} (process {_pid(run)}): "
            "'imgrec down' stops it."
        ) from error
    options = ["--embed-workers", str(embed_workers)]
    _detach(run, [*options, *(["--web", "--host", host, "--port", str(port)] if web else [])])
    if web:
        echo_err(f"The page: http://{f'[{host}]' if ':' in host else host}:{port}")


@click.command()
@pass_wiring
def down(wiring: Wiring) -> None:
    """Stop what 'imgrec up --detach' started."""
    run = wiring.settings.run_dir
    if not _is_running(run):
        echo_err(f"'imgrec up' is not running for {wiring.settings.data_dir}.")
        return
    pid = _pid(run)
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + DOWN_S
    while _is_running(run):
        if time.monotonic() > deadline:
            raise ImgrecError(
                f"Process {pid} did not end within {DOWN_S:.0f} s; see {run / 'up.log'}."
            )
        time.sleep(0.1)
    echo_err("Stopped.")


def _supervise(
    settings: Settings, embed_workers: int, run: Path, web: tuple[str, int] | None
) -> None:
    from cli.supervisor import Stack

    log = UpLog(run / "up.log", settings.up_log_bytes)
    stack = Stack(settings, embed_workers, log.write, web)
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    _write(run, ready=False)
    ready = False
    try:
        stack.start()
        while not stopping:
            stack.tend()
            if not ready and stack.ready():
                ready = True
                _write(run, ready=True)
                log.write("Ready. Ctrl-C stops everything.")
            time.sleep(0.2)
        log.write("Stopping ...")
    finally:
        stack.stop()
        (run / "up.json").unlink(missing_ok=True)


def _detach(run: Path, options: list[str]) -> None:
    log = run / "up.log"
    (run / "up.json").unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    with log.open("ab") as stream:  # to append: its content is moved away when it is large
        process = subprocess.Popen(
            [sys.executable, "-P", imgrec.__file__, "up", *options],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + READY_S
    while not _read(run).get("ready"):
        if process.poll() is not None:
            lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
            message = f"Start failed: {lines[-1].removeprefix('Error: ')}"
            kinds = {each.exit_code: each for each in (WrongUse, ServerUnavailable)}
            raise kinds.get(process.returncode, ImgrecError)(message)
        if time.monotonic() > deadline:
            process.terminate()
            process.wait()
            raise ImgrecError(
                f"Not ready after {READY_S:.0f} s, so everything was stopped; see {log}."
            )
        time.sleep(0.1)
    echo_err(
        f"Running in the background (process {process.pid}), log: {log}. Stop with 'imgrec down'."
    )


def _write(run: Path, ready: bool) -> None:
    write_atomic(run / "up.json", json.dumps({"pid": os.getpid(), "ready": ready}).encode())


def _read(run: Path) -> dict[str, int]:
    try:
        facts: dict[str, int] = json.loads((run / "up.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return facts


def _pid(run: Path) -> int:
    pid = _read(run).get("pid")
    if pid is None:
        raise ImgrecError("'imgrec up' is just starting or stopping: try again in a moment.")
    return pid


def _is_running(run: Path) -> bool:
    """Tell whether a supervisor holds the lock; a pid file alone could name a stranger."""
    if not (run / "up.lock").exists():
        return False
    try:
        with FileLock(run / "up.lock", timeout=0):
            return False
    except Timeout:
        return True
