"""Child processes with their libraries imported beforehand: torch alone takes seconds each time.

All processes of pytest-xdist share one fork server, see `fork_server.py`. What a real start by its
command line adds is tested by test_up.py, test_usage.py and test_local.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path

# The benchmarks set it to False: they measure what starts as its users start it.
PRELOAD = True
SERVER = "IMGREC_FORK_SERVER"  # its socket, in the environment of the processes of pytest-xdist
START_S = 120.0  # to import everything


@cache
def start_server() -> str:
    """Start the fork server, unless this process was given one; return its socket.

    It ends with this process.
    """
    if SERVER not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="imgrec-fork-")
        path = Path(folder.name) / "socket"
        server = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "fork_server.py"), str(path)],
            stdin=subprocess.PIPE,
        )
        deadline = time.monotonic() + START_S
        while not path.exists():
            assert server.poll() is None, "the fork server has ended"
            assert time.monotonic() < deadline, "the fork server does not listen"
            time.sleep(0.01)
        _kept.extend((folder, server))
        os.environ[SERVER] = str(path)
    return os.environ[SERVER]


_kept: list[object] = []  # until the end of this process


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
        self._code: int | None = None
        self._lock = threading.Lock()
        request = {
            "args": self.args,
            "cwd": str(cwd),
            "env": dict(env),
            "stdin": str(stdin),
            "stdout": str(stdout),
            "stderr": str(stderr),
            "bare": bare,
        }
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.settimeout(START_S)
        self._connection.connect(start_server())
        self._connection.sendall(f"{json.dumps(request)}\n".encode())
        self._answers = self._connection.makefile("rb")
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        with self._lock:
            if self._code is None and wait([self._connection], 0):
                self._code = int(self._answers.readline())
                self._answers.close()
                self._connection.close()
            return self._code

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def wait(self, timeout: float | None = None) -> int:
        if self.poll() is None:
            with contextlib.suppress(OSError, ValueError):  # another thread has read the code
                wait([self._connection], timeout)
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
