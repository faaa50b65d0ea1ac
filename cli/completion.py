"""Complete a line of the shell: commands, their options, paths."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import click
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from cli.main import COMMANDS, imgrec

SHELL_ONLY = ("rebuild", "help", "exit", "quit")


class LineCompleter(Completer):
    """The first word is a command; then options where a dash stands, sub-commands, else paths."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        """Yield what the word under the cursor may become."""
        words = document.text_before_cursor.split(" ")
        last = words[-1]
        if len(words) == 1:
            yield from _matching(sorted({*COMMANDS, *SHELL_ONLY} - {"serve"}), last)
            return
        options, subcommands = _of_command("enqueue-rebuild" if words[0] == "rebuild" else words[0])
        if last.startswith("-"):
            yield from _matching(options, last)
        elif subcommands:
            yield from _matching(subcommands, last)
        else:
            yield from self._paths.get_completions(Document(last), event)


def _matching(words: Iterable[str], start: str) -> Iterable[Completion]:
    return (Completion(word, -len(start)) for word in words if word.startswith(start))


@lru_cache
def _of_command(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return a command's options and sub-commands."""
    command = imgrec.get_command(click.Context(imgrec), name)
    if command is None:
        return (), ()
    options = [
        text for each in command.params for text in each.opts if isinstance(each, click.Option)
    ]
    subcommands = tuple(command.commands) if isinstance(command, click.Group) else ()
    return tuple(sorted(options)), subcommands
