"""What this process needs to be of use: threads that must live, work that must move on.

A thread that dies takes nothing with it, and one that hangs looks busy; so each is asked here, and
the heartbeat stops where one does not answer.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType

_lock = threading.Lock()
_threads: list[threading.Thread] = []
_works: set[Deadline] = set()


class Deadline:
    """Something under way, from `begin` to `end`, that must move at least once in `limit_s`."""

    def __init__(self, what: str, limit_s: float) -> None:
        self.what, self.limit_s = what, limit_s
        self._moved = time.monotonic()

    def begin(self) -> None:
        self.touch()
        with _lock:
            _works.add(self)

    def touch(self) -> None:
        """Note that it goes on."""
        self._moved = time.monotonic()

    def end(self) -> None:
        with _lock:
            _works.discard(self)

    def __enter__(self) -> Deadline:
        self.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    @property
    def idle_s(self) -> float:
        """Seconds without a move; a machine that slept does not count."""
        return time.monotonic() - self._moved


def register_thread(thread: threading.Thread) -> None:
    """Be ill when this thread, which must live as long as the process, has ended."""
    with _lock:
        _threads.append(thread)


def forget() -> None:
    """Need nothing."""
    with _lock:
        _threads.clear()
        _works.clear()


def failures() -> list[str]:
    """Say what is dead or hangs."""
    with _lock:
        threads, works = list(_threads), list(_works)
    dead = [f"the thread '{thread.name}' is dead" for thread in threads if not thread.is_alive()]
    return dead + [
        f"{work.what} has not moved for {work.idle_s:.0f} s"
        for work in works
        if work.idle_s > work.limit_s
    ]
