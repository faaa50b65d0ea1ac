"""How much memory this process uses, and the room that its images share while they are decoded.

On Linux only; elsewhere nothing is known and nothing is limited.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.cgroup import memory_limit
from pipeline.errors import BadImage

STATUS = Path("/proc/self/status")
SHARE_OF_MACHINE = 0.5  # an embed, an index and a query worker commonly share one
M_ARENA_MAX, ARENAS = -8, 4  # malloc.h
SHARE_OF_CONTAINER = 0.9  # its kernel kills at the limit itself


def used_bytes() -> int | None:
    """Return the memory that only this process holds and that the kernel cannot take back.

    Mapped files (the index, the vectors, a model's weights) are the kernel's to drop, so they do
    not count.
    """
    return _status("RssAnon", "RssShmem", "VmSwap")


def data_segment_bytes() -> int | None:
    """Return what the kernel counts against RLIMIT_DATA: used or not, it was asked for."""
    return _status("VmData")


def default_limit(n_workers: int) -> int:
    """Return half of the machine's memory, or a worker's share of the container's if less.

    Args:
        n_workers: the number of worker processes in the container.
    """
    limit = SHARE_OF_MACHINE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    container = memory_limit()
    if container is not None:
        limit = min(limit, SHARE_OF_CONTAINER * container / n_workers)
    return int(limit)


def limit_malloc_arenas() -> None:
    """Have the C library share its arenas between threads; call it before any thread.

    Each of 16 threads would keep some of the largest image that it ever decoded: after 6,000
    mutated images 537 MB instead of 287.
    """
    with contextlib.suppress(OSError, AttributeError):  # a C library without them
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)


def trim_heap() -> None:
    """Have the C library return what it keeps for later; freed memory is no leak."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def format_bytes(size: int) -> str:
    """Return a number of bytes as people write it, e.g. 1.5 GiB."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << power:
            return f"{size / (1 << power):.1f} {unit}".replace(".0 ", " ")
    return f"{size} bytes"


class MemoryBudget:
    """Memory for images: a thread waits until what its image may need is free.

    Without limit until `set_limit` is called: what the models leave is known once they are loaded.
    """

    def __init__(self) -> None:
        self._size: int | None = None
        self._line: int | None = None
        self._taken = 0
        self._alone: int | None = None
        self._changed = threading.Condition()

    def set_limit(self, size: int, line: int) -> None:
        """Share `size` bytes; a process above `line` without any image has leaked."""
        self._size, self._line = size, line

    @contextmanager
    def reserve(self, n_bytes: int) -> Iterator[None]:
        """Reserve memory for one image.

        Raises:
            BadImage: it would not even fit alone.
        """
        with self._changed:
            if self._size is not None and n_bytes > self._size:
                raise BadImage(
                    f"the image would need {format_bytes(n_bytes)} of memory, WORKER_MAX_MEMORY "
                    f"leaves {format_bytes(self._size)} for images: raise it, or make the image "
                    "smaller"
                )
            self._changed.wait_for(lambda: self._fits(n_bytes))
            self._taken += n_bytes
        try:
            yield
        finally:
            with self._changed:
                self._taken -= n_bytes
                self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold all budget, once no other thread holds any; this thread may still `reserve`."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken == 0 and self._alone is None)
            self._alone = threading.get_ident()
        try:
            yield
        finally:
            with self._changed:
                self._alone = None
                self._changed.notify_all()

    def _fits(self, n_bytes: int) -> bool:
        if self._alone is not None:
            return self._alone == threading.get_ident()
        return self._size is None or self._taken + n_bytes <= self._size

    def over_limit(self) -> bool:
        """Tell whether this process is short of memory through no fault of the newest image."""
        if self._line is None:
            return False
        trim_heap()
        return (used_bytes() or 0) > self._line


def _status(*names: str) -> int | None:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines)
    return sum(int(fields[name].split()[0]) * 1024 for name in names if name in fields)
