"""The job table: rebuilds from their plan to their end.

Redis carries hints only. What is to be done, by whom and until when is stored here, and every
transition is one conditional statement. A message may be lost or doubled and a process killed at
any instant: whoever looks at these rows next continues from them.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from pipeline.embed.fingerprint import Fingerprint
from pipeline.errors import Conflict, ServerUnavailable, UnknownJob, WrongUse
from pipeline.images.failure import Failure
from pipeline.store.backend import Row, placeholders
from pipeline.store.database import UNICODE, Database
from pipeline.store.job import (
    FOLDER_FORM,
    AlreadyRequested,
    Job,
    JobRequest,
    MergeClaim,
    PlanClaim,
    Progress,
    Refusals,
)
from pipeline.store.queries import QUERIES
from pipeline.store.repository import Repository
from pipeline.store.shards import UNLISTED, PlanLost, Shards, StageTimings

Written = TypeVar("Written")
# What belongs to a job; rows that refer to others come first.
TABLES = ("suspects", "shard_timings", "failures", "shards", "refusals", "job_requests", "webhooks")


class Jobs(Repository):
    """The rows of `jobs`; those of `shards` are below `shards`."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.shards = Shards(database)

    @property
    def database(self) -> Database:
        """The database that holds the job table, and what belongs to it."""
        return self._database

    # -- plan ------------------------------------------------------------------------------------

    def create(
        self,
        root: str | Path,
        *,
        full: bool,
        save_preprocessed: bool,
        fingerprint: Fingerprint | None,
        base_version: str | None,
        lease_s: float,
        request: JobRequest | None = None,
        webhook_url: str | None = None,
        form: int = FOLDER_FORM,
    ) -> str:
        """Open a job whose plan is still being written; return its id.

        Args:
            form: of the options; FEED_FORM for a job that fetches.
            request: creates one job, however often it is sent within a day.
            webhook_url: is told when the job has ended.

        Raises:
            AlreadyRequested: the request has created its job.
            Conflict: its key was used for another request.
            WrongUse: it is the first one of a database that cannot hold every file name.
        """
        options = json.dumps({"form": form, "full": full, "save_preprocessed": save_preprocessed})
        with self._database.transaction() as tx:
            (created,) = tx.rows(QUERIES["next_job_sequence"])
            # An old database of another encoding has served so far, and may go on.
            if created["sequence"] == 1 and tx.encoding() not in UNICODE:
                raise WrongUse(
                    f"The database has the encoding {tx.encoding()}, which cannot hold every file "
                    "name: name one in DATABASE_URL that was created with "
                    "CREATE DATABASE NAME ENCODING 'UTF8' TEMPLATE template0."
                )
            at = time.strftime("%Y%m%d-%H%M%S", time.gmtime(created["now"]))
            job_id = f"{at}-{secrets.token_hex(4)}"
            tx.rows(
                QUERIES["create_job"],
                {
                    "id": job_id,
                    "sequence": created["sequence"],
                    "root": str(root),
                    "options": options,
                    "fingerprint": fingerprint.id if fingerprint else None,
                    "fingerprint_summary": fingerprint.summary if fingerprint else None,
                    "base_version": base_version,
                    "now": created["now"],
                    "lease_s": lease_s,
                },
            )
            if request is not None:
                tx.rows(QUERIES["forget_job_requests"])
                values = {**asdict(request), "job_id": job_id}
                if not tx.rows(QUERIES["add_job_request"], values):
                    (earlier,) = tx.rows(QUERIES["get_job_request"], values)
                    raise _repeated(request, earlier)  # and nothing is created
            if webhook_url:
                tx.rows(QUERIES["add_webhook"], {"job_id": job_id, "url": webhook_url})
        return job_id

    def require_new(self, request: JobRequest) -> None:
        """Check that a request has not created a job yet.

        Raises:
            AlreadyRequested, Conflict: see `create`.
        """
        rows = self._read(QUERIES["get_job_request"], asdict(request))
        if rows:
            raise _repeated(request, rows[0])

    def finish_plan(
        self, job_id: str, left_out: dict[str, int] | None = None, owner: str = ""
    ) -> None:
        """Release the plan to the workers.

        Args:
            left_out: how many files and folders the listing left out on purpose, by reason.
            owner: of the claim of the plan, if it was claimed.

        Raises:
            PlanLost: another process has taken the plan over, or the job has ended.
        """
        with self._database.transaction() as tx:
            (row,) = tx.rows(QUERIES["get_job"], {"job_id": job_id})
            options = json.loads(row["options"])
            if left_out:
                options["left_out"] = left_out
            values = {"job_id": job_id, "options": json.dumps(options), "owner": owner}
            if not tx.rows(QUERIES["finish_plan"], values):
                raise PlanLost(job_id)

    def start_fetching(self, job_id: str) -> None:
        """Release the addresses of a feed to the fetch workers; the plan of the images follows."""
        self._write(QUERIES["start_fetching"], {"job_id": job_id})

    def ready_to_plan(self, job_id: str) -> bool:
        """Tell whether everything of a feed was fetched and nobody plans the images yet."""
        return bool(self._read(QUERIES["ready_to_plan"], {"job_id": job_id}))

    def claim_plan(self, job_id: str, owner: str, lease_s: float) -> PlanClaim | None:
        """Take the planning of a feed's images, from its beginning; None if it is not to be done.

        What a planner that died has written is deleted.
        """
        values = {"job_id": job_id, "owner": owner, "lease_s": lease_s}
        with self._database.transaction() as tx:
            rows = tx.rows(QUERIES["claim_plan"], values)
            if not rows:
                return None
            tx.rows(QUERIES["forget_plan"], {"job_id": job_id})
            tx.rows(QUERIES["delete_failures"], {"job_id": job_id, "n": UNLISTED})
            (row,) = tx.rows(QUERIES["count_shards"], {"job_id": job_id})
        job = Job.from_row(rows[0])
        return PlanClaim(job, owner, int(row["count"]), rows[0]["merge_attempts"])

    def release_plan(self, claim: PlanClaim, *, count_attempt: bool) -> bool:
        """Give the planning back unfinished; False when it is not ours any more."""
        uncounted = 0 if count_attempt else 1
        values = {"job_id": claim.job.id, "owner": claim.owner, "uncounted": uncounted}
        return bool(self._write(QUERIES["release_plan"], values))

    def set_base_version(self, claim: PlanClaim, version: str) -> None:
        """Name the version whose vectors the plan reuses.

        Raises:
            PlanLost: another process has taken the plan over, or the job has ended.
        """
        values = {"job_id": claim.job.id, "base_version": version, "owner": claim.owner}
        if not self._write(QUERIES["set_base_version"], values):
            raise PlanLost(claim.job.id)

    def any_open_feed(self) -> bool:
        """Tell whether an open job is about the images of a feed."""
        return bool(self._read(QUERIES["any_open_feed"]))

    def any_fetching(self) -> bool:
        """Tell whether an open job fetches."""
        return bool(self._read(QUERIES["any_fetching"]))

    def fail_abandoned_plans(self) -> None:
        """End jobs whose planner died before the plan was whole."""
        error = "The command that listed the folder was interrupted: run it again."
        self._write(QUERIES["fail_abandoned_plans"], {"error": error})

    # -- look ------------------------------------------------------------------------------------

    def get(self, job_id: str) -> Job:
        """Return a job.

        Raises:
            UnknownJob: there is none with this id.
        """
        rows = self._read(QUERIES["get_job"], {"job_id": job_id})
        if not rows:
            raise UnknownJob(
                f"There is no job {job_id!r}: 'imgrec jobs --limit 1000' lists the newest."
            )
        return Job.from_row(rows[0])

    def list_with_progress(self, limit: int = 50) -> list[tuple[Job, Progress]]:
        """Return the newest jobs first, each with its counts."""
        rows = self._read(QUERIES["list_jobs_with_progress"], {"limit": limit})
        return [(Job.from_row(row), Progress.from_row(row)) for row in rows]

    def open_jobs(self) -> list[Job]:
        """Return the jobs that have not ended, oldest first."""
        return [Job.from_row(row) for row in self._read(QUERIES["list_open_jobs"])]

    def progress(self, job_id: str) -> Progress:
        """Count a job's images by what became of them."""
        (row,) = self._read(QUERIES["get_progress"], {"job_id": job_id})
        return Progress.from_row(row)

    def failures(self, job_id: str) -> list[Failure]:
        """Return a job's failures and warnings, by path."""
        rows = self._read(QUERIES["list_failures"], {"job_id": job_id})
        return [
            Failure(row["path"], row["stage"], row["reason"], bool(row["warning"])) for row in rows
        ]

    def image_warnings(self, job_id: str) -> dict[str, Failure]:
        """Return by path what a job warned of in the images that it read; {} for a deleted job."""
        return {
            failure.path: failure
            for failure in self.failures(job_id)
            # The listing warns by itself, each time; so does what was fetched.
            if failure.warning and failure.stage not in ("find", "fetch")
        }

    def timings(self, job_id: str) -> StageTimings:
        """Sum the time of a job's finished shards by stage."""
        (row,) = self._read(QUERIES["sum_timings"], {"job_id": job_id})
        return StageTimings.from_row(row)

    def known(self, job_ids: Collection[str]) -> set[str]:
        """Return those of some ids that are jobs of this database."""
        ids = list(job_ids)
        if not ids:
            return set()
        rows = self._read(f"SELECT id FROM jobs WHERE id IN ({placeholders(ids)})", ids)
        return {row["id"] for row in rows}

    def created_after(self, job_id: str) -> dict[str, str | None]:
        """Return the jobs that were created after this one: id, and the version it published."""
        rows = self._read(QUERIES["list_jobs_created_after"], {"job_id": job_id})
        return {row["id"]: row["index_version"] for row in rows}

    def referenced_versions(self) -> set[str]:
        """Return the versions that open jobs still reuse vectors of."""
        rows = self._read(QUERIES["list_referenced_versions"])
        return {row["base_version"] for row in rows}

    def statistics(self) -> dict[str, dict[str, int]]:
        """Count, over all jobs: jobs by state, images by outcome, failures by stage."""
        with self._database.transaction(read_only=True) as tx:
            states = tx.rows("SELECT state AS name, COUNT(*) AS n FROM jobs GROUP BY state")
            (images,) = tx.rows(QUERIES["count_images"])
            stages = tx.rows(
                "SELECT stage AS name, COUNT(*) AS n FROM failures WHERE warning = 0 GROUP BY stage"
            )
        return {
            "jobs": {row["name"]: int(row["n"]) for row in states},
            "images": {name: int(count) for name, count in images.items()},
            "failures": {row["name"]: int(row["n"]) for row in stages},
        }

    # -- work ------------------------------------------------------------------------------------

    def set_fingerprint(self, job_id: str, fingerprint: Fingerprint) -> Job:
        """Set the job's fingerprint if it has none yet; return the job as it stands then."""
        with self._database.transaction() as tx:
            tx.rows(
                QUERIES["set_fingerprint"],
                {
                    "job_id": job_id,
                    "fingerprint": fingerprint.id,
                    "summary": fingerprint.summary,
                },
            )
            (row,) = tx.rows(QUERIES["get_job"], {"job_id": job_id})
        return Job.from_row(row)

    def set_waiting_reason(self, job_id: str, reason: str) -> None:
        """Tell those who watch what an open job waits for; its next finished shard clears it."""
        sql = QUERIES["set_waiting_reason"]
        _with_any_text(lambda text: self._write(sql, {"job_id": job_id, "reason": text}), reason)

    def add_refusal(self, job_id: str, worker: str, reason: str, within_s: float) -> Refusals:
        """Note that a worker cannot do a job, and tell those who watch.

        Args:
            worker: its name, as Celery knows it.
            within_s: workers whose last refusal is older are not counted: they may have gone.
        """
        values = {"job_id": job_id, "worker": worker}
        with self._database.transaction() as tx:
            tx.rows(QUERIES["add_refusal"], values)
            rows = tx.rows(QUERIES["get_refusals"], {"job_id": job_id, "within_s": within_s})
        self.set_waiting_reason(job_id, reason)
        return Refusals(
            max(float(row["since_s"]) for row in rows),
            frozenset(row["worker"] for row in rows if row["counts"]),
        )

    def fail_refused(self, job_id: str, error: str) -> bool:
        """End a job that no worker can do; False when one is at work on it, or it has ended."""
        sql = QUERIES["fail_refused_job"]
        return bool(
            _with_any_text(lambda text: self._write(sql, {"job_id": job_id, "error": text}), error)
        )

    def renew_leases(
        self, shards: Mapping[str, int], merges: Collection[str], lease_s: float
    ) -> set[str]:
        """Extend all leases of a process and store its progress; return the owners still valid.

        An owner is missing from the answer when its claim or its job is gone.

        Args:
            shards: the images looked at, by the owner of a shard's claim.
            merges: the owners of claims of merges.
        """
        renewals = [
            (QUERIES["renew_shard_leases"], shards),
            (QUERIES["renew_merge_leases"], dict.fromkeys(merges, 0)),
        ]
        valid: set[str] = set()
        with self._database.transaction() as tx:
            for sql, progress in renewals:
                if progress:
                    values = {"lease_s": lease_s, "progress_by_owner": json.dumps(progress)}
                    valid |= {row["owner"] for row in tx.rows(sql, values)}
        return valid

    def ready_to_merge(self, job_id: str) -> bool:
        """Tell whether every shard of a planned job is done and no indexer holds it."""
        return bool(self._read(QUERIES["ready_to_merge"], {"job_id": job_id}))

    def claim_merge(self, job_id: str, owner: str, lease_s: float) -> MergeClaim | None:
        """Take the merge of a job whose shards are all done; None when there is nothing to do."""
        values = {"job_id": job_id, "owner": owner, "lease_s": lease_s}
        with suppress(_ShardReopened), self._database.transaction() as tx:
            rows = tx.rows(QUERIES["claim_merge"], values)
            if rows and tx.rows(QUERIES["any_shard_undone"], {"job_id": job_id}):
                raise _ShardReopened  # nothing is claimed
            if rows:
                return MergeClaim(Job.from_row(rows[0]), owner, rows[0]["merge_attempts"])
        return None

    def release_merge(
        self, claim: MergeClaim, *, count_attempt: bool, pause_s: float = 0.0
    ) -> bool:
        """Give a merge back unfinished; False when it is not ours any more.

        Args:
            pause_s: nobody can claim it for so long.
        """
        uncounted = 0 if count_attempt else 1
        values = {"job_id": claim.job.id, "owner": claim.owner, "uncounted": uncounted}
        values["pause_s"] = pause_s
        return bool(self._write(QUERIES["release_merge"], values))

    def reopen_shards(self, claim: MergeClaim, numbers: Sequence[int]) -> bool:
        """Have shards done again whose files did not survive; the job goes back to running.

        False, and nothing is done, when the merge is not ours any more.
        """
        job_id = claim.job.id
        with self._database.transaction() as tx:
            ours = tx.rows(QUERIES["reopen_job"], {"job_id": job_id, "owner": claim.owner})
            if ours:
                tx.many(QUERIES["reopen_shard"], [{"job_id": job_id, "n": n} for n in numbers])
        return bool(ours)

    # -- end -------------------------------------------------------------------------------------

    def publish(self, job_id: str, version: str) -> bool:
        """Record what was published; False when the job had been cancelled or had failed before.

        It is recorded as published in either case. The swap of the pointer is the point of no
        return: queries are answered from the version already, and the one before it may be pruned,
        so a rollback could leave no index at all. What the user reads has to say what is live.
        """
        if self._end(job_id, "published", version, None):
            return True
        values = {"job_id": job_id, "version": version}
        return not self._write(QUERIES["record_late_publication"], values)

    def fail(self, job_id: str, error: str) -> bool:
        """End a job with the sentence that explains why; False when it had ended before."""
        return _with_any_text(lambda text: self._end(job_id, "failed", None, text), error)

    def cancel(self, job_id: str) -> bool:
        """Stop a job; workers notice at their next heartbeat. False when it had ended before."""
        return self._end(job_id, "cancelled", None, None)

    def _end(self, job_id: str, state: str, version: str | None, error: str | None) -> bool:
        values = {"job_id": job_id, "state": state, "version": version, "error": error}
        return bool(self._write(QUERIES["end_job"], values))

    def drop_items(self) -> None:
        """Drop the lists of images of jobs that have ended; their counts and failures stay."""
        self._write(QUERIES["drop_items"])

    def prunable(self, keep: int, keep_rows: int, protect: Collection[str]) -> dict[str, int]:
        """Return the ended jobs beyond the newest ones, and the rows of each.

        Args:
            keep: the number of ended jobs that stay.
            keep_rows: the number of their shards and failures that stay; the newest job always
                stays whole.
            protect: ids of jobs that stay in any case.
        """
        ended = self._read(QUERIES["list_ended_jobs"])
        beyond, total = {}, 0
        for place, row in enumerate(ended):
            total += row["n_rows"]
            if row["id"] not in protect and place and (place >= keep or total > keep_rows):
                beyond[row["id"]] = row["n_rows"]
        return beyond

    def delete(self, job_id: str) -> None:
        """Delete an ended job with everything that is known of it."""
        with self._database.transaction() as tx:
            for table in TABLES:
                tx.rows(f"DELETE FROM {table} WHERE job_id = ?", (job_id,))
            tx.rows("DELETE FROM jobs WHERE id = ?", (job_id,))


class _ShardReopened(Exception):
    """A shard has to be done again since the statement that claims began; rolls it back."""


def _with_any_text(write: Callable[[str], Written], text: str) -> Written:
    """Write a reason; in ASCII where the database cannot hold it: a job must end all the same.

    A NUL, half of a surrogate pair from a file's name, a letter that an old database's encoding
    lacks: each database refuses them with errors of its own.

    Raises:
        ServerUnavailable: the database does not answer.
    """
    try:
        return write(text)
    except ServerUnavailable:
        raise
    except Exception:
        return write(text.encode("ascii", "backslashreplace").decode().replace("\0", "\\x00"))


def _repeated(request: JobRequest, earlier: Row) -> Conflict:
    if earlier["digest"] == request.digest:
        return AlreadyRequested(earlier["job_id"])
    return Conflict(
        f"The Idempotency-Key {request.key[:80]!r} was used for another request: choose a new one."
    )
