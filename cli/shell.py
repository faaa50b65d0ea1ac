"""`imgrec serve`: an interactive shell over the same commands."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import click

from cli.output import echo_err, local_option
from cli.wiring import Wiring, pass_wiring
from pipeline.errors import ServerUnavailable, SettingsDiffer
from pipeline.settings import Settings
from workers.routes import QUERY, nobody_listens

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer

PROMPT = "imgrec> "
ENDS = ("exit", "quit")
WAITS = frozenset({"query", "classify", "enqueue-rebuild"})
LOCAL = frozenset({*WAITS, "train"})  # commands that have --local
ARGUMENTS = frozenset({"--image", "--products_dir", "--products-dir"})  # once options, no longer
HELP = """\
  query IMAGE                show the most similar products
  classify IMAGE             show category and attributes
  rebuild [FOLDER]           index a folder; default: DATA_DIR/products
  cache list | cache clear   list or clear the shared cache
  help [COMMAND]             show this text, or the options of a command
  exit, quit, Ctrl-D         leave the shell; Ctrl-C stops a running command
All other commands of 'imgrec --help' work here too, with their options."""


@click.command()
@local_option
@pass_wiring
def serve(wiring: Wiring, local: bool) -> None:
    """Open an interactive shell with these commands.

    Running workers do the work. With --local, this process does it, and loads its models once.
    """
    if not local:
        _look_for_workers(wiring)
    echo_err("Type 'help' for a list of commands, 'exit' to leave.")
    reader = _reader(wiring.settings)
    while True:
        try:
            line = reader()
        except KeyboardInterrupt:
            continue  # an unfinished line is given up, as in any shell
        except EOFError:
            return
        if line.strip() in ENDS:
            return
        run_line(line, local, wiring)


def run_line(line: str, local: bool, wiring: Wiring) -> None:
    """Run one line; whatever is wrong with it is a sentence on stderr."""
    from cli.main import COMMANDS, run

    try:
        words = translate(line, local, wiring.settings)
    except ValueError as error:
        echo_err(f"Error: invalid syntax: {error}.")
        return
    if not words:
        return
    if words[0] == "help" and len(words) == 1:
        click.echo(HELP)
        return
    if words[0] == "help":
        words = [*words[1:], "--help"]
    if words[0] == "serve":
        echo_err("Error: this already is the imgrec shell.")
        return
    if words[0] not in COMMANDS and not words[0].startswith("-"):
        echo_err(f"Error: unknown command '{words[0]}'. Type 'help' for a list of commands.")
        return
    run(words, wiring)


def translate(line: str, local: bool, settings: Settings) -> list[str]:
    """Turn a line into a command's arguments: old spellings, waiting, --local.

    Raises:
        ValueError: a quotation mark is not closed.
    """
    words = shlex.split(line, comments=True)
    if not words:
        return []
    name, arguments = words[0], words[1:]
    arguments = [part for word in arguments for part in _spelled_now(word)]
    if name == "rebuild":
        name = "enqueue-rebuild"
        if not _names_folder(arguments):
            arguments = [str(settings.data_dir / "products"), *arguments]
    if name in WAITS and "--wait" not in arguments and "--help" not in arguments:
        arguments.append("--wait")
    if local and name in LOCAL and "--local" not in arguments:
        arguments.append("--local")
    return [name, *arguments]


def _names_folder(arguments: list[str]) -> bool:
    """Tell whether a word is neither an option of `rebuild` nor the value of one."""
    from cli.rebuild import enqueue_rebuild

    options = [each for each in enqueue_rebuild.params if isinstance(each, click.Option)]
    valued = {name for each in options if not each.is_flag for name in each.opts}
    return any(
        not word.startswith("-") and previous not in valued
        for previous, word in pairwise(["", *arguments])
    )


def _spelled_now(word: str) -> list[str]:
    option, is_pair, value = word.partition("=")
    if option in ARGUMENTS:
        return [value] if is_pair else []
    return [word]


def _look_for_workers(wiring: Wiring) -> None:
    try:
        wiring.dispatcher.require_broker()
    except ServerUnavailable as error:
        echo_err(f"{error} 'imgrec serve --local' works without Redis.")
        return
    try:
        wiring.resources.require_agreement((QUERY,), "data")
    except SettingsDiffer as error:
        echo_err(str(error))
    if not wiring.dispatcher.workers()[QUERY]:
        echo_err(f"{nobody_listens(QUERY)} 'imgrec serve --local' works without workers.")


def _reader(settings: Settings) -> Callable[[], str]:
    """Return what reads a line: with history and completion on a terminal."""
    if not sys.stdin.isatty():
        return input
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory

    settings.run_dir.mkdir(parents=True, exist_ok=True)
    session: PromptSession[str] = PromptSession(
        PROMPT, history=FileHistory(str(settings.run_dir / "history")), completer=_completer()
    )
    return session.prompt


def _completer() -> Completer:
    from cli.completion import LineCompleter

    return LineCompleter()
