"""The memory watch of a worker: it outlives its own errors, and the worker needs it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from live_stack import until

from pipeline.settings import Settings
from workers import memory_guard
from workers.memory_guard import MemoryGuard
from workers.watchdog import Watchdog

MIB = 2**20
LIMIT = 1000 * MIB


class Watched:
    """A worker's memory as a test says that it is."""

    def __init__(self, settings: Settings) -> None:
        self.used: list[Any] = []  # what each look sees, the last one for good
        self.stopping = threading.Event()
        self.watchdog = Watchdog()
        self.ends: list[int] = []
        self._settings = settings

    def guard(self, limit: int = LIMIT) -> MemoryGuard:
        settings = self._settings.model_copy(update={"worker_max_memory": limit})
        guard = MemoryGuard(settings, self.stopping, self.watchdog)
        guard._end = self.end
        return guard

    def used_bytes(self) -> int:
        used = self.used.pop(0) if len(self.used) > 1 else self.used[0]
        if isinstance(used, BaseException):
            raise used
        return int(used)

    def end(self, used: int, limit: int) -> None:
        assert limit == LIMIT
        self.ends.append(used)
        self.stopping.set()


@pytest.fixture
def watched(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    watched = Watched(settings)
    monkeypatch.setattr(memory_guard, "used_bytes", watched.used_bytes)
    monkeypatch.setattr(memory_guard, "POLL_S", 0.001)
    monkeypatch.setattr(memory_guard, "LEAK_S", 0.0)
    yield watched
    watched.stopping.set()
    for thread in threading.enumerate():
        if thread.name == "memory":
            thread.join(20)


def test_models_that_are_loaded_before_the_worker_is_ready_are_within_the_limit(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else would set the limit of a worker whose queries are all in the cache."""
    watched.used = [0]
    monkeypatch.setattr(memory_guard, "data_segment_bytes", lambda: 100 * MIB)
    monkeypatch.setattr(memory_guard, "_on_cuda", lambda: True)  # no ceiling for the tests
    guard, limits = watched.guard(), list[int]()
    monkeypatch.setattr(guard.budget, "set_limit", lambda size, line: limits.append(size))
    guard.apply_limit("query")
    assert limits == []  # it may be a command that does a worker's work
    guard.start()
    assert limits == [450 * MIB]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_memory_watch_outlives_an_error_of_its_own(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.used = [0, 0, ValueError("not a line of /proc"), LIMIT + 1]
    watched.guard().start()
    until(lambda: watched.ends == [LIMIT + 1], "the worker is ended", 20)
    assert "The memory watch failed; it continues." in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_without_the_memory_to_read_its_use_has_leaked(watched: Watched) -> None:
    watched.used = [0, 0, MemoryError()]
    watched.guard().start()
    until(lambda: watched.ends == [LIMIT], "the worker is ended", 20)


def test_a_worker_needs_its_memory_watch(watched: Watched) -> None:
    watched.used = [0]
    watched.guard().start()
    assert watched.watchdog.failures() == []
    watched.stopping.set()
    until(watched.watchdog.failures, "its end is noticed", 20)
    assert watched.watchdog.failures() == ["the thread 'memory' is dead"]


def test_a_worker_without_a_limit_needs_no_memory_watch(watched: Watched) -> None:
    watched.used = [0]
    watched.guard(0).start()
    assert not any(thread.name == "memory" for thread in threading.enumerate())
    assert watched.watchdog.failures() == []


def test_no_thread_takes_a_limit_for_applied_before_it_is(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one thread applies the limit, another asks for the same."""
    watched.used = [0]
    monkeypatch.setattr(memory_guard, "data_segment_bytes", lambda: 100 * MIB)
    # No ceiling for the process of the tests itself.
    monkeypatch.setattr(memory_guard, "_on_cuda", lambda: True)
    guard = watched.guard()
    guard.start()
    entered, passed_by = threading.Event(), threading.Event()
    limits: list[int] = []

    def set_limit(size: int, line: int) -> None:
        entered.set()
        # A thread that rightly waits for this one cannot say so: it is given a moment to go wrong.
        assert not passed_by.wait(0.5)
        limits.append(size)

    monkeypatch.setattr(guard.budget, "set_limit", set_limit)
    seen: list[int] = []

    def second() -> None:
        assert entered.wait(20)
        guard.apply_limit("query")
        seen.append(len(limits))
        passed_by.set()

    thread = threading.Thread(target=second)
    thread.start()
    guard.apply_limit("query")
    thread.join(20)
    assert seen == [1]
    assert limits == [450 * MIB]
