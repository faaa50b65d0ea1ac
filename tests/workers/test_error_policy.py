"""What follows an error is one table, the same for shards and merges."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import pytest
from filelock import Timeout

from pipeline import errors
from pipeline.errors import (
    FingerprintMismatch,
    ImgrecError,
    IndexBroken,
    JobFailed,
    ServerUnavailable,
    SetupError,
    StoreRefused,
    WrongUse,
)
from pipeline.settings import Settings
from workers.error_policy import (
    Attempt,
    Decision,
    Drop,
    Fail,
    Refuse,
    Release,
    Stage,
    Wait,
    decide,
)
from workers.lease import LeaseLost, Stopped

SETTINGS = Settings(_env_file=None)
LOAD = Attempt(Stage.LOAD, "embed@host: loading", SETTINGS)
EMBED = Attempt(Stage.SHARD, "embed@host: shard 7", SETTINGS, number=2, limit=3)
MERGE = Attempt(Stage.MERGE, "index@host: the merge", SETTINGS, number=2, limit=3)
PLAN = Attempt(Stage.PLAN, "index@host: the plan", SETTINGS, number=2, limit=3)
LAST = {"number": 4}  # one more than the limit
LEAKED = {"lacks_memory": True}


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def again(attempt: Attempt, reason: str) -> Release:
    return Release(
        count_attempt=True, reason=f"{attempt.description} failed and is tried again: {reason}"
    )


RESTART = Release(
    count_attempt=True,
    reason="embed@host: shard 7 lacks memory: the worker restarts.",
    end_worker=True,
)
FULL, DENIED, BROKEN = os_error(errno.ENOSPC), os_error(errno.EACCES), os_error(errno.EIO)
BUG, CUDA = ZeroDivisionError("division by zero"), RuntimeError("CUDA error: 700\nStack: ...")
FREE_SPACE = Wait(
    "DATA_DIR (data) cannot be written: No space left on device. Free space there; a running "
    "rebuild then continues automatically."
)


@pytest.mark.parametrize(
    ("error", "attempt", "decision"),
    [
        # Nothing is wrong with the work.
        (LeaseLost(), EMBED, Drop()),
        (LeaseLost(), MERGE, Drop()),
        (Stopped(), EMBED, Release(count_attempt=False, at_once=True)),
        (Stopped(), MERGE, Release(count_attempt=False, at_once=True)),
        (Stopped(), replace(EMBED, **LEAKED), Release(count_attempt=True, at_once=True)),
        # Servers and disks come back.
        (ServerUnavailable("Redis is away."), LOAD, Wait("Redis is away.")),
        (ServerUnavailable("Redis is away."), EMBED, Wait("Redis is away.")),
        (ServerUnavailable("Redis is away."), replace(EMBED, **LAST), Wait("Redis is away.")),
        (ServerUnavailable("Redis is away."), MERGE, Wait("Redis is away.")),
        # Expired credentials are renewed; a worker that never had any leaves the job to others.
        (StoreRefused("refused"), EMBED, Wait("refused")),
        (StoreRefused("refused"), replace(EMBED, **LAST), Wait("refused")),
        (StoreRefused("refused"), LOAD, Refuse("refused")),
        (FULL, LOAD, FREE_SPACE),
        (FULL, EMBED, FREE_SPACE),
        (FULL, replace(EMBED, **LAST), FREE_SPACE),
        (FULL, replace(MERGE, **LAST), FREE_SPACE),
        # Another worker may do what this one cannot load.
        (SetupError("rembg is not installed."), LOAD, Refuse("rembg is not installed.")),
        (WrongUse("outside of IMAGE_ROOTS"), LOAD, Refuse("outside of IMAGE_ROOTS")),
        (FingerprintMismatch("another model"), LOAD, Refuse("another model")),
        (CUDA, LOAD, Refuse("RuntimeError: CUDA error: 700")),
        (BROKEN, LOAD, Refuse("OSError: [Errno 5] Input/output error")),
        (MemoryError(), LOAD, Refuse("MemoryError")),
        # The rest counts, and ends the job when it persists.
        (CUDA, EMBED, again(EMBED, "RuntimeError: CUDA error: 700")),
        (BROKEN, EMBED, again(EMBED, "OSError: [Errno 5] Input/output error")),
        (MemoryError(), EMBED, again(EMBED, "MemoryError")),
        (IndexBroken("v1 is broken."), EMBED, again(EMBED, "v1 is broken.")),
        (BROKEN, MERGE, again(MERGE, "OSError: [Errno 5] Input/output error")),
        (
            CUDA,
            replace(EMBED, **LAST),
            Fail("embed@host: shard 7 failed in 4 attempts: RuntimeError: CUDA error: 700"),
        ),
        (
            BROKEN,
            replace(MERGE, **LAST),
            Fail(
                "index@host: the merge failed in 4 attempts: OSError: [Errno 5] Input/output error"
            ),
        ),
        # A process that has leaked ends, so that the next one has more memory.
        (MemoryError(), replace(EMBED, **LEAKED), RESTART),
        (CUDA, replace(EMBED, **LEAKED, **LAST), RESTART),
        (FULL, replace(EMBED, **LEAKED), FREE_SPACE),
        # A merge that fails would take as long again and end the same way.
        (JobFailed("No good image."), MERGE, Fail("No good image.")),
        (IndexBroken("v1 is broken."), MERGE, Fail("v1 is broken.")),
        (
            BUG,
            MERGE,
            Fail("The index could not be built: ZeroDivisionError: division by zero"),
        ),
        (BUG, PLAN, Fail("index@host: the plan failed: ZeroDivisionError: division by zero")),
        (MemoryError(), PLAN, Fail("index@host: the plan failed: MemoryError")),
        (BROKEN, PLAN, again(PLAN, "OSError: [Errno 5] Input/output error")),
    ],
    ids=lambda value: getattr(value, "description", None),
)
def test_what_follows_an_error(error: Exception, attempt: Attempt, decision: Decision) -> None:
    assert decide(error, attempt) == decision


def test_a_merge_that_memory_does_not_hold_names_the_setting() -> None:
    decision = decide(MemoryError(), MERGE)
    assert isinstance(decision, Fail)
    assert "raise WORKER_MAX_MEMORY for the worker on queue 'index'" in decision.reason


def test_a_lock_that_another_holds_is_waited_for_although_its_error_is_an_os_error() -> None:
    decision = decide(Timeout("data/index.lock"), replace(MERGE, **LAST))
    assert isinstance(decision, Wait)
    assert "data/index.lock" in decision.reason
    assert "cannot be written" not in decision.reason


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
@pytest.mark.parametrize("attempt", [EMBED, MERGE])
def test_a_folder_that_may_not_be_written_is_waited_for(attempt: Attempt, number: int) -> None:
    decision = decide(os_error(number), replace(attempt, **LAST))
    assert isinstance(decision, Wait)
    assert "may not write to the folder" in decision.reason
    assert "Free space" not in decision.reason


@pytest.mark.parametrize("stage", list(Stage))
def test_no_error_leaves_a_job_open_for_ever_without_a_sentence_or_a_count(stage: Stage) -> None:
    kinds = [*vars(errors).values(), RuntimeError, OSError, MemoryError, KeyError, AssertionError]
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, Exception):
            error = kind("a reason")
            decision = decide(error, Attempt(stage, "it", SETTINGS, number=9, limit=3))
            assert isinstance(decision, Fail | Wait | Refuse), kind
            assert decision.reason
            if isinstance(decision, Wait):
                assert issubclass(kind, ServerUnavailable | StoreRefused)


def test_every_sentence_of_ours_reaches_people_as_it_is() -> None:
    error = ImgrecError("What happened, and what to do.")
    assert decide(error, LOAD) == Refuse("What happened, and what to do.")
    assert decide(error, MERGE) == Fail("What happened, and what to do.")
