"""Celery's pool of threads, which says so when a thread has become free.

With `worker_disable_prefetch` a worker takes a message only when a thread is free for it. Celery
looks for that whenever its loop wakes up, and the end of a task does not wake it: the next message
would wait a third of a second (celery 5.7.0).
"""

from __future__ import annotations

from typing import Any

from celery.concurrency.thread import TaskPool
from kombu.asynchronous import get_event_loop


class Pool(TaskPool):
    """Wakes the worker's loop at the end of each task."""

    def on_apply(self, *args: Any, **options: Any) -> Any:
        result = super().on_apply(*args, **options)
        result.f.add_done_callback(_wake)
        return result


def _wake(_: Any) -> None:
    loop = get_event_loop()
    if loop is not None:
        loop.call_soon(_nothing)  # type: ignore[no-untyped-call]


def _nothing() -> None:
    pass
