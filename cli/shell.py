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
RENAMED = {"rebuild": "enqueue-rebuild"}
# Arguments that were options once, by command.
ARGUMENTS = {
    "classify": ("--image",),
    "enqueue-rebuild": ("--products_dir", "--products-dir"),
}
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
    Reading from a pipe, it ends with exit code 1 if a line failed.
    """
    if not local:
        _look_for_workers(wiring)
    echo_err("Type 'help' for a list of commands, 'exit' to leave.")
    reader, failed = _reader(wiring.settings), False
    while True:
        try:
            line = reader()
        except KeyboardInterrupt:
            continue  # an unfinished line is given up, as in any shell
        except EOFError:
            break
        if line.strip() in ENDS:
            break
        failed = run_line(line, local, wiring) != 0 or failed
    if failed and not sys.stdin.isatty():
        sys.exit(1)


def run_line(line: str, local: bool, wiring: Wiring) -> int:
    """Run one line and return its exit code; whatever is wrong with it is a sentence on stderr."""
    from cli.main import COMMANDS, run

    try:
        words = translate(line, local, wiring.settings)
    except ValueError as error:
        echo_err(f"Error: invalid syntax: {error}.")
        return 2
    if not words:
        return 0
    if words == ["help"]:
        click.echo(HELP)
        return 0
    if words[0] == "serve":
        echo_err("Error: this already is the imgrec shell.")
        return 2
    if words[0] not in COMMANDS and not words[0].startswith("-"):
        echo_err(f"Error: unknown command '{words[0]}'. Type 'help' for a list of commands.")
        return 2
    return run(words, wiring)


def translate(line: str, local: bool, settings: Settings) -> list[str]:
    """Turn a line into a command's arguments: old spellings, waiting, --local.

    Raises:
        ValueError: a quotation mark is not closed.
    """
    words = [] if line.lstrip().startswith("#") else shlex.split(line)
    if not words or words == ["help"]:
        return words
    if words[0] == "help":
        words = [*words[1:], "--help"]
    name, arguments = RENAMED.get(words[0], words[0]), words[1:]
    arguments = [part for word in arguments for part in _spelled_now(name, word)]
    if "--help" in arguments:
        return [name, *arguments]
    if words[0] == "rebuild" and not _names_folder(arguments):
        arguments = [str(settings.data_dir / "products"), *arguments]
    if name in WAITS and "--wait" not in arguments:
        arguments.append("--wait")
    if local and "--local" not in arguments and _takes_local(name, arguments):
        arguments.append("--local")
    return [name, *arguments]


def _takes_local(name: str, arguments: list[str]) -> bool:
    """Tell whether a command has --local; some have it for --wait only."""
    from cli.main import imgrec

    command = imgrec.get_command(click.Context(imgrec), name)
    options = {each.name for each in command.params} if command else set[str | None]()
    return "local" in options and ("wait" not in options or "--wait" in arguments)


def _names_folder(arguments: list[str]) -> bool:
    """Tell whether a word is neither an option of `rebuild` nor the value of one."""
    from cli.rebuild import enqueue_rebuild

    options = [each for each in enqueue_rebuild.params if isinstance(each, click.Option)]
    valued = {name for each in options if not each.is_flag for name in each.opts}
    return any(
        not word.startswith("-") and previous not in valued
        for previous, word in pairwise(["", *arguments])
    )


def _spelled_now(command: str, word: str) -> list[str]:
    option, is_pair, value = word.partition("=")
    if option in ARGUMENTS.get(command, ()):
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
