"""The memory watch of a worker: it outlives its own errors, and the worker needs it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from live_stack import until

from pipeline.images.memory_budget import MemoryBudget
from pipeline.settings import Settings
from workers import memory_guard, watchdog

MIB = 2**20
LIMIT = 1000 * MIB


class Watched:
    """A worker's memory as a test says that it is."""

    def __init__(self) -> None:
        self.used: list[Any] = []  # what each look sees, the last one for good
        self.stopping = threading.Event()
        self.ends: list[int] = []

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
    watched = Watched()
    limited = settings.model_copy(update={"worker_max_memory": "1000MiB"})
    monkeypatch.setattr(memory_guard, "load_settings", lambda: limited)
    monkeypatch.setattr(memory_guard, "used_bytes", watched.used_bytes)
    monkeypatch.setattr(memory_guard, "stopping", watched.stopping)
    monkeypatch.setattr(memory_guard, "_end", watched.end)
    monkeypatch.setattr(memory_guard, "_is_worker", threading.Event())
    monkeypatch.setattr(memory_guard, "_limit", None)
    monkeypatch.setattr(memory_guard, "_line", None)
    monkeypatch.setattr(memory_guard, "POLL_S", 0.001)
    monkeypatch.setattr(memory_guard, "LEAK_S", 0.0)
    watchdog.forget()
    yield watched
    watched.stopping.set()
    for thread in threading.enumerate():
        if thread.name == "memory":
            thread.join(20)
    watchdog.forget()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_memory_watch_outlives_an_error_of_its_own(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.used = [0, 0, ValueError("not a line of /proc"), LIMIT + 1]
    memory_guard.begin()
    until(lambda: watched.ends == [LIMIT + 1], "the worker is ended", 20)
    assert "The memory watch failed; it goes on." in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_without_the_memory_to_read_its_use_has_leaked(watched: Watched) -> None:
    watched.used = [0, 0, MemoryError()]
    memory_guard.begin()
    until(lambda: watched.ends == [LIMIT], "the worker is ended", 20)


def test_a_worker_needs_its_memory_watch(watched: Watched) -> None:
    watched.used = [0]
    memory_guard.begin()
    assert watchdog.failures() == []
    watched.stopping.set()
    until(watchdog.failures, "its end is noticed", 20)
    assert watchdog.failures() == ["the thread 'memory' is dead"]


def test_a_worker_without_a_limit_needs_no_memory_watch(
    watched: Watched, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.used = [0]
    unlimited = settings.model_copy(update={"worker_max_memory": "0"})
    monkeypatch.setattr(memory_guard, "load_settings", lambda: unlimited)
    memory_guard.begin()
    assert not any(thread.name == "memory" for thread in threading.enumerate())
    assert watchdog.failures() == []


class SlowRoom(MemoryBudget):
    """A room that the first thread narrows, while another thread asks for the same."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.passed_by = threading.Event(), threading.Event()
        self.narrowed = 0

    def narrow(self, size: int, line: int) -> None:
        self.entered.set()
        # A thread that rightly waits for this one cannot say so: it is given a moment to go wrong.
        assert not self.passed_by.wait(0.5)
        self.narrowed += 1


def test_no_thread_takes_a_worker_for_settled_before_it_is(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_guard, "_settled", set())
    monkeypatch.setattr(memory_guard, "data_segment_bytes", lambda: 100 * MIB)
    # No ceiling for the process of the tests itself.
    monkeypatch.setattr(
        memory_guard, "_on_cuda", lambda: True
    )  # no ceiling for the tests' own process
    memory_guard._is_worker.set()
    room, narrowed = SlowRoom(), []

    def second() -> None:
        assert room.entered.wait(20)
        memory_guard.apply_limit(room, "query")
        narrowed.append(room.narrowed)
        room.passed_by.set()

    thread = threading.Thread(target=second)
    thread.start()
    memory_guard.apply_limit(room, "query")
    thread.join(20)
    assert narrowed == [1]
    assert room.narrowed == 1
