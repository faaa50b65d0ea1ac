"""One row of `imgrec check`: a thing that can be wrong, what was seen, what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from cli.wiring import Wiring
from pipeline.access import explain, is_unavailable
from pipeline.errors import ImgrecError
from pipeline.settings import Settings
from pipeline.urls import without_password

if TYPE_CHECKING:
    from workers.registry import WorkerRegistry
    from workers.resources import Resources

RECHECK = "imgrec check"
State = Literal["ok", "warning", "error"]


class CheckFailed(Exception):
    """Something that does not work, with what to do about it."""

    def __init__(self, found: str, next_step: str) -> None:
        super().__init__(found, next_step)
        self.found, self.next = found, next_step


class CheckWarning(CheckFailed):
    """Something that works, but may not when it is needed."""


@dataclass(frozen=True)
class Row:
    """A row as it is printed; `next` is what to do, empty where nothing has to be done."""

    name: str
    state: State
    found: str
    next: str = ""

    @property
    def ok(self) -> bool:
        return self.state != "error"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}


class CheckContext:
    """What the rows look at, and what one row knows that another needs."""

    def __init__(self, wiring: Wiring, *, load_models: bool = True) -> None:
        self._wiring = wiring
        self.load_models = load_models
        self.redis_works = False  # set by the row of Redis

    @property
    def settings(self) -> Settings:
        return self._wiring.settings

    @property
    def resources(self) -> Resources:
        return self._wiring.resources

    @cached_property
    def workers(self) -> Counter[str]:
        """The workers that answer, by queue."""
        return self._wiring.dispatcher.workers()

    @property
    def registry(self) -> WorkerRegistry | None:
        """What each worker works with; None without Redis."""
        return self._wiring.dispatcher.registry


@dataclass(frozen=True)
class Check:
    """Something to try.

    `run` says what it saw, or raises. `next` is what to do after an error that does not say so
    itself. A check whose `applies` is false for these settings has no row.
    """

    name: str
    run: Callable[[CheckContext], str]
    next: str = RECHECK
    applies: Callable[[CheckContext], bool] = lambda context: True

    def row(self, context: CheckContext) -> Row:
        try:
            return Row(self.name, "ok", self.run(context))
        except CheckWarning as warning:
            return Row(self.name, "warning", warning.found, warning.next)
        except CheckFailed as failure:
            return Row(self.name, "error", failure.found, failure.next)
        except ImgrecError as error:
            return Row(self.name, "error", str(error), self.next)
        except Exception as error:  # a bug in one row must not hide the others
            if isinstance(error, OSError) and is_unavailable(error):
                return Row(self.name, "error", str(explain(error, context.settings)), self.next)
            reason = f"unexpected {type(error).__name__}: {without_password(str(error))}"
            return Row(self.name, "error", reason, "this is a bug: report this row")


def corrected(setting: str) -> str:
    """Say what to do after a setting was wrong."""
    return f"correct {setting} in .env, then: {RECHECK}"
