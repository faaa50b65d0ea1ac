"""Child processes with their libraries imported beforehand: torch alone takes seconds each time.

A fork server imports third-party packages once for each test process, and no thread runs in it.
Nothing of imgrec is imported before the fork: settings, failpoints and state are the child's own,
as is its session. What a real start by its command line adds is tested by test_up.py,
test_usage.py and test_local.py.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path

LIBRARIES = (
    *("torch", "faiss", "scipy.ndimage", "safetensors.torch", "huggingface_hub.errors"),
    *("transformers.models.auto", "transformers.models.clip.modeling_clip"),
    *("transformers.models.clip.image_processing_pil_clip", "PIL.JpegImagePlugin"),
    *("transformers.models.clip.tokenization_clip", "PIL.PngImagePlugin", "PIL.GifImagePlugin"),
    *("PIL.BmpImagePlugin", "PIL.PpmImagePlugin", "PIL.TiffImagePlugin", "PIL.WebPImagePlugin"),
    *("PIL.ImageDraw", "PIL.ImageFilter", "PIL.ImageFont", "PIL.ImageOps"),
    *("celery.bin.celery", "celery.bin.worker", "celery.apps.worker", "celery.app.log"),
    *("celery.worker.consumer", "celery.worker.components", "celery.worker.strategy"),
    *("celery.worker.autoscale", "celery.concurrency.thread", "celery.events.receiver"),
    *("celery.loaders.default", "celery.backends.redis", "celery.app.control"),
    *("celery.app.events", "celery.app.amqp", "kombu.transport.redis", "kombu.matcher"),
    *("kombu.mixins", "kombu.pidbox", "prompt_toolkit", "click_repl", "psycopg", "sqlite3"),
    *("pydantic_settings", "pydantic.networks", "filelock", "rich.table", "rich.progress"),
    *("rich.console", "tomllib", "encodings.idna", "redis", "msgpack", "http.client"),
    *("urllib3", "cachetools", "pi_heif", "fastapi.openapi.docs", "uvicorn.main", "jinja2"),
    *("uvicorn.protocols.http.h11_impl", "prometheus_client", "python_multipart.multipart"),
)

# The benchmarks set it to False: they measure what starts as its users start it.
PRELOAD = True

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(list(LIBRARIES))
# Two threads that read the exit code of a child at the same time would make it 255.
_lock = threading.Lock()


class Process:
    """A child with the methods of `subprocess.Popen`, the leader of a session of its own."""

    def __init__(
        self,
        args: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdout: Path,
        stderr: Path,
        stdin: Path = Path(os.devnull),
        bare: bool = False,
    ) -> None:
        """Start `celery ...` or `imgrec ...`; what it writes is appended to the two files.

        Args:
            bare: bound by the rights of files, as root is not.
        """
        self.args = list(args)
        self._process = _context.Process(
            target=_main,
            args=(self.args, str(cwd), dict(env), str(stdin), str(stdout), str(stderr), bare),
            daemon=True,
        )
        with _lock:  # starting a process polls the others
            self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        with _lock:
            return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def wait(self, timeout: float | None = None) -> int:
        if self.poll() is None:
            wait([self._process.sentinel], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    args: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    log: Path,
    preload: bool = True,
    bare: bool = False,
) -> Process | subprocess.Popen[bytes]:
    """Start a command that runs until it is ended; what it writes is appended to `log`."""
    if preload and PRELOAD:
        return Process(args, cwd=cwd, env=env, stdout=log, stderr=log, bare=bare)
    with log.open("ab") as output:
        return subprocess.Popen(
            args, cwd=cwd, env=env, stdout=output, stderr=output, start_new_session=True
        )


def run(
    args: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    typed: str = "",
    timeout_s: float,
    bare: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as `subprocess.run` does with `capture_output`."""
    if not PRELOAD:
        return subprocess.run(
            args, cwd=cwd, env=env, input=typed, capture_output=True, text=True, timeout=timeout_s
        )
    with tempfile.TemporaryDirectory(prefix="imgrec-") as folder:
        stdin, stdout, stderr = (Path(folder, name) for name in ("in", "out", "err"))
        stdin.write_text(typed)
        process = Process(
            args, cwd=cwd, env=env, stdout=stdout, stderr=stderr, stdin=stdin, bare=bare
        )
        try:
            code = process.wait(timeout_s)
        finally:
            process.kill()
        return subprocess.CompletedProcess(list(args), code, stdout.read_text(), stderr.read_text())


def _main(
    args: list[str],
    cwd: str,
    env: dict[str, str],
    stdin: str,
    stdout: str,
    stderr: str,
    bare: bool = False,
) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    write = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, file, flags in ((0, stdin, os.O_RDONLY), (1, stdout, write), (2, stderr, write)):
        descriptor = os.open(file, flags)
        os.dup2(descriptor, number)
        os.close(descriptor)
    if bare:
        _drop_capabilities()
    sys.stdin = os.fdopen(0)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    # What Python would do at its start with this environment.
    sys.path[:0] = [folder for folder in env.get("PYTHONPATH", "").split(os.pathsep) if folder]
    if "IMGREC_FAILPOINT" in env:
        runpy.run_module("sitecustomize", run_name="sitecustomize")
    sys.argv = args
    if args[0] == "celery":
        from celery.__main__ import main
    else:
        from cli.main import main
    main()


def _drop_capabilities() -> None:
    """Give up what root may and other users may not, for this process and its children.

    The numbers are of capabilities(7): PR_CAPBSET_DROP, and the version of capset's structures.
    """
    libc = ctypes.CDLL(None)
    for capability in range(64):  # those that the kernel does not know are refused
        libc.prctl(24, capability, 0, 0, 0)
    version, thread = 0x20080522, 0
    libc.capset((ctypes.c_uint32 * 2)(version, thread), (ctypes.c_uint32 * 6)())
