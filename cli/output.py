"""Show things: one JSON object on stdout for programs; tables and sentences for people."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from pipeline.errors import ImgrecError
from pipeline.names import CONTROL, printable

if TYPE_CHECKING:
    from rich.table import Table

PIPE_WIDTH = 200


class FiniteRange(click.FloatRange):
    """A range of numbers; NaN, which compares with none, is not in it."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


Seconds = FiniteRange(0, 31_536_000)  # a year: what is longer does not fit a date

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout."
)
wait_option = click.option("--wait", is_flag=True, help="Wait for the result and show it.")
timeout_option = click.option(
    "--timeout",
    default=60.0,
    show_default=True,
    type=Seconds,
    help="Seconds to wait; the work itself is not limited.",
)
local_option = click.option(
    "--local", is_flag=True, help="Do all the work in this process, without Redis or workers."
)


def print_json(value: Any) -> None:
    """Print one object on stdout, and nothing else."""
    ascii_only = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    text = json.dumps(value, ensure_ascii=ascii_only)
    # json itself escapes those below a space only; the others are found in strings alone.
    write(lambda: click.echo(CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)))


def echo(text: str) -> None:
    """Print a line on stdout."""
    write(lambda: click.echo(printable(text)))


def write(write: Callable[[], None]) -> None:
    """Write to stdout.

    Raises:
        ImgrecError: the disk is full, or stdout is closed; a closed pipe stays Click's to handle.
    """
    try:
        write()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ImgrecError(unwritable(error)) from error


def unwritable(error: OSError) -> str:
    """Return the sentence for a stdout that takes nothing."""
    return f"The output cannot be written: {error.strerror}."


def echo_err(text: str) -> None:
    """Tell people something, on stderr, out of the way of what a program reads."""
    click.echo(printable(text), err=True)


def echo_warnings(answer: dict[str, Any]) -> None:
    """Tell people what an answer warns of; a program finds it in the object, too."""
    for warning in answer.get("warnings", []):
        echo_err(f"Warning: {warning}")


def print_table(title: str, columns: list[str], rows: list[list[Any]], numbers: set[str]) -> None:
    """Print a table on stdout; `numbers` names the columns that are set to the right."""
    from rich.table import Table

    grid = Table(header_style="bold")
    for column in columns:
        right = column in numbers
        grid.add_column(column, justify="right" if right else "left", overflow="fold")
    _print(title, grid, rows)


def print_fields(title: str, pairs: list[tuple[str, Any]]) -> None:
    """Print names and values, a line each, on stdout."""
    from rich.table import Table

    grid = Table(show_header=False, box=None)
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    _print(title, grid, [list(pair) for pair in pairs])


def _print(title: str, grid: Table, rows: list[list[Any]]) -> None:
    from rich.console import Console
    from rich.text import Text

    for row in rows:
        grid.add_row(*(Text(printable(str(cell))) for cell in row))
    console = Console()
    # A pipe has no width; the default of 80 would break paths and ids that grep looks for.
    console = Console(width=None if console.is_terminal else PIPE_WIDTH)
    # Not as the table's own title: that one is broken at the width of a narrow table.
    write(lambda: console.print(Text(printable(title), style="italic")))
    write(lambda: console.print(grid))


def counted(count: int, noun: str, plural: str = "s") -> str:
    """Write a number of things: 1 value, 1,203 values."""
    return f"{count:,} {noun}{'' if count == 1 else plural}"


def date(seconds: float) -> str:
    """Write a time since the epoch as this machine's clock shows it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def duration(seconds: float) -> str:
    """Write seconds as people read them: 4.2 s, 3 min 5 s, 2 h 10 min."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
