"""The shards of jobs: planned, claimed by one worker at a time, finished once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from pipeline.errors import Conflict
from pipeline.images.failure import Failure
from pipeline.images.find import ImageFile
from pipeline.store.backend import Row, Transaction
from pipeline.store.database import count_change
from pipeline.store.queries import QUERIES
from pipeline.store.repository import Repository

SHARDS_AT_ONCE = 64  # rows of the plan that are read at a time
LEASE_EXPIRIES = "lease_expiries"  # of the revision that counts them
UNLISTED = -1  # the shard of failures that the listing found


@dataclass(frozen=True)
class Claim:
    """The right to work on a shard until the lease ends."""

    job_id: str
    n: int
    owner: str
    attempts: int
    images: list[ImageFile]  # of a shard to embed
    urls: list[str] = field(default_factory=list)  # of a shard to fetch

    def __str__(self) -> str:
        return f"shard {self.n} of job {self.job_id}"


@dataclass(frozen=True)
class StageTimings:
    """Seconds of work by stage, summed over threads."""

    read_s: float = 0.0
    decode_s: float = 0.0
    cut_out_s: float = 0.0
    embed_s: float = 0.0
    write_s: float = 0.0

    @classmethod
    def from_row(cls, row: Row) -> StageTimings:
        return cls(**{each.name: float(row[each.name]) for each in fields(cls)})


@dataclass(frozen=True)
class DoneShard:
    """A finished shard: `images` and a file of vectors, or `rows` of the base version."""

    n: int
    images: list[ImageFile]
    rows: list[int]
    file: str | None
    sha256: str | None

    @classmethod
    def from_row(cls, row: Row) -> DoneShard:
        items = json.loads(row["items"])
        return cls(
            n=row["n"],
            images=[ImageFile(*item) for item in items] if row["kind"] == "embed" else [],
            rows=items if row["kind"] == "reuse" else [],
            file=row["file"],
            sha256=row["sha256"],
        )


class PlanLost(Conflict):
    """A plan is no longer this process's to write."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"Job {job_id} was ended, or is planned by another process.")


