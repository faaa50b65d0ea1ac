"""Die, freeze or fail on purpose at a named line, so that the fault tests can hit where it hurts.

Off unless `IMGREC_FAILPOINT` is set, to `NAME` or `NAME!ACTION`:

    kill     end this process with SIGKILL (the default)
    segv     end it as a broken C library does
    stop     freeze it, as SIGSTOP does
    memory   allocate until nothing is left
    leak     allocate and keep all but a little
    full     raise what a full disk raises
    raise    raise RuntimeError, as a bug would
    sleepS   pause for S seconds
    hang     freeze this thread alone
    end      end this thread alone

`IMGREC_FAILPOINT_ONCE`, a file, makes it once: the file is created first and disarms the line from
then on.
"""

from __future__ import annotations

import errno
import os
import signal
import time

# Test-only switches, read here and not in settings.py: they must not look like something to set.
_WANTED = os.environ.get("IMGREC_FAILPOINT", "")
_NAME, _, _ACTION = _WANTED.partition("!")
_ONCE = os.environ.get("IMGREC_FAILPOINT_ONCE")
MIB = 2**20
LITTLE = 32  # of those
_leaked: list[bytes] = []


def failpoint(name: str) -> None:
    """Do what `IMGREC_FAILPOINT` asks for at the line of this name."""
    if name == _NAME and _first_time():
        _act(_ACTION or "kill")


def _first_time() -> bool:
    if not _ONCE:
        return True
    try:
        os.close(os.open(_ONCE, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _allocate(held: list[bytes]) -> None:
    while True:
        held.append(b"\1" * MIB)  # no zeros: those take no memory before they are touched


def _act(action: str) -> None:
    if action in _SIGNALS:
        os.kill(os.getpid(), _SIGNALS[action])
        time.sleep(0.5)  # the signal may reach another thread first: go no line further until then
    elif action == "memory":
        _allocate([])
    elif action == "leak":
        try:
            _allocate(_leaked)
        except MemoryError:
            del _leaked[-LITTLE:]  # a process that gets none at all does not behave in any way
    elif action == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    elif action == "raise":
        raise RuntimeError("a failpoint")
    elif action == "end":
        raise SystemExit
    elif action == "hang":
        while True:
            time.sleep(60)
    elif action.startswith("sleep"):
        time.sleep(float(action.removeprefix("sleep")))
    else:
        raise ValueError(f"IMGREC_FAILPOINT knows no action {action!r}")


_SIGNALS = {"kill": signal.SIGKILL, "segv": signal.SIGSEGV, "stop": signal.SIGSTOP}
