"""Patterns of files and folders that a listing leaves out: `--exclude` and `.imgrecignore`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import WrongUse, quote

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

EXCLUDE_FILE = ".imgrecignore"
MAX_BYTES = 1024 * 1024  # of an exclude file


class Exclude:
    """Patterns as in a .gitignore, relative to one folder."""

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        """Read the patterns of a command line.

        Raises:
            WrongUse: one of them is empty or not a pattern.
        """
        self._patterns = tuple(patterns)
        for pattern in self._patterns:
            if not pattern.strip():
                raise WrongUse("Invalid --exclude '': name the files or folders to leave out.")
        # In a file, a line that begins with # is a comment, and #recycle would exclude nothing.
        lines = [f"\\{text}" if text.startswith("#") else text for text in self._patterns]
        self._spec = _compile(lines, "--exclude") if lines else None
        self._unused = {
            pattern: _compile([line], "--exclude")
            for pattern, line in zip(self._patterns, lines, strict=True)
        }

    @property
    def is_empty(self) -> bool:
        """Whether there is no pattern."""
        return self._spec is None

    def matches(self, path: str) -> bool:
        """Tell whether a path is left out; a folder's ends with a slash."""
        if self._spec is None:
            return False
        if not self._spec.match_file(path):
            return False
        for pattern in [text for text, spec in self._unused.items() if spec.match_file(path)]:
            del self._unused[pattern]
        return True

    @property
    def unused(self) -> list[str]:
        """The patterns that have matched nothing so far."""
        return list(self._unused)


@dataclass(frozen=True)
class FolderExclude:
    """The patterns of one folder's exclude file, and those of the folders that it lies in."""

    prefix: str  # path of the folder, "" or with a slash at the end
    spec: GitIgnoreSpec
    outer: FolderExclude | None

    def matches(self, path: str) -> bool:
        """Tell whether a path below the folder is left out; the nearest file decides."""
        result = self.spec.check_file(path.removeprefix(self.prefix))
        if result.include is not None or self.outer is None:
            return bool(result.include)
        return self.outer.matches(path)


def read_exclude_file(folder: str) -> GitIgnoreSpec:
    """Read the exclude file of a folder.

    Raises:
        WrongUse: it is too large, not UTF-8, or a line is not a pattern.
        OSError: it cannot be read.
    """
    file = os.path.join(folder, EXCLUDE_FILE)
    with open(file, "rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise WrongUse(f"The file '{file}' has more than {MAX_BYTES:,} bytes of patterns.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise WrongUse(f"The file '{file}' is not UTF-8: save it as UTF-8 text.") from error
    return _compile(text.splitlines(), f"'{file}'")


def _compile(lines: Sequence[str], where: str) -> GitIgnoreSpec:
    from pathspec import GitIgnoreSpec  # not at the top: few commands need it

    for line in lines:
        try:
            GitIgnoreSpec.from_lines([line])
        except ValueError as error:
            raise WrongUse(f"Invalid pattern {quote(line)} in {where}.") from error
    return GitIgnoreSpec.from_lines(lines)
