"""A lease lives as long as the work moves; who lost it learns it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from live_stack import until

from pipeline.errors import ServerUnavailable
from workers.lease import Lease, LeaseLost, Stopped
from workers.resources import stopping

LEASE_S = 0.06  # a beat every 10 ms


@pytest.fixture(autouse=True)
def not_stopping() -> Iterator[None]:
    stopping.clear()
    yield
    stopping.clear()


def raises(lease: Lease, kind: type[Exception]) -> Callable[[], bool]:
    def look() -> bool:
        try:
            lease.check()
        except kind:
            return True
        return False

    return look


def test_beats_carry_the_progress_and_end_with_the_work() -> None:
    seen: list[int] = []

    def beat(progress: int) -> bool:
        seen.append(progress)
        return True

    with Lease(beat, LEASE_S, 100) as lease:
        until(lambda: len(seen) >= 2, "beats", 20)
        lease.check(7)
        until(lambda: seen[-1] == 7, "the progress is told", 20)
    assert seen[0] == 0
    count = len(seen)
    assert not any(thread.name == "lease" for thread in threading.enumerate())
    assert len(seen) == count


def test_a_refused_beat_ends_the_work() -> None:
    with Lease(lambda progress: False, LEASE_S, 100) as lease:
        until(raises(lease, LeaseLost), "the loss is told", 20)


def test_a_process_that_is_asked_to_stop_ends_the_work_at_the_next_image() -> None:
    with Lease(lambda progress: True, LEASE_S, 100) as lease:
        lease.check(1)
        stopping.set()
        with pytest.raises(Stopped):
            lease.check(2)


def test_work_that_hangs_loses_its_lease_although_the_process_lives() -> None:
    beats: list[int] = []

    def beat(progress: int) -> bool:
        beats.append(progress)
        return True

    with Lease(beat, LEASE_S, hung_after_s=0.1) as lease:
        until(lambda: lease._lost, "the stall is noticed", 20)
        count = len(beats)
        with pytest.raises(LeaseLost):
            lease.check(1)  # too late: another worker may have it
    assert len(beats) == count


def test_work_that_moves_is_never_taken_for_hung() -> None:
    beats = threading.Semaphore(0)

    def beat(progress: int) -> bool:
        beats.release()
        return True

    with Lease(beat, LEASE_S, hung_after_s=5) as lease:
        for done in range(30):
            assert beats.acquire(timeout=20)
            lease.check(done + 1)


def test_a_short_outage_of_the_database_does_not_end_the_work() -> None:
    answers = iter([ServerUnavailable("away"), ServerUnavailable("away"), True, True])
    recovered = threading.Event()

    def beat(progress: int) -> bool:
        answer = next(answers, True)
        if isinstance(answer, ServerUnavailable):
            raise answer
        recovered.set()
        return answer

    with Lease(beat, LEASE_S, 100) as lease:
        assert recovered.wait(20)
        lease.check(1)