class Shards(Repository):
    """The rows of `shards`, with the failures that came with them."""

    # -- plan ------------------------------------------------------------------------------------

    def add(
        self,
        job_id: str,
        shards: Sequence[tuple[int, str, list[Any]]],
        failures: Sequence[Failure],
        lease_s: float,
        owner: str = "",
    ) -> None:
        """Write a piece of the plan: (n, kind, items). Shards to reuse are done from the start.

        Args:
            owner: of the claim of the plan, if it was claimed.

        Raises:
            PlanLost: another process has taken the plan over, or the job has ended.
        """
        rows = [
            {
                "job_id": job_id,
                "n": n,
                "kind": kind,
                "state": "done" if kind == "reuse" else "pending",
                "items": json.dumps(items),
                "images": len(items),
                "reused": len(items) if kind == "reuse" else 0,
            }
            for n, kind, items in shards
        ]
        with self._database.transaction() as tx:
            lease = {"job_id": job_id, "lease_s": lease_s, "owner": owner}
            if not tx.rows(QUERIES["renew_plan_lease"], lease):
                raise PlanLost(job_id)
            tx.many(QUERIES["add_shard"], rows)
            _add_failures(tx, job_id, UNLISTED, failures)

    def next_window(self, job_id: str, window: int) -> list[int]:
        """Mark pending shards as queued until `window` are on their way; return their numbers."""
        with self._database.transaction() as tx:
            (row,) = tx.rows(QUERIES["count_shards_on_their_way"], {"job_id": job_id})
            rows = tx.rows(
                QUERIES["queue_shards"],
                {"job_id": job_id, "limit": max(0, window - int(row["count"]))},
            )
        return _numbers(rows)

    # -- work ------------------------------------------------------------------------------------

    def claim(
        self,
        job_id: str,
        n: int,
        owner: str,
        lease_s: float,
        kind: Literal["embed", "fetch"] = "embed",
    ) -> Claim | None:
        """Take a shard that nobody works on; None when it is done, taken or its job has ended.

        Args:
            owner: names this claim, and no other.
        """
        with self._database.transaction() as tx:
            rows = tx.rows(
                QUERIES["claim_shard"],
                {"job_id": job_id, "n": n, "owner": owner, "lease_s": lease_s, "kind": kind},
            )
            if not rows:
                return None
            tx.rows(QUERIES["start_job"], {"job_id": job_id})
        items, attempts = json.loads(rows[0]["items"]), rows[0]["attempts"]
        if kind == "fetch":
            return Claim(job_id, n, owner, attempts, [], items)
        return Claim(job_id, n, owner, attempts, [ImageFile(*item) for item in items])

    def finish(
        self,
        claim: Claim,
        *,
        file: str,
        sha256: str,
        embedded: int,
        reused: int,
        failures: Sequence[Failure],
        timings: StageTimings | None = None,
    ) -> bool:
        """Record a shard's result with its failures; False when another worker was first."""
        shard = {"job_id": claim.job_id, "n": claim.n}
        with self._database.transaction() as tx:
            won = tx.rows(
                QUERIES["finish_shard"],
                {**shard, "file": file, "sha256": sha256, "embedded": embedded, "reused": reused},
            )
            if won:
                tx.rows(QUERIES["delete_failures"], shard)
                tx.rows(QUERIES["clear_waiting_reason"], {"job_id": claim.job_id})
                tx.rows(QUERIES["delete_refusals"], {"job_id": claim.job_id})
                _add_failures(tx, claim.job_id, claim.n, failures)
                if timings is not None:
                    tx.rows(QUERIES["store_timings"], {**shard, **asdict(timings)})
        return bool(won)

    def release(self, claim: Claim, *, count_attempt: bool) -> bool:
        """Give a shard back unfinished; False when it is not ours any more."""
        values = {
            "job_id": claim.job_id,
            "n": claim.n,
            "owner": claim.owner,
            "uncounted": 0 if count_attempt else 1,
        }
        return bool(self._write(QUERIES["release_shard"], values))

    def mark_started(self, claim: Claim, position: int) -> int:
        """Note that one image of a suspicious shard runs alone now; return its starts so far."""
        values = {"job_id": claim.job_id, "n": claim.n, "position": position}
        (row,) = self._write(QUERIES["mark_started"], values)
        return int(row["starts"])

    def clear_suspect(self, claim: Claim, position: int) -> None:
        """Clear an image that ran alone and left the worker alive."""
        values = {"job_id": claim.job_id, "n": claim.n, "position": position}
        self._write(QUERIES["clear_suspect"], values)

    def done(self, job_id: str) -> Iterator[DoneShard]:
        """Yield all finished shards of a job, by number, a few in memory at a time."""
        after = -1
        while True:
            values = {"job_id": job_id, "after": after, "limit": SHARDS_AT_ONCE}
            rows = self._read(QUERIES["list_done_shards"], values)
            yield from map(DoneShard.from_row, rows)
            if len(rows) < SHARDS_AT_ONCE:
                return
            after = rows[-1]["n"]

    # -- reconcile -------------------------------------------------------------------------------

    def free_expired(self, job_id: str) -> list[int]:
        """Take shards back from workers whose lease has ended; return their numbers."""
        with self._database.transaction() as tx:
            freed = _numbers(tx.rows(QUERIES["free_expired_shards"], {"job_id": job_id}))
            for _ in freed:
                count_change(tx, LEASE_EXPIRIES)
        return freed

    def count_queued(self, kind: Literal["embed", "fetch"]) -> int:
        """Return how many shards of a kind, of all open jobs, wait in the queue."""
        (row,) = self._read(QUERIES["count_queued_shards"], {"kind": kind})
        return int(row["count"])

    def requeue_lost(self, job_id: str, older_than_s: float) -> list[int]:
        """Queue shards anew whose message nobody took for so long; return their numbers."""
        values = {"job_id": job_id, "older_than_s": older_than_s}
        return _numbers(self._write(QUERIES["requeue_lost_shards"], values))


def _numbers(rows: Sequence[Row]) -> list[int]:
    return sorted(row["n"] for row in rows)


def _add_failures(tx: Transaction, job_id: str, n: int, failures: Sequence[Failure]) -> None:
    rows = [
        {
            "job_id": job_id,
            "n": n,
            "path": _storable(failure.path),
            "stage": failure.stage,
            "reason": _storable(failure.reason),
            "warning": int(failure.warning),
        }
        for failure in failures
    ]
    tx.many(QUERIES["add_failure"], rows)


def _storable(text: str) -> str:
    """Return a text that any database takes.

    PostgreSQL text cannot hold a NUL, which a broken file can bring into a message; no database
    holds half of a surrogate pair, which stands for a byte in a name that is not UTF-8.
    """
    return text.replace("\0", "").encode("utf-8", "backslashreplace").decode()
