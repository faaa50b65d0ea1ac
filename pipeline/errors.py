"""Every error that imgrec raises on purpose, and the exit code that each one means.

    ImgrecError                  1  tried and failed
    ├── WrongUse                 2  the request cannot work: a missing folder, an invalid option
    │   ├── NotFound             2  no job, product, query or index version has this name
    │   │   └── UnknownJob       2  the database has no job of this id
    │   ├── Conflict             2  not in the state that things are in now; later it may work
    │   └── BadImage             2  an image cannot be used (in a rebuild: one of its failures)
    │       ├── UnsupportedImage 2  it is of no format that is read here
    │       ├── ImageTooLarge    2  it has more bytes or pixels than the limits allow
    │       └── ImageOutOfMemory 2  an image needs more memory than this process has left
    ├── SetupError               1  a model, its weights or a library cannot be loaded
    ├── FingerprintMismatch      1  vectors of different models would be compared
    ├── HeadBroken               1  the file of a trained head cannot be used
    ├── IndexBroken              1  files of a version or a shard do not match their digests
    ├── JobFailed                1  a rebuild ended without a published version
    ├── TimedOut                 1  the result did not arrive in time; the work continues
    ├── Overloaded               1  the workers have more queries than they can answer in time
    ├── IndexMissing             3  no index has been published yet
    ├── ServerUnavailable        4  Redis, the database or every worker is unavailable
    │   └── FolderUnavailable    4  a folder's disk is full, or this user lacks a right there
    ├── StoreRefused             4  an object store refuses the credentials, or lacks what is needed
    ├── ObjectMissing            1  an object store has no object of this key
    ├── ObjectConflict           1  an object was changed by another process meanwhile
    ├── DatabaseFailed           4  the database answers, and refuses a statement
    └── SettingsDiffer           4  the workers work with another database or folder

A message is one sentence: what, which file or id, the limit, what to do next.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

MAX_QUOTE = 80  # characters
MAX_LINE = 300
# Of pydantic's types of errors, where its own sentence speaks of Python.
REASONS = {
    "extra_forbidden": "unknown name",
    "missing": "a value is missing",
    "tuple_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
}


def quote(value: object) -> str:
    """Return a value as a sentence quotes it: a text in quotes, and cut off where it is long."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if len(text) > MAX_QUOTE:
        text = f"{text[:MAX_QUOTE]}..."
    return f"'{text}'" if isinstance(value, str) else text


def one_line(error: BaseException, *, last: bool = False) -> str:
    """Return the first or last line of an error's message; its type if it has no message."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1 if last else 0][:MAX_LINE]


def first_invalid(error: ValidationError) -> tuple[tuple[int | str, ...], str, Any]:
    """Return the path, the reason and the value of the first thing that pydantic refused."""
    first = error.errors(include_url=False)[0]
    reason = REASONS.get(first["type"])
    if reason is None:
        # "Value error, must be ..." is our own; "Input should be a valid integer" is pydantic's.
        message = first["msg"].removeprefix("Value error, ").partition(" after validation")[0]
        reason = re.sub(r"^\w+ should\b", "must", message)
    return first["loc"], reason, first["input"]


class ImgrecError(Exception):
    """A failure that a sentence explains; anything else is a bug."""

    exit_code = 1


class WrongUse(ImgrecError):
    """Refuse input that can never work."""

    exit_code = 2


class NotFound(WrongUse):
    """Nothing has the name that the request gives."""


class UnknownJob(NotFound):
    """A job that this database does not have."""


class Conflict(WrongUse):
    """The request does not fit the state that things are in now."""


class BadImage(WrongUse):
    """One image that cannot be used, with the stage that found out: find, read, decode, ..."""

    def __init__(self, reason: str, stage: str = "decode") -> None:
        super().__init__(reason, stage)  # all arguments, or it breaks when it crosses a process
        self.reason = reason
        self.stage = stage

    def __str__(self) -> str:
        return self.reason


class UnsupportedImage(BadImage):
    """An image of a format that is not read here, or no image at all."""


class ImageTooLarge(BadImage):
    """An image that exceeds MAX_IMAGE_BYTES or MAX_IMAGE_PIXELS."""


class ImageOutOfMemory(BadImage):
    """An image that needs more memory than this process has left; alone it may fit."""

    def __init__(
        self,
        reason: str = "the image needs more memory than the worker has left (WORKER_MAX_MEMORY)",
        stage: str = "decode",
    ) -> None:
        super().__init__(reason, stage)


class SetupError(ImgrecError):
    """A model, its weights or a library is missing; nothing was tried yet."""


class FingerprintMismatch(ImgrecError):
    """Two sets of vectors were made by different models or preprocessing."""


class IndexBroken(ImgrecError):
    """Stored files contradict their manifest."""


class HeadBroken(ImgrecError):
    """The file of a trained head cannot be read, or contradicts itself."""


class JobFailed(ImgrecError):
    """A rebuild ended without publishing."""


class TimedOut(ImgrecError):
    """The wait ended before the work did."""


class Overloaded(ImgrecError):
    """A query waited too long for its turn at the model."""


class IndexMissing(ImgrecError):
    """No index version was published yet."""

    exit_code = 3

    def __init__(
        self,
        message: str = (
            "FAISS index not found. Rebuild index first using 'enqueue-rebuild' command."
        ),
    ) -> None:
        super().__init__(message)


class ServerUnavailable(ImgrecError):
    """Redis, the database or all workers of a queue do not answer."""

    exit_code = 4


class FolderUnavailable(ServerUnavailable):
    """A folder that this user may not read or write, or whose disk is full: it can be mended."""


class DatabaseFailed(ImgrecError):
    """The database is there and cannot do what it was asked: to wait would not help."""

    exit_code = 4


class SettingsDiffer(ImgrecError):
    """The workers that would take the work do not work with the same database or folder."""

    exit_code = 4


class StoreRefused(ImgrecError):
    """An object store that answers, but not with these credentials or settings."""

    exit_code = 4


class ObjectMissing(ImgrecError):
    """An object store has nothing at a key."""


class ObjectConflict(ImgrecError):
    """A conditional change of an object came too late."""
