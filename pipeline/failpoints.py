"""Die on purpose at a named line, so that the fault tests can kill a process where it hurts."""

from __future__ import annotations

import os
import signal

# Test-only switches, read here and not in settings.py: they must not look like something to set.


def failpoint(name: str) -> None:
    """Kill this process with SIGKILL if `IMGREC_FAILPOINT` names this line.

    `IMGREC_FAILPOINT_ONCE`, a file, makes it once: the file is created before the kill and
    disarms the line afterwards.
    """
    if os.environ.get("IMGREC_FAILPOINT") != name:
        return
    once = os.environ.get("IMGREC_FAILPOINT_ONCE")
    if once:
        try:
            os.close(os.open(once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
    os.kill(os.getpid(), signal.SIGKILL)
