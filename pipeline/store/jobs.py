"""The ledger of rebuilds: every claim, lease and result is one conditional statement.

Redis carries hints only. What is to be done, by whom and until when stands here, so a message may
be lost or doubled and a process killed at any instant: the next look at these rows goes on.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.embed.fingerprint import Fingerprint
from pipeline.errors import WrongUse
from pipeline.images.failure import Failure
from pipeline.images.find import ImageFile
from pipeline.store.database import Database, Row, Transaction

OPEN_STATES = ("planned", "running", "merging")
SHARDS_AT_ONCE = 64  # rows of the plan that are read at a time
# Not `state <> 'done'`: that reads through all rows that are, after each shard.
_LEFT = "('pending', 'queued', 'running')"
_OPEN = "('planned', 'running', 'merging')"


@dataclass(frozen=True)
class Job:
    """One rebuild as the ledger has it."""

    id: str
    root: Path
    state: str
    plan_done: bool
    full: bool
    save_preprocessed: bool
    fingerprint: str | None
    fingerprint_summary: str | None
    base_version: str | None
    index_version: str | None
    error: str | None
    created_at: float
    finished_at: float | None

    @classmethod
    def from_row(cls, row: Row) -> Job:
        options = json.loads(row["options"])
        return cls(
            id=row["id"],
            root=Path(row["root"]),
            state=row["state"],
            plan_done=bool(row["plan_done"]),
            full=bool(options["full"]),
            save_preprocessed=bool(options["save_preprocessed"]),
            fingerprint=row["fingerprint"],
            fingerprint_summary=row["fingerprint_summary"],
            base_version=row["base_version"],
            index_version=row["index_version"],
            error=row["error"],
            created_at=row["created_at"],
            finished_at=row["finished_at"],
        )

    @property
    def open(self) -> bool:
        return self.state in OPEN_STATES


@dataclass(frozen=True)
class Progress:
    """Counts over a job's shards; `looked_at` moves within a shard, the others when it ends."""

    images: int
    looked_at: int
    embedded: int
    reused: int
    skipped: int
    warnings: int
    shards: int
    shards_done: int


@dataclass(frozen=True)
class Claim:
    """The right to work on a shard until the lease ends."""

    job_id: str
    n: int
    owner: str
    attempts: int
    images: list[ImageFile]


@dataclass(frozen=True)
class DoneShard:
    """A finished shard: `images` and a file of vectors, or `rows` of the base version."""

    n: int
    images: list[ImageFile]
    rows: list[int]
    file: str | None
    sha256: str | None


