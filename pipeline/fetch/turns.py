"""Whose turn it is: which address may be asked next, so that no host is asked too often."""

from __future__ import annotations

import heapq
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

# Attempts in a row that a host did not answer; the rest of its addresses fail without one.
SILENT_AFTER = 20


@dataclass(frozen=True)
class HostLimits:
    """Limits of one host: connections at once, and requests a second."""

    connections: int
    per_second: float


@dataclass(frozen=True)
class Turn:
    """An address to ask now, for the `attempt`-th time."""

    url: str
    host: str
    attempt: int


class Turns:
    """The addresses that are still to be asked, by host; used by one thread."""

    def __init__(
        self,
        urls: Iterable[str],
        limits: HostLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._waiting: dict[str, deque[Turn]] = {}
        self._delayed: list[tuple[float, int, Turn]] = []  # a heap
        self._order = itertools.count()
        self._next_at: dict[str, float] = {}
        self._active: Counter[str] = Counter()
        self._silent: Counter[str] = Counter()
        for url in urls:
            host = urlsplit(url).netloc
            self._waiting.setdefault(host, deque()).append(Turn(url, host, 1))

    def __bool__(self) -> bool:
        return bool(self._waiting or self._delayed)

    def take(self) -> tuple[Turn | None, float]:
        """Return the next address; or None, and in how many seconds a host may be asked again.

        The seconds are infinite where a connection has to end before.
        """
        now = self._clock()
        while self._delayed and self._delayed[0][0] <= now:
            _, _, turn = heapq.heappop(self._delayed)
            self._waiting.setdefault(turn.host, deque()).append(turn)
        soonest = self._delayed[0][0] if self._delayed else float("inf")
        for host, turns in self._waiting.items():
            if self._active[host] >= self._limits.connections:
                continue
            at = self._next_at.get(host, now)
            if at > now:
                soonest = min(soonest, at)
                continue
            turn = turns.popleft()
            del self._waiting[host]  # the next host comes first the next time
            if turns:
                self._waiting[host] = turns
            self._active[host] += 1
            self._next_at[host] = max(now, at) + 1 / self._limits.per_second
            return turn, 0.0
        return None, soonest - now

    def done(self, turn: Turn, *, answered: bool) -> list[str]:
        """End a turn; return the addresses that are given up, because their host is silent."""
        host = turn.host
        self._active[host] -= 1
        self._silent[host] = 0 if answered else self._silent[host] + 1
        return [] if self._silent[host] < SILENT_AFTER else self.leave(host)

    def leave(self, host: str) -> list[str]:
        """Give up the addresses of a host; return them."""
        left = [each.url for each in self._waiting.pop(host, ())]
        left += [each.url for _, _, each in self._delayed if each.host == host]
        self._delayed = [entry for entry in self._delayed if entry[2].host != host]
        heapq.heapify(self._delayed)
        return left

    def again(self, turn: Turn, after_s: float, *, whole_host: bool = False) -> None:
        """Have an address asked again, after a pause that may be of its whole host."""
        at = self._clock() + after_s
        if whole_host:
            self._next_at[turn.host] = max(at, self._next_at.get(turn.host, 0.0))
        later = Turn(turn.url, turn.host, turn.attempt + 1)
        heapq.heappush(self._delayed, (at, next(self._order), later))
