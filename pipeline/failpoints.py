"""Die or freeze on purpose at a named line, so that the fault tests can hit where it hurts."""

from __future__ import annotations

import os
import signal
import time

# Test-only switches, read here and not in settings.py: they must not look like something to set.
_POINT = "IMGREC_FAILPOINT"
_ONCE = "IMGREC_FAILPOINT_ONCE"


def failpoint(name: str) -> None:
    """Kill this process with SIGKILL if `IMGREC_FAILPOINT` is `name`; freeze it if `name:stop`.

    `name:hang` freezes this thread alone, `name:end` ends it.

    `IMGREC_FAILPOINT_ONCE`, a file, makes it once: the file is created first and disarms the line
    from then on.
    """
    wanted = os.environ.get(_POINT)
    if wanted is None or not wanted.startswith(name):
        return
    action = wanted[len(name) :]
    if action not in ("", ":stop", ":hang", ":end"):
        return
    once = os.environ.get(_ONCE)
    if once:
        try:
            os.close(os.open(once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
    if action == ":end":
        raise SystemExit
    while action == ":hang":
        time.sleep(60)
    os.kill(os.getpid(), signal.SIGSTOP if action == ":stop" else signal.SIGKILL)
    time.sleep(0.5)  # the signal may reach another thread first: go no line further until then
