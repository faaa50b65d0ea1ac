"""The lines of `imgrec up`: on a terminal, or in a log file that does not grow for ever."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from contextlib import suppress
from pathlib import Path

import click

from pipeline.names import printable


class UpLog:
    """Writes lines to stdout; where that is the log file, it is begun anew when it is large.

    The lines of every worker come through here, each from a thread of its own.
    """

    def __init__(self, file: Path, max_bytes: int) -> None:
        self._file, self._max_bytes = file, max_bytes
        self._lock = threading.Lock()

    def write(self, line: str) -> None:
        # Where the log cannot be written, the worker must not stop over it: its pipe would fill.
        with self._lock, suppress(OSError, ValueError):
            click.echo(printable(line), color=False)
            if self._is_stdout() and self._file.stat().st_size > self._max_bytes:
                # Copied, not renamed: stdout stays open on this file.
                shutil.copyfile(self._file, self._file.with_name(f"{self._file.name}.1"))
                os.truncate(self._file, 0)

    def _is_stdout(self) -> bool:
        try:
            return os.path.samestat(os.fstat(sys.stdout.fileno()), self._file.stat())
        except (OSError, ValueError, AttributeError):  # no file, or no stdout
            return False
