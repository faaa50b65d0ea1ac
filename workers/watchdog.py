"""What this process needs to be of use: threads that must live, work that must move on.

A thread that dies takes nothing with it, and one that hangs looks busy; so each is asked here, and
the heartbeat stops where one does not answer.
"""

from __future__ import annotations

import threading
import time


class Watchdog:
    """The threads that a process needs, and the deadlines of its work."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._deadlines: set[Deadline] = set()
        self.refusal = ""  # why this process refuses work; empty once it has accepted some

    def register_thread(self, thread: threading.Thread) -> None:
        """Be unhealthy when this thread, which must live as long as the process, has ended."""
        with self._lock:
            self._threads.append(thread)

    def deadline(self, what: str, limit_s: float) -> Deadline:
        """Return a deadline for `what`, which is watched from `begin` to `end`."""
        return Deadline(self, what, limit_s)

    def add(self, deadline: Deadline) -> None:
        with self._lock:
            self._deadlines.add(deadline)

    def remove(self, deadline: Deadline) -> None:
        with self._lock:
            self._deadlines.discard(deadline)

    def failures(self) -> list[str]:
        """Say what is dead or hangs."""
        with self._lock:
            threads, deadlines = list(self._threads), list(self._deadlines)
        dead = [thread.name for thread in threads if not thread.is_alive()]
        hung = [deadline for deadline in deadlines if deadline.idle_s > deadline.limit_s]
        return [
            *(f"the thread '{name}' is dead" for name in dead),
            *(f"{each.what} has not moved for {each.idle_s:.0f} s" for each in hung),
            *filter(None, [self.refusal]),
        ]


class Deadline:
    """Something under way, from `begin` to `end`, that must move at least once in `limit_s`."""

    def __init__(self, watchdog: Watchdog, what: str, limit_s: float) -> None:
        self.what, self.limit_s = what, limit_s
        self._watchdog = watchdog
        self._moved = time.monotonic()

    def begin(self) -> None:
        self.touch()
        self._watchdog.add(self)

    def touch(self) -> None:
        """Note that it goes on."""
        self._moved = time.monotonic()

    def end(self) -> None:
        self._watchdog.remove(self)

    def __enter__(self) -> Deadline:
        self.begin()
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    @property
    def idle_s(self) -> float:
        """Seconds without a move; a machine that slept does not count."""
        return time.monotonic() - self._moved
