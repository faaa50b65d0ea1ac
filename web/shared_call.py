"""Slow calls, shared by the requests that need them at the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class SharedCall(Generic[Value]):
    """Calls in a thread; whoever asks meanwhile waits for the same call, and shares its error."""

    def __init__(self, call: Callable[[], Value], kept_s: float) -> None:
        """Call nothing yet.

        Args:
            kept_s: seconds that a result holds.
        """
        self._call = call
        self._kept_s = kept_s
        self._task: asyncio.Task[Value] | None = None
        self._ended_at = 0.0

    async def get(self) -> Value:
        """Return what there is.

        Raises:
            ImgrecError: what the call raises.
        """
        task = self._task
        if task is None or (task.done() and time.monotonic() - self._ended_at > self._kept_s):
            task = self._task = asyncio.create_task(asyncio.to_thread(self._call))
            task.add_done_callback(self._ended)
        return await asyncio.shield(task)  # a client that goes away ends its own wait only

    def _ended(self, task: asyncio.Task[Value]) -> None:
        self._ended_at = time.monotonic()
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not complain
