"""Keep this process's leases alive while their work moves, and tell the work when to stop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import ImgrecError
from pipeline.store.job import MergeClaim
from pipeline.store.jobs import Jobs
from pipeline.store.shards import Claim
from workers.watchdog import Deadline, Watchdog

log = logging.getLogger(__name__)

HEARTBEATS_PER_LEASE = 5
HEARTBEAT_S = 3.0  # at most: the heartbeat also stores the progress that people watch


class Stopped(Exception):
    """The process was asked to end; the work goes back to the queue."""


class LeaseLost(Exception):
    """The job has ended or another worker has the work; what was done here is not needed."""


class Lease:
    """The lease of one claim, as its work sees it."""

    def __init__(
        self, claim: Claim | MergeClaim, deadline: Deadline, stopping: threading.Event
    ) -> None:
        self.claim = claim
        self.deadline = deadline
        self.progress = 0
        self.lost = False
        self._stopping = stopping

    def check(self, progress: int = 0) -> None:
        """Note progress; end the work where it must end.

        Raises:
            Stopped: the process was asked to end. LeaseLost: the job or the claim is gone.
        """
        if progress != self.progress:
            self.progress = progress
            self.deadline.touch()
        if self.lost:
            raise LeaseLost
        if self._stopping.is_set():
            raise Stopped


class Leases:
    """All leases of a process; one thread renews them in one statement every few seconds.

    Args:
        hung_after_s: a shard without progress for so long loses its lease.
        stopping: set when the process was asked to end.
        watchdog: watches the work.
    """

    def __init__(
        self,
        jobs: Jobs,
        lease_s: float,
        hung_after_s: float,
        stopping: threading.Event,
        watchdog: Watchdog,
    ) -> None:
        self._jobs = jobs
        self._lease_s = lease_s
        self._hung_after_s = hung_after_s
        self._stopping = stopping
        self._watchdog = watchdog
        self._leases: dict[str, Lease] = {}
        self._changed = threading.Condition()
        self._heartbeat: threading.Thread | None = None  # lives while there are leases

    @contextmanager
    def hold(self, claim: Claim | MergeClaim) -> Iterator[Lease]:
        """Renew the lease of a claim until the block ends, as long as the work moves."""
        # A merge has no natural progress to watch, so only the process's death ends its lease.
        hung_after_s = self._hung_after_s if isinstance(claim, Claim) else float("inf")
        with self._watchdog.deadline(str(claim), hung_after_s) as deadline:
            lease = Lease(claim, deadline, self._stopping)
            with self._changed:
                self._leases[claim.owner] = lease
                if self._heartbeat is None:
                    self._heartbeat = threading.Thread(target=self._run, name="leases", daemon=True)
                    self._heartbeat.start()
            try:
                yield lease
            finally:
                with self._changed:
                    del self._leases[claim.owner]
                    self._changed.notify()

    def _run(self) -> None:
        pause_s = min(HEARTBEAT_S, self._lease_s / HEARTBEATS_PER_LEASE)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._leases, pause_s)
                if not self._leases:
                    self._heartbeat = None
                    return
                leases = [lease for lease in self._leases.values() if not lease.lost]
            try:
                self._renew(leases)
            except ImgrecError as error:  # a short outage of the database; leases may outlive it
                log.warning("The leases could not be renewed: %s", error)
            except Exception:
                log.exception("The leases could not be renewed; trying again.")

    def _renew(self, leases: list[Lease]) -> None:
        shards, merges = {}, []
        for lease in leases:
            deadline = lease.deadline
            if deadline.idle_s > deadline.limit_s:
                # A hung shard must lose its lease although this thread still lives.
                log.error("No progress of %s for %.0f s.", lease.claim, deadline.limit_s)
                lease.lost = True
            elif isinstance(lease.claim, Claim):
                shards[lease.claim.owner] = lease.progress
            else:
                merges.append(lease.claim.owner)
        if not shards and not merges:
            return
        valid = self._jobs.renew_leases(shards, merges, self._lease_s)
        for lease in leases:
            if lease.claim.owner not in valid:
                lease.lost = True
