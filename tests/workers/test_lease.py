"""A lease lives as long as the work moves; who lost it learns it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from live_stack import until

from pipeline.errors import ServerUnavailable
from workers.lease import Lease, LeaseLost, Stopped
from workers.watchdog import Watchdog

LEASE_S = 0.06  # a beat every 10 ms


def lease(beat: Callable[[int], bool], hung_after_s: float = 100, **options: Any) -> Lease:
    options = {"stopping": threading.Event(), "watchdog": Watchdog(), **options}
    return Lease(beat, LEASE_S, hung_after_s, **options)


def raises(held: Lease, kind: type[Exception]) -> Callable[[], bool]:
    def look() -> bool:
        try:
            held.check()
        except kind:
            return True
        return False

    return look


def test_beats_carry_the_progress_and_end_with_the_work() -> None:
    seen: list[int] = []

    def beat(progress: int) -> bool:
        seen.append(progress)
        return True

    with lease(beat) as held:
        until(lambda: len(seen) >= 2, "beats", 20)
        held.check(7)
        until(lambda: seen[-1] == 7, "the progress is told", 20)
    assert seen[0] == 0
    count = len(seen)
    assert not any(thread.name == "lease" for thread in threading.enumerate())
    assert len(seen) == count


def test_a_refused_beat_ends_the_work() -> None:
    with lease(lambda progress: False) as held:
        until(raises(held, LeaseLost), "the loss is told", 20)


def test_a_process_that_is_asked_to_stop_ends_the_work_at_the_next_image() -> None:
    stopping = threading.Event()
    with lease(lambda progress: True, stopping=stopping) as held:
        held.check(1)
        stopping.set()
        with pytest.raises(Stopped):
            held.check(2)


def test_work_that_hangs_loses_its_lease_although_the_process_lives() -> None:
    beats: list[int] = []

    def beat(progress: int) -> bool:
        beats.append(progress)
        return True

    with lease(beat, hung_after_s=0.1) as held:
        until(lambda: held._lost, "the stall is noticed", 20)
        count = len(beats)
        with pytest.raises(LeaseLost):
            held.check(1)  # too late: another worker may have it
    assert len(beats) == count


def test_work_that_moves_is_never_taken_for_hung() -> None:
    beats = threading.Semaphore(0)

    def beat(progress: int) -> bool:
        beats.release()
        return True

    with lease(beat, hung_after_s=5) as held:
        for done in range(30):
            assert beats.acquire(timeout=20)
            held.check(done + 1)


def test_a_short_outage_of_the_database_does_not_end_the_work() -> None:
    answers = iter([ServerUnavailable("away"), ServerUnavailable("away"), True, True])
    recovered = threading.Event()

    def beat(progress: int) -> bool:
        answer = next(answers, True)
        if isinstance(answer, ServerUnavailable):
            raise answer
        recovered.set()
        return answer

    with lease(beat) as held:
        assert recovered.wait(20)
        held.check(1)
