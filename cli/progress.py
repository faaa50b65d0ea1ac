"""Show progress: a live bar on a terminal; of a rebuild, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cli.output import duration, echo_err
from pipeline.names import printable

if TYPE_CHECKING:
    from rich.progress import TaskID

    from pipeline.store.job import Job, Progress

PLAIN_EVERY_S = 10.0  # between two lines where no bar can be drawn
SETTLE_S = 0.5  # a rate measured over less is noise

Show = Callable[["Job", "Progress"], None]


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Show]:
    """Yield the function that shows a job's progress."""
    from rich.console import Console

    console = Console(stderr=True)
    rate = _Rate()
    if quiet:
        yield lambda job, progress: None
        return
    if not console.is_terminal:
        yield _PlainProgress(rate)
        return
    from rich import progress as widgets

    columns = (
        widgets.TextColumn("{task.description:9}"),
        widgets.BarColumn(),
        widgets.MofNCompleteColumn(),
        widgets.TextColumn("{task.fields[facts]}"),
    )
    with widgets.Progress(*columns, console=console) as bar:
        task = bar.add_task("planned", total=None, facts="")

        def draw(job: Job, progress: Progress) -> None:
            n_processed, total = progress.looked_at, progress.images
            facts = _facts(rate, job, progress)
            stage = job.stage or job.state
            bar.update(task, description=stage, total=total, completed=n_processed, facts=facts)

        yield draw


@contextmanager
def work_bar(name: str, total: int | None, quiet: bool) -> Iterator[Callable[..., None]]:
    """Show a bar on a terminal; yield what is told how much is done, and of how much.

    The second number is needed only where it was not known at first, or changes. While no total is
    known, the bar moves to and fro.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress, TextColumn

    console = Console(stderr=True)
    hidden = quiet or not console.is_terminal
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[count]}"))
    with Progress(*columns, console=console, disable=hidden, transient=True) as bar:
        task = bar.add_task(escape(printable(name)), total=total, count="")

        def report(done: int, total: int | None = None) -> None:
            bar.update(task, completed=done, total=total, count=f"{done:,}")

        yield report


@contextmanager
def step_bar(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar for each step on a terminal, lines elsewhere; yield what is told of each.

    What is told may come from several threads: the step, how many rows are done, of how many.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    if quiet:
        yield lambda step, done, total: None
        return
    if not console.is_terminal:
        yield _PlainSteps()
        return
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        tasks = dict[str, TaskID]()

        def draw(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bar.add_task(step, total=total)
            bar.update(tasks[step], completed=done, total=total)

        yield draw


class _PlainSteps:
    """The same for a log file: a line for each step, and one now and then."""

    def __init__(self) -> None:
        self._step = ""
        self._next = 0.0

    def __call__(self, step: str, done: int, total: int) -> None:
        now = time.monotonic()
        if step != self._step or now >= self._next:
            self._step, self._next = step, now + PLAIN_EVERY_S
            echo_err(f"{step}: {done:,} of {total:,} vectors")


class _Rate:
    """Images per second since this watch began; what was reused before does not count."""

    def __init__(self) -> None:
        self._start: tuple[float, int] | None = None
        self._stage = ""

    def facts(self, stage: str, progress: Progress) -> str:
        now = time.monotonic()
        if self._start is None or stage != self._stage:
            self._start, self._stage = (now, progress.looked_at), stage
        elapsed, n_processed = now - self._start[0], progress.looked_at - self._start[1]
        counts = f"reused {progress.reused}, skipped {progress.skipped}"
        if stage:
            counts = f"fetched {progress.fetched}, unchanged {progress.unchanged}"
        if n_processed <= 0 or elapsed < SETTLE_S:
            return counts
        remaining_s = (progress.images - progress.looked_at) * elapsed / n_processed
        return f"{n_processed / elapsed:.1f} images/s, {counts}, {duration(remaining_s)} left"


def _facts(rate: _Rate, job: Job, progress: Progress) -> str:
    if job.state == "planned":
        if job.stage:
            return "waiting for a fetch worker to take the first shard"
        return "waiting for a worker to load its model and take the first shard"
    return rate.facts(job.stage, progress)


class _PlainProgress:
    """The same facts for a log file."""

    def __init__(self, rate: _Rate) -> None:
        self._rate = rate
        self._next = time.monotonic() + PLAIN_EVERY_S

    def __call__(self, job: Job, progress: Progress) -> None:
        facts = _facts(self._rate, job, progress)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PLAIN_EVERY_S
            stage = job.stage or job.state
            echo_err(f"{stage}: {progress.looked_at} of {progress.images} images, {facts}")
