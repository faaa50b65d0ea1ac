"""`imgrec check`: prove, thing by thing, that this machine can work; or say what to do about it."""

from __future__ import annotations

import click

from cli.checks.row import CheckContext, Row
from cli.checks.table import NAME_WIDTH, rows
from cli.output import echo, json_option, print_json, write
from cli.progress import work_bar
from cli.wiring import Wiring, pass_wiring
from pipeline.names import printable

FAILED = 4
MARKS = {"ok": ("ok  ", "green"), "warning": ("WARN", "yellow"), "error": ("FAIL", "red")}


@click.command()
@click.option("--no-model", is_flag=True, help="Skip loading the models, which takes some seconds.")
@json_option
@pass_wiring
def check(wiring: Wiring, no_model: bool, as_json: bool) -> int:
    """Check everything that imgrec needs.

    Prints one row for each thing that can be wrong: its state, its name, what was seen and, where
    it is not ok, what to do.
    """
    table, checks = [], rows(CheckContext(wiring, load_models=not no_model))
    while True:
        with work_bar("checking", None, as_json):
            row = next(checks, None)
        if row is None:
            break
        table.append(row)
        if not as_json:  # at once: the rows of the models take seconds
            _print(row)
    good = all(row.ok for row in table)
    if as_json:
        print_json({"ok": good, "checks": [row.as_json() for row in table]})
    return 0 if good else FAILED


def _print(row: Row) -> None:
    mark, color = MARKS[row.state]
    line = f"{click.style(mark, fg=color)} {f'{row.name}:':{NAME_WIDTH}}{printable(row.found)}"
    write(lambda: click.echo(line))
    if row.next:
        echo(f"     {'':{NAME_WIDTH}}next: {row.next}")
