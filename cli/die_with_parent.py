"""Become a command that ends when the supervisor does, even when that is killed with -9 (Linux).

Run as a script, `die_with_parent.py PARENT_PID COMMAND...`, with the standard library alone. The
supervisor has threads, so it must not run Python code between fork and exec. Redis cannot ask the
kernel for the signal itself, and what this process asks for outlives exec.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(parent: int, command: list[str]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("The supervisor ended before its child began.")
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and exec passes that on
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
