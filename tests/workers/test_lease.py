"""A lease lives as long as the work moves; who lost it learns it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping

import pytest
from live_stack import until

from pipeline.errors import ServerUnavailable
from pipeline.store.job import Job, MergeClaim
from pipeline.store.shards import Claim
from workers.lease import Lease, LeaseLost, Leases, Stopped
from workers.watchdog import Watchdog

LEASE_S = 0.05  # a heartbeat every 10 ms


class JobTable:
    """Renews every lease but those in `refused`; keeps what it was told."""

    def __init__(self) -> None:
        self.heartbeats: list[tuple[dict[str, int], set[str]]] = []
        self.refused: set[str] = set()
        self.errors: list[Exception] = []

    def renew_leases(
        self, shards: Mapping[str, int], merges: Collection[str], lease_s: float
    ) -> set[str]:
        assert lease_s == LEASE_S
        self.heartbeats.append((dict(shards), set(merges)))
        if self.errors:
            raise self.errors.pop()
        return {*shards, *merges} - self.refused


@pytest.fixture
def table() -> JobTable:
    return JobTable()


@pytest.fixture
def stopping() -> threading.Event:
    return threading.Event()


@pytest.fixture
def leases(table: JobTable, stopping: threading.Event) -> Leases:
    return Leases(table, LEASE_S, 100, stopping, Watchdog())


def shard(n: int) -> Claim:
    return Claim("job", n, f"worker-{n}", 1, [])


def merge_claim() -> MergeClaim:
    job = Job.from_row(
        dict.fromkeys(Job.__dataclass_fields__)
        | {"id": "job", "root": "/", "options": '{"full": false, "save_preprocessed": false}'}
        | {"seconds": 0.0}
    )
    return MergeClaim(job, "indexer")


def raises(held: Lease, kind: type[Exception]) -> Callable[[], bool]:
    def look() -> bool:
        try:
            held.check()
        except kind:
            return True
        return False

    return look


def heartbeat_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "leases"]


def test_one_heartbeat_renews_all_leases_of_the_process_with_their_progress(
    leases: Leases, table: JobTable
) -> None:
    with leases.hold(shard(0)) as first, leases.hold(shard(1)), leases.hold(merge_claim()):
        first.check(7)
        together = ({"worker-0": 7, "worker-1": 0}, {"indexer"})
        until(lambda: together in table.heartbeats, "all are renewed together", 20)
        assert heartbeat_threads() == ["leases"]
    until(lambda: heartbeat_threads() == [], "the heartbeat ends with the last lease", 20)
    with leases.hold(shard(2)):
        until(lambda: table.heartbeats[-1] == ({"worker-2": 0}, set()), "it begins anew", 20)


def test_a_lost_claim_ends_its_own_work_and_no_other(leases: Leases, table: JobTable) -> None:
    with leases.hold(shard(0)) as lost, leases.hold(shard(1)) as valid:
        table.refused.add("worker-0")
        until(raises(lost, LeaseLost), "the loss is told", 20)
        until(lambda: table.heartbeats[-1] == ({"worker-1": 0}, set()), "the other goes on", 20)
        valid.check(1)


def test_a_process_that_is_asked_to_stop_ends_the_work_at_the_next_image(
    leases: Leases, stopping: threading.Event
) -> None:
    with leases.hold(shard(0)) as lease:
        lease.check(1)
        stopping.set()
        with pytest.raises(Stopped):
            lease.check(2)


def test_work_that_hangs_loses_its_lease_although_the_heartbeat_lives(
    table: JobTable, stopping: threading.Event
) -> None:
    leases = Leases(table, LEASE_S, 0.1, stopping, Watchdog())
    moving = threading.Event()

    def move() -> None:
        with leases.hold(shard(1)) as lease:
            done = 0
            while not moving.wait(0.01):
                done += 1
                lease.check(done)

    worker = threading.Thread(target=move)
    worker.start()
    try:
        with leases.hold(shard(0)) as hung:
            until(lambda: hung.lost, "the stall is noticed", 20)
            seen = len(table.heartbeats)
            until(lambda: len(table.heartbeats) > seen + 2, "the other is renewed", 20)
            assert all("worker-0" not in shards for shards, _ in table.heartbeats[seen:])
            with pytest.raises(LeaseLost):
                hung.check(1)  # too late: another worker may have it
    finally:
        moving.set()
        worker.join()


def test_a_merge_is_never_taken_for_hung(table: JobTable, stopping: threading.Event) -> None:
    leases = Leases(table, LEASE_S, 0.02, stopping, Watchdog())
    with leases.hold(merge_claim()) as lease:
        until(lambda: len(table.heartbeats) > 10, "heartbeats", 20)
        lease.check()


@pytest.mark.parametrize("error", [ServerUnavailable("away"), ZeroDivisionError("a bug")])
def test_a_heartbeat_that_fails_ends_neither_the_work_nor_the_heartbeat(
    leases: Leases, table: JobTable, error: Exception
) -> None:
    table.errors = [error, error]
    with leases.hold(shard(0)) as lease:
        until(lambda: len(table.heartbeats) >= 4, "it goes on", 20)
        lease.check(1)
