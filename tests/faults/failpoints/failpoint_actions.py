"""Kill, freeze or fail a process at a failpoint, so that the fault tests can hit where it hurts.

`IMGREC_FAILPOINT` is `NAME`, `NAME:DETAIL`, `NAME!ACTION` or `NAME:DETAIL!ACTION`:

    kill     end this process with SIGKILL (the default)
    segv     end it as a broken C library does
    stop     freeze it, as SIGSTOP does
    memory   allocate until nothing is left
    leak     allocate and keep all but a little
    full     raise what a full disk raises
    raise    raise RuntimeError, as a bug would
    sleepS   pause for S seconds
    clockS   set this process's clock forward, or back, by S seconds
    hang     freeze this thread alone
    end      end this thread alone

`DETAIL` is the start of the failpoint's detail, e.g. an image's path.
`IMGREC_FAILPOINT_ONCE` names a file. It is created before the first action and prevents any other.
"""

from __future__ import annotations

import errno
import os
import signal
import time

from pipeline import failpoints

MIB = 2**20
HEADROOM = 32  # MiB that a leak leaves: a process that gets none at all does not behave in any way
SIGNALS = {"kill": signal.SIGKILL, "segv": signal.SIGSEGV, "stop": signal.SIGSTOP}

_leaked: list[bytes] = []


def install() -> None:
    """Arm the failpoint that the environment names."""
    armed = os.environ.get("IMGREC_FAILPOINT", "")
    if armed:
        target, _, action = armed.partition("!")
        name, _, detail = target.partition(":")
        failpoints.on_failpoint = _Action(name, detail, action or "kill")


class _Action:
    def __init__(self, name: str, detail: str, action: str) -> None:
        self._name, self._detail, self._action = name, detail, action
        self._once = os.environ.get("IMGREC_FAILPOINT_ONCE")

    def __call__(self, name: str, detail: str) -> None:
        if name == self._name and detail.startswith(self._detail) and self._is_first():
            _act(self._action)

    def _is_first(self) -> bool:
        if not self._once:
            return True
        try:
            os.close(os.open(self._once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


def _act(action: str) -> None:
    if action in SIGNALS:
        os.kill(os.getpid(), SIGNALS[action])
        time.sleep(0.5)  # the signal may reach another thread first: go no line further until then
    elif action == "memory":
        _allocate([])
    elif action == "leak":
        try:
            _allocate(_leaked)
        except MemoryError:
            del _leaked[-HEADROOM:]
    elif action == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    elif action == "raise":
        raise RuntimeError("a failpoint")
    elif action == "end":
        raise SystemExit
    elif action == "hang":
        while True:
            time.sleep(60)
    elif action.startswith("clock"):
        _set_clock(float(action.removeprefix("clock")))
    elif action.startswith("sleep"):
        time.sleep(float(action.removeprefix("sleep")))
    else:
        raise ValueError(f"IMGREC_FAILPOINT knows no action {action!r}")


def _set_clock(by_s: float) -> None:
    clock, read = time.time, time.clock_gettime
    time.time = lambda: clock() + by_s
    time.clock_gettime = lambda kind: read(kind) + by_s * (kind == time.CLOCK_REALTIME)


def _allocate(blocks: list[bytes]) -> None:
    while True:
        blocks.append(b"\1" * MIB)  # not zeros: those take no memory before they are touched