class Jobs:
    """All SQL about rebuilds."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # -- plan ------------------------------------------------------------------------------------

    def create(
        self,
        root: Path,
        *,
        full: bool,
        save_preprocessed: bool,
        fingerprint: Fingerprint | None,
        base_version: str | None,
        lease_s: float,
    ) -> str:
        """Open a job whose plan is still being written; return its id, sortable by time."""
        now = time.time()
        job_id = time.strftime("%Y%m%d-%H%M%S-", time.gmtime(now)) + secrets.token_hex(2)
        options = json.dumps({"full": full, "save_preprocessed": save_preprocessed})
        with self._database.transaction() as tx:
            tx.rows(
                "INSERT INTO jobs (id, root, state, options, fingerprint, fingerprint_summary,"
                " base_version, lease_until, created_at)"
                " VALUES (?, ?, 'planned', ?, ?, ?, ?, ?, ?)",
                (
                    job_id,
                    str(root),
                    options,
                    fingerprint.id if fingerprint else None,
                    fingerprint.summary if fingerprint else None,
                    base_version,
                    now + lease_s,
                    now,
                ),
            )
        return job_id

    def add_shards(
        self,
        job_id: str,
        shards: Sequence[tuple[int, str, list[Any]]],
        failures: Sequence[Failure],
        lease_s: float,
    ) -> None:
        """Write a piece of the plan: (n, kind, items); reuse shards are born done."""
        rows = []
        for n, kind, items in shards:
            reused = len(items) if kind == "reuse" else 0
            state = "done" if kind == "reuse" else "pending"
            rows.append((job_id, n, kind, state, json.dumps(items), len(items), reused, reused))
        with self._database.transaction() as tx:
            tx.many(
                "INSERT INTO shards (job_id, n, kind, state, items, images, progress, reused)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            _add_failures(tx, job_id, -1, failures)
            tx.rows("UPDATE jobs SET lease_until = ? WHERE id = ?", (time.time() + lease_s, job_id))

    def finish_plan(self, job_id: str) -> None:
        """Release the plan to the workers."""
        with self._database.transaction() as tx:
            tx.rows("UPDATE jobs SET plan_done = 1, lease_until = 0 WHERE id = ?", (job_id,))

    # -- look ------------------------------------------------------------------------------------

    def get(self, job_id: str) -> Job:
        """Return a job.

        Raises:
            WrongUse: there is none with this id.
        """
        with self._database.transaction(read_only=True) as tx:
            rows = tx.rows("SELECT * FROM jobs WHERE id = ?", (job_id,))
        if not rows:
            raise WrongUse(f"There is no job {job_id!r}: 'imgrec jobs' lists them.")
        return Job.from_row(rows[0])

    def newest(self, limit: int = 50) -> list[Job]:
        """Return the newest jobs first."""
        with self._database.transaction(read_only=True) as tx:
            rows = tx.rows("SELECT * FROM jobs ORDER BY created_at DESC, id DESC LIMIT ?", (limit,))
        return [Job.from_row(row) for row in rows]

    def progress(self, job_id: str) -> Progress:
        """Count a job's images by what became of them."""
        with self._database.transaction(read_only=True) as tx:
            shards = tx.rows(
                "SELECT COUNT(*) AS shards, COALESCE(SUM(images), 0) AS images,"
                " COALESCE(SUM(progress), 0) AS looked_at,"
                " COALESCE(SUM(embedded), 0) AS embedded, COALESCE(SUM(reused), 0) AS reused,"
                " COALESCE(SUM(CASE WHEN state = 'done' THEN 1 ELSE 0 END), 0) AS shards_done"
                " FROM shards WHERE job_id = ?",
                (job_id,),
            )[0]
            failures = tx.rows(
                "SELECT COALESCE(SUM(1 - warning), 0) AS skipped,"
                " COALESCE(SUM(warning), 0) AS warnings,"
                " COALESCE(SUM(CASE WHEN n = -1 THEN 1 ELSE 0 END), 0) AS unlisted"
                " FROM failures WHERE job_id = ?",
                (job_id,),
            )[0]
        unlisted = int(failures["unlisted"])  # found by the listing, in no shard
        return Progress(
            images=int(shards["images"]) + unlisted,
            looked_at=int(shards["looked_at"]) + unlisted,
            embedded=int(shards["embedded"]),
            reused=int(shards["reused"]),
            skipped=int(failures["skipped"]),
            warnings=int(failures["warnings"]),
            shards=int(shards["shards"]),
            shards_done=int(shards["shards_done"]),
        )

    def failures(self, job_id: str) -> list[Failure]:
        """Return a job's failures and warnings, by path."""
        with self._database.transaction(read_only=True) as tx:
            rows = tx.rows(
                "SELECT path, stage, reason, warning FROM failures WHERE job_id = ?"
                " ORDER BY path, warning",
                (job_id,),
            )
        return [
            Failure(row["path"], row["stage"], row["reason"], bool(row["warning"])) for row in rows
        ]

    def open_jobs(self) -> list[Job]:
        """Return the jobs that have not ended, oldest first."""
        with self._database.transaction(read_only=True) as tx:
            rows = tx.rows(f"SELECT * FROM jobs WHERE state IN {_OPEN} ORDER BY created_at, id")
        return [Job.from_row(row) for row in rows]

    # -- embed -----------------------------------------------------------------------------------

    def next_window(self, job_id: str, window: int) -> list[int]:
        """Mark pending shards as queued until `window` are on their way; return their numbers."""
        with self._database.transaction() as tx:
            waiting = tx.rows(
                "SELECT COUNT(*) AS count FROM shards WHERE job_id = ?"
                " AND state IN ('queued', 'running')",
                (job_id,),
            )[0]["count"]
            rows = tx.rows(
                "UPDATE shards SET state = 'queued', queued_at = ? WHERE job_id = ?"
                " AND state = 'pending' AND n IN (SELECT n FROM shards WHERE job_id = ?"
                " AND state = 'pending' ORDER BY n LIMIT ?) RETURNING n",
                (time.time(), job_id, job_id, max(0, window - waiting)),
            )
        return sorted(row["n"] for row in rows)

    def claim_shard(self, job_id: str, n: int, owner: str, lease_s: float) -> Claim | None:
        """Take a shard that nobody works on; None when it is done, taken or its job has ended."""
        now = time.time()
        with self._database.transaction() as tx:
            rows = tx.rows(
                "UPDATE shards SET state = 'running', owner = ?, lease_until = ?,"
                " attempts = attempts + 1, progress = 0"
                " WHERE job_id = ? AND n = ? AND (state IN ('pending', 'queued')"
                " OR (state = 'running' AND lease_until < ?))"
                f" AND (SELECT state FROM jobs WHERE id = ?) IN {_OPEN}"
                " RETURNING items, attempts",
                (owner, now + lease_s, job_id, n, now, job_id),
            )
            if not rows:
                return None
            tx.rows(
                "UPDATE jobs SET state = 'running' WHERE id = ? AND state = 'planned'", (job_id,)
            )
        images = [ImageFile(*item) for item in json.loads(rows[0]["items"])]
        return Claim(job_id, n, owner, rows[0]["attempts"], images)

    def renew_lease(self, claim: Claim, progress: int, lease_s: float) -> bool:
        """Extend a lease and note how far the work is; False when the claim or the job is gone."""
        with self._database.transaction() as tx:
            return bool(
                tx.rows(
                    "UPDATE shards SET lease_until = ?, progress = ? WHERE job_id = ? AND n = ?"
                    " AND state = 'running' AND owner = ?"
                    f" AND (SELECT state FROM jobs WHERE id = ?) IN {_OPEN} RETURNING n",
                    (
                        time.time() + lease_s,
                        progress,
                        claim.job_id,
                        claim.n,
                        claim.owner,
                        claim.job_id,
                    ),
                )
            )

    def finish_shard(
        self,
        claim: Claim,
        *,
        file: str,
        sha256: str,
        embedded: int,
        reused: int,
        failures: Sequence[Failure],
    ) -> bool:
        """Record a shard's result with its failures; False when another worker was first."""
        with self._database.transaction() as tx:
            won = tx.rows(
                "UPDATE shards SET state = 'done', progress = images, file = ?, sha256 = ?,"
                " embedded = ?, reused = ?, lease_until = 0 WHERE job_id = ? AND n = ?"
                " AND state <> 'done'"
                f" AND (SELECT state FROM jobs WHERE id = ?) IN {_OPEN} RETURNING n",
                (file, sha256, embedded, reused, claim.job_id, claim.n, claim.job_id),
            )
            if won:
                tx.rows("DELETE FROM failures WHERE job_id = ? AND n = ?", (claim.job_id, claim.n))
                tx.rows(
                    "UPDATE jobs SET error = NULL WHERE id = ? AND error IS NOT NULL",
                    (claim.job_id,),
                )
                _add_failures(tx, claim.job_id, claim.n, failures)
        return bool(won)

    def release_shard(self, claim: Claim, *, count_attempt: bool) -> None:
        """Give a shard back unfinished, as a worker does that is asked to stop."""
        with self._database.transaction() as tx:
            tx.rows(
                "UPDATE shards SET state = 'pending', lease_until = 0, progress = 0,"
                " attempts = attempts - ? WHERE job_id = ? AND n = ? AND owner = ?"
                " AND state = 'running'",
                (0 if count_attempt else 1, claim.job_id, claim.n, claim.owner),
            )

    def reopen_shard(self, job_id: str, n: int) -> None:
        """Have a shard done again whose file did not survive; the job goes back to running."""
        with self._database.transaction() as tx:
            tx.rows(
                "UPDATE shards SET state = 'pending', file = NULL, sha256 = NULL, progress = 0,"
                " embedded = 0, reused = 0 WHERE job_id = ? AND n = ? AND kind = 'embed'"
                " AND state = 'done'",
                (job_id, n),
            )
            tx.rows(
                "UPDATE jobs SET state = 'running', lease_until = 0 WHERE id = ?"
                " AND state = 'merging'",
                (job_id,),
            )

    def mark_started(self, claim: Claim, position: int) -> int:
        """Note that one image of a suspicious shard runs alone now; return its starts so far."""
        with self._database.transaction() as tx:
            rows = tx.rows(
                "INSERT INTO suspects VALUES (?, ?, ?, 1) ON CONFLICT (job_id, n, position)"
                " DO UPDATE SET starts = suspects.starts + 1 RETURNING starts",
                (claim.job_id, claim.n, position),
            )
        return int(rows[0]["starts"])

    def clear_suspect(self, claim: Claim, position: int) -> None:
        """Clear an image that ran alone and left the worker alive."""
        with self._database.transaction() as tx:
            tx.rows(
                "DELETE FROM suspects WHERE job_id = ? AND n = ? AND position = ?",
                (claim.job_id, claim.n, position),
            )

    def set_waiting_reason(self, job_id: str, trouble: str) -> None:
        """Tell those who watch what an open job waits for; its next finished shard clears it."""
        with self._database.transaction() as tx:
            tx.rows(
                f"UPDATE jobs SET error = ? WHERE id = ? AND state IN {_OPEN}", (trouble, job_id)
            )

    def set_fingerprint(self, job_id: str, fingerprint: Fingerprint) -> Job:
        """Set the job's fingerprint if it has none yet; return the job as it stands then."""
        with self._database.transaction() as tx:
            tx.rows(
                "UPDATE jobs SET fingerprint = ?, fingerprint_summary = ? WHERE id = ?"
                " AND fingerprint IS NULL",
                (fingerprint.id, fingerprint.summary, job_id),
            )
        return self.get(job_id)

    # -- merge -----------------------------------------------------------------------------------

    def ready_to_merge(self, job_id: str) -> bool:
        """Tell whether every shard of a planned job is done and no indexer holds it."""
        with self._database.transaction(read_only=True) as tx:
            return bool(
                tx.rows(
                    f"SELECT id FROM jobs WHERE id = ? AND plan_done = 1 AND state IN {_OPEN}"
                    " AND lease_until < ? AND NOT EXISTS (SELECT 1 FROM shards"
                    f" WHERE job_id = ? AND state IN {_LEFT})",
                    (job_id, time.time(), job_id),
                )
            )

    def claim_merge(self, job_id: str, lease_s: float) -> Job | None:
        """Take the merge of a job whose shards are all done; None when there is nothing to do."""
        now = time.time()
        with self._database.transaction() as tx:
            rows = tx.rows(
                "UPDATE jobs SET state = 'merging', lease_until = ? WHERE id = ?"
                f" AND plan_done = 1 AND state IN {_OPEN} AND lease_until < ?"
                f" AND NOT EXISTS (SELECT 1 FROM shards WHERE job_id = ? AND state IN {_LEFT})"
                " RETURNING *",
                (now + lease_s, job_id, now, job_id),
            )
        return Job.from_row(rows[0]) if rows else None

    def renew_merge_lease(self, job_id: str, lease_s: float) -> bool:
        """Extend the indexer's lease; False when the job was cancelled meanwhile."""
        with self._database.transaction() as tx:
            return bool(
                tx.rows(
                    "UPDATE jobs SET lease_until = ? WHERE id = ? AND state = 'merging'"
                    " RETURNING id",
                    (time.time() + lease_s, job_id),
                )
            )

    def done_shards(self, job_id: str) -> Iterator[DoneShard]:
        """Yield all shards of a job, by number, a few in memory at a time."""
        after = -1
        while True:
            with self._database.transaction(read_only=True) as tx:
                rows = tx.rows(
                    "SELECT n, kind, items, file, sha256 FROM shards WHERE job_id = ?"
                    " AND state = 'done' AND n > ? ORDER BY n LIMIT ?",
                    (job_id, after, SHARDS_AT_ONCE),
                )
            for row in rows:
                items = json.loads(row["items"])
                images = [ImageFile(*item) for item in items] if row["kind"] == "embed" else []
                reused = items if row["kind"] == "reuse" else []
                yield DoneShard(row["n"], images, reused, row["file"], row["sha256"])
            if len(rows) < SHARDS_AT_ONCE:
                return
            after = rows[-1]["n"]

    def referenced_versions(self) -> set[str]:
        """Return the versions that open jobs still reuse vectors of."""
        with self._database.transaction(read_only=True) as tx:
            rows = tx.rows(
                f"SELECT DISTINCT base_version FROM jobs WHERE state IN {_OPEN}"
                " AND base_version IS NOT NULL"
            )
        return {row["base_version"] for row in rows}

    # -- end -------------------------------------------------------------------------------------

    def publish(self, job_id: str, version: str) -> bool:
        """Record what was published; False when the job had been cancelled or had failed before.

        It is recorded as published in either case. The swap of the pointer is the point of no
        return: queries are answered from the version already, and the one before it may be pruned,
        so a rollback could leave no index at all. What the user reads has to say what is live.
        """
        if self._end(job_id, "published", version, None):
            return True
        with self._database.transaction() as tx:
            return not tx.rows(
                "UPDATE jobs SET state = 'published', index_version = ?, error = NULL"
                " WHERE id = ? AND state IN ('cancelled', 'failed') RETURNING id",
                (version, job_id),
            )

    def fail(self, job_id: str, error: str) -> bool:
        """End a job with the sentence that explains why; False when it had ended before."""
        return self._end(job_id, "failed", None, error)

    def cancel(self, job_id: str) -> bool:
        """Stop a job; workers notice at their next beat. False when it had ended before."""
        return self._end(job_id, "cancelled", None, None)

    def _end(self, job_id: str, state: str, version: str | None, error: str | None) -> bool:
        with self._database.transaction() as tx:
            return bool(
                tx.rows(
                    "UPDATE jobs SET state = ?, index_version = ?, error = ?, finished_at = ?,"
                    f" lease_until = 0 WHERE id = ? AND state IN {_OPEN} RETURNING id",
                    (state, version, error, time.time(), job_id),
                )
            )

    def drop_items(self) -> None:
        """Drop the lists of images of jobs that have ended; their counts and failures stay."""
        with self._database.transaction() as tx:
            tx.rows(
                "UPDATE shards SET items = '[]' WHERE items <> '[]' AND job_id IN"
                f" (SELECT id FROM jobs WHERE state NOT IN {_OPEN})"
            )

    # -- reconcile -------------------------------------------------------------------------------

    def free_expired_shards(self, job_id: str) -> list[int]:
        """Take shards back from workers whose lease has ended; return their numbers."""
        with self._database.transaction() as tx:
            rows = tx.rows(
                "UPDATE shards SET state = 'pending', progress = 0 WHERE job_id = ?"
                " AND state = 'running' AND lease_until < ? RETURNING n",
                (job_id, time.time()),
            )
        return sorted(row["n"] for row in rows)

    def lost_messages(self, job_id: str, older_than_s: float) -> list[int]:
        """Return queued shards whose message nobody took for so long, and restart their clock."""
        now = time.time()
        with self._database.transaction() as tx:
            rows = tx.rows(
                "UPDATE shards SET queued_at = ? WHERE job_id = ? AND state = 'queued'"
                " AND queued_at < ? RETURNING n",
                (now, job_id, now - older_than_s),
            )
        return sorted(row["n"] for row in rows)

    def fail_abandoned_plans(self) -> None:
        """End jobs whose planner died before the plan was whole."""
        with self._database.transaction() as tx:
            tx.rows(
                "UPDATE jobs SET state = 'failed', finished_at = ?, error = ? WHERE plan_done = 0"
                f" AND state IN {_OPEN} AND lease_until < ?",
                (
                    time.time(),
                    "The command that listed the folder was interrupted: run it again.",
                    time.time(),
                ),
            )


def _add_failures(tx: Transaction, job_id: str, n: int, failures: Sequence[Failure]) -> None:
    tx.many(
        "INSERT INTO failures (job_id, n, path, stage, reason, warning)"
        " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [
            # PostgreSQL text cannot hold a NUL, which a broken file can bring into a message.
            (job_id, n, f.path, f.stage, f.reason.replace("\0", ""), int(f.warning))
            for f in failures
        ],
    )
