"""What to do with a shard, a plan or a merge after an error: one table for all tasks.

Every error counts an attempt, and too many attempts end the job. It is counted when the work is
claimed, so a process that dies has counted its attempt, too. The exceptions to the rule, each with
its reason:

    the worker is asked to end       released uncounted: nothing is wrong with the work
    the lease is lost                dropped: another worker has the work, or the job has ended
    a server is unavailable          waits: it comes back, and no work is to blame. A database that
                                     answers and fails (`DatabaseFailed`) is not unavailable
    a folder is full or denied       waits: somebody has to mend it, and the sentence says how
    the index is locked              waits: another merge or a rollback ends sooner or later
    the models cannot be loaded      refused: another worker may be set up as the job needs it
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from enum import Enum

from filelock import Timeout

from pipeline.access import explain, is_unavailable
from pipeline.errors import DatabaseFailed, ImgrecError, ServerUnavailable, StoreRefused
from pipeline.settings import Settings
from workers.lease import LeaseLost, Stopped


class Stage(Enum):
    LOAD = "load"  # of the models and the folder, before a shard is claimed
    SHARD = "shard"  # of images to embed, or of addresses to fetch
    PLAN = "plan"  # of the images that were fetched
    MERGE = "merge"


@dataclass(frozen=True)
class Attempt:
    """The facts that the decision depends on.

    `number` counts this attempt, too; `limit` is how many may go wrong before an error ends the
    job. `lacks_memory`: the process has leaked, or ends because it has.
    """

    stage: Stage
    description: str  # e.g. "embed@host, shard 3"
    settings: Settings
    number: int = 1
    limit: int = 0
    lacks_memory: bool = False


@dataclass(frozen=True)
class Release:
    """Give the work back: `at_once` to the next worker, else after the reconciler's pause.

    `reason` is for those who wait for the job.
    """

    count_attempt: bool
    reason: str = ""
    at_once: bool = False
    end_worker: bool = False  # the next process has more memory


@dataclass(frozen=True)
class Wait:
    """Give the work back uncounted, and tell those who wait for the job what it waits for."""

    reason: str


@dataclass(frozen=True)
class Refuse:
    """Leave the work to workers that can do it."""

    reason: str


@dataclass(frozen=True)
class Fail:
    """End the job."""

    reason: str


@dataclass(frozen=True)
class Drop:
    """Do nothing: the work is no longer this worker's."""


Decision = Release | Wait | Refuse | Fail | Drop


def decide(error: Exception, attempt: Attempt) -> Decision:
    """Return what to do with the work that an error has ended."""
    match error:
        case LeaseLost():
            return Drop()
        case Stopped():
            # What ends workers by their memory again and again must come to be tried alone.
            return Release(count_attempt=attempt.lacks_memory, at_once=True)
        case ServerUnavailable():
            return Wait(str(error))
        case StoreRefused() if attempt.stage is not Stage.LOAD:
            return Wait(str(error))
        case Timeout():  # an OSError, too
            return Wait(
                f"Another process, a merge or a rollback, holds the lock {error.lock_file}. The "
                "merge is retried automatically."
            )
        case OSError() if is_unavailable(error):
            return Wait(str(explain(error, attempt.settings)))
    if attempt.stage is Stage.LOAD:
        return Refuse(describe(error))
    if attempt.stage is Stage.SHARD and attempt.lacks_memory:
        why = f"{attempt.description} lacks memory: the worker restarts."
        return Release(count_attempt=True, reason=why, end_worker=True)
    if attempt.stage is not Stage.SHARD and not isinstance(error, OSError | DatabaseFailed):
        # A plan or a merge would take as long again and end the same way.
        return Fail(_failure(error, attempt))
    if attempt.number <= attempt.limit:
        why = f"{attempt.description} failed and is tried again: {describe(error)}"
        return Release(count_attempt=True, reason=why)
    return Fail(f"{attempt.description} failed in {attempt.number} attempts: {describe(error)}")


def give_up(attempt: Attempt) -> Fail | None:
    """End the job of a plan or a merge that was claimed too often, by workers that died of it."""
    if attempt.number <= attempt.limit + 1:
        return None
    begun = (
        f"{attempt.description} was begun {attempt.number - 1} times and never ended: its worker "
    )
    if attempt.stage is Stage.PLAN:
        return Fail(f"{begun}died each time. See the log of the index worker.")
    return Fail(
        f"{begun}died each time, or the files of the shards were not where they had been written. "
        "See the log of the index worker; it may need more memory (WORKER_MAX_MEMORY), and the "
        "workers on queues 'embed' and 'index' must share DATA_DIR or ARTIFACTS_URL."
    )


def _failure(error: Exception, attempt: Attempt) -> str:
    if isinstance(error, ImgrecError):
        return str(error)
    if attempt.stage is Stage.PLAN:
        return f"{attempt.description} failed: {describe(error)}"
    if isinstance(error, MemoryError):
        return (
            "The index does not fit into memory: raise WORKER_MAX_MEMORY for the worker on queue "
            "'index' and run the rebuild again."
        )
    return f"The index could not be built: {describe(error)}"


def unforeseen(error: Exception) -> Exception | None:
    """Return an error whose traceback belongs into the log: one that no sentence explains."""
    return None if isinstance(error, ImgrecError) else error


def describe(error: Exception) -> str:
    """Say in a line what an error is."""
    if isinstance(error, ImgrecError):
        return str(error)
    return traceback.format_exception_only(error)[-1].strip().splitlines()[0]
