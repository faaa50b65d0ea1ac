"""The pool of threads: a worker that takes nothing ahead must learn that a thread is free."""

from __future__ import annotations

import threading

import pytest

from workers import pool


class Loop:
    """Stands for the worker's event loop: notes that it was woken."""

    def __init__(self) -> None:
        self.woken = threading.Event()

    def call_soon(self, callback: object) -> None:
        self.woken.set()


@pytest.mark.parametrize("fails", [False, True])
def test_the_end_of_a_task_wakes_the_loop_and_its_start_does_not(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    loop, gate = Loop(), threading.Event()
    monkeypatch.setattr(pool, "get_event_loop", lambda: loop)
    started = threading.Event()

    def task() -> None:
        started.set()
        assert gate.wait(20)
        if fails:
            raise RuntimeError

    threads = pool.Pool(1)
    try:
        threads.apply_async(task, callback=lambda *_: None, accept_callback=lambda *_: None)
        assert started.wait(20)
        assert not loop.woken.is_set()
        gate.set()
        assert loop.woken.wait(20)
    finally:
        gate.set()
        threads.stop()
