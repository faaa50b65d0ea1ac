"""The standard streams as a caller left them: closed, full, or in an encoding without our names."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STDOUT = "<stdout>"


def prepare() -> None:
    """Make the three streams safe to use.

    A closed one gets a descriptor, or the next file, e.g. the database, would be opened under its
    number and printed into. Reading from it ends at once; writing to stdout fails as it would have.
    Writing to stderr never fails: the exit code still tells.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # the lowest number that is free
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = _text(_Stdout(1, "w", closefd=False), "utf-8")
    elif isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout is sys.__stdout__:
        raw, terminal = _Stdout(1, "w", closefd=False), sys.stdout.isatty()
        sys.stdout = _text(raw, sys.stdout.encoding, line_buffering=terminal)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        encoding = getattr(sys.stderr, "encoding", "utf-8")
        sys.stderr = _text(_Stderr(2, "w", closefd=False), encoding, line_buffering=True)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # not a test's stand-in
            reconfigure(errors="backslashreplace")


def is_stdout(error: OSError) -> bool:
    """Tell whether an error came from writing to stdout, and not from a file of the work."""
    return bool(error.filename == STDOUT)


class _Stdout(io.FileIO):
    """Stdout whose errors name it: one of a write to a file has no name, either."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, STDOUT) from error


class _Stderr(io.FileIO):
    """Stderr that takes everything: libraries write to it, too, and the work goes on without."""

    def write(self, data: ReadableBuffer, /) -> int:
        with suppress(OSError):
            return super().write(data)
        return len(memoryview(data))


def _text(raw: io.FileIO, encoding: str, *, line_buffering: bool = False) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, line_buffering=line_buffering)


def finish(code: int) -> int:
    """Write out what is left; return the exit code, which is a failure where that fails."""
    try:
        sys.stdout.flush()
        return code
    except (OSError, ValueError) as error:
        if not isinstance(error, BrokenPipeError) and not code:  # else it was said before
            with suppress(OSError, ValueError):
                reason = getattr(error, "strerror", None) or error
                sys.stderr.write(f"Error: The output cannot be written: {reason}.\n")
        # The interpreter would try again at its end, and complain.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return code or 1
