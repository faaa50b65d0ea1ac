"""A job as its row says: a rebuild from its plan to its end, and the claims on its steps."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields

from pipeline.errors import Conflict, SetupError
from pipeline.store.backend import Row

FETCHING = "fetching"  # the stage of a job while the images of its feed come
# Of a job's options. Raise it with an option that a worker of the last release must not ignore.
FORM = 2
FEED_FORM = 2  # of jobs that fetch
FOLDER_FORM = 1


@dataclass(frozen=True)
class Job:
    """One rebuild; times are seconds since the epoch by the database's clock."""

    id: str
    root: str  # the products folder, the address of a store, or feed:NAME
    state: str
    stage: str  # fetching, or empty
    plan_done: bool
    form: int  # of the options
    full: bool
    save_preprocessed: bool
    left_out: dict[str, int]  # files and folders left out on purpose, by reason; known once planned
    fingerprint: str | None
    fingerprint_summary: str | None
    base_version: str | None
    index_version: str | None
    error: str | None
    created_at: float
    changes_seen: int  # the last change of the published index that its plan knows; -1: unknown
    finished_at: float | None
    seconds: float  # from its creation to its end, or until now

    @classmethod
    def from_row(cls, row: Row) -> Job:
        options = json.loads(row["options"])
        facts = {each.name: row[each.name] for each in fields(cls) if each.name in row}
        facts |= {
            "plan_done": bool(row["plan_done"]),
            "form": int(options.get("form", FOLDER_FORM)),
            "full": bool(options["full"]),
            "save_preprocessed": bool(options["save_preprocessed"]),
            "left_out": options.get("left_out", {}),  # absent in jobs of older releases
            "seconds": max(0.0, row["seconds"]),  # the clock may have been set back meanwhile
        }
        return cls(**facts)

    @property
    def open(self) -> bool:
        return self.finished_at is None

    def require_known_form(self) -> None:
        """Refuse a job whose options this release may read wrongly.

        Raises:
            SetupError: a newer release has planned it.
        """
        if self.form > FORM:
            raise SetupError(
                f"A newer imgrec planned job {self.id} (form {self.form}, known here up to "
                f"{FORM}): update imgrec on this machine and restart its workers."
            )


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
    fetched: int = 0  # addresses of a feed whose image is new or has changed
    unchanged: int = 0

    @classmethod
    def from_row(cls, row: Row) -> Progress:
        return cls(**{field.name: int(row[field.name]) for field in fields(cls)})


@dataclass(frozen=True)
class MergeClaim:
    """The right to merge a job's shards until the lease ends."""

    job: Job
    owner: str
    attempts: int = 1  # starts of this merge that did not end well, with this one

    def __str__(self) -> str:
        return f"the merge of job {self.job.id}"


@dataclass(frozen=True)
class PlanClaim:
    """The right to plan the images of a feed until the lease ends.

    Attributes:
        first: the number of the first shard to plan.
    """

    job: Job
    owner: str
    first: int
    attempts: int = 1

    def __str__(self) -> str:
        return f"the plan of job {self.job.id}"


@dataclass(frozen=True)
class Refusals:
    """Seconds since a job was refused for the first time, and the workers that refuse it now."""

    since_s: float
    workers: frozenset[str]


@dataclass(frozen=True)
class JobRequest:
    """A request for a job that may be sent twice: who sent it, under which key, and a digest."""

    client: str
    key: str
    digest: str


class AlreadyRequested(Conflict):
    """A request has created its job before."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id

    def __str__(self) -> str:
        return f"This request has already created job {self.job_id}."
