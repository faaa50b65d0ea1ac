"""Measure how long each stage of a shard takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Observe = Callable[[str, float], None]
STAGES = ("read", "decode", "cut_out", "embed", "write")


class StageTimes:
    """Seconds by stage, added up over the threads that measure them."""

    def __init__(self, observe: Observe = lambda stage, seconds: None) -> None:
        """Start at zero.

        Args:
            observe: called with each measured block's stage and seconds.
        """
        self._observe = observe
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()

    @contextmanager
    def measure(self, stage: str, threads: int = 1) -> Iterator[None]:
        """Add the time of a block; of a stage that runs in several threads, each one's share.

        So the sums of all stages compare with each other: each is what the stage would take if the
        process did nothing else.
        """
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self._observe(stage, seconds)
            with self._lock:
                self._seconds[stage] += seconds / threads

    def seconds(self) -> dict[str, float]:
        """Return the sums so far, for every stage."""
        with self._lock:
            return dict(self._seconds)
