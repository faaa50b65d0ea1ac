"""Heartbeats of workers, in files that health checks and supervisors read without any server.

run/embed@host.alive        touched while the worker is healthy; stale when it hangs or is unhealthy
run/embed@host.unhealthy    why it is unhealthy; exists only then
run/embed@host.lock         held for as long as the process lives
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.atomic_files import write_atomic

HOST = socket.gethostname()
EVERY_S = 10.0
STALE_S = 35.0  # three missed beats
FORGET_S = 86_400.0  # a killed worker's files
READY = "ready"
UNHEALTHY = ".unhealthy"


class Heartbeat:
    """The files of this process."""

    def __init__(self, folder: Path, name: str) -> None:
        self._alive = folder / f"{name}.alive"
        self._unhealthy = self._alive.with_suffix(UNHEALTHY)
        lock = folder / f"{name}.lock"
        self._said = ("", "")
        _forget(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(lock, timeout=1.0, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout:
            pass  # another worker of this name
        except (OSError, NotImplementedError):
            lock.unlink(missing_ok=True)  # a disk without locks: then files are all that is known

    def beat(self, state: str, problem: str) -> None:
        """Say that this process is alive; with a `problem`, say only that.

        Raises:
            OSError: the files cannot be written.
        """
        if problem:
            write_atomic(self._unhealthy, problem.encode())
        else:
            self._unhealthy.unlink(missing_ok=True)
            if self._alive.is_file() and self._said == (state, ""):
                # Works on a full disk, too. By this host's clock: a file server may have another.
                os.utime(self._alive, (time.time(), time.time()))
            else:
                write_atomic(self._alive, state.encode())
                os.utime(self._alive, (time.time(), time.time()))
        self._said = (state, problem)

    def end(self) -> None:
        """Take the files away: this process ends."""
        for file in (self._alive, self._unhealthy, Path(self._lock.lock_file)):
            with contextlib.suppress(OSError):
                file.unlink()


@dataclass(frozen=True)
class HeartbeatStatus:
    """What the files of a worker say; `age_s` since its last heartbeat, `reason` if unhealthy."""

    name: str
    age_s: float
    state: str
    reason: str

    @property
    def problem(self) -> str:
        """Say what is wrong with it; nothing is an empty string."""
        if self.reason:
            return self.reason
        if self.age_s < -STALE_S:
            return (
                f"its last heartbeat is {-self.age_s:.0f} s in the future: the clock was set back, "
                "and it has given none since"
            )
        return f"no heartbeat for {self.age_s:.0f} s" if self.age_s > STALE_S else ""


def new_owner() -> str:
    """Return a name for one claim of work by a process of this host."""
    return f"{HOST}:{uuid.uuid4().hex[:8]}"


def read_heartbeats(folder: Path, host: str = HOST) -> list[HeartbeatStatus]:
    """Read the heartbeats of the workers whose processes live on this host, by name."""
    heartbeats = []
    files = [*folder.glob(f"*@{host}.alive"), *folder.glob(f"*@{host}{UNHEALTHY}")]
    for file in sorted({each.with_suffix(".alive") for each in files}):
        if _lives(file.with_suffix(".lock")):
            try:
                age_s, state = time.time() - file.stat().st_mtime, file.read_text()
            except OSError:  # unhealthy from the start, or it ends right now
                age_s, state = 0.0, ""
            if -STALE_S <= age_s < 0:
                age_s = 0.0  # a clock that was set by a little
            heartbeats.append(HeartbeatStatus(file.stem, age_s, state, read_reason(file)))
    return heartbeats


def read_reason(alive: Path) -> str:
    """Return why a worker, by its `.alive` file, is unhealthy; an empty string while it is not."""
    try:
        return alive.with_suffix(UNHEALTHY).read_text()
    except OSError:
        return ""


def _lives(lock: Path) -> bool:
    if not lock.exists():
        return True
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def _forget(folder: Path) -> None:
    for old in folder.glob("*@*"):
        with contextlib.suppress(OSError):
            lock = old.with_suffix(".lock")
            dead = not lock.exists() or not _lives(lock)
            if dead and time.time() - old.stat().st_mtime > FORGET_S:
                old.unlink()
