"""The file names of an index by row: a JSON object with one line a row, read line by line.

Parsed as a whole, the map of a million images stops every other thread of a query worker for a
second (the parser holds Python's lock) and takes 200 MB; so the file is mapped, and a line is
parsed when somebody asks for it.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import IndexBroken

HEAD = b"{\n"
LINES = 4096  # parsed at a time where many are wanted
BLOCK = 4 << 20  # bytes looked through at a time for the ends of lines


def write_id_map(file: Path, paths: Sequence[str]) -> None:
    """Write `{"0": "shoe/a.jpg", ...}`, a line each; no path has a line break that JSON lets be."""
    with file.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write("{\n")
        end = ",\n"
        for row, path in enumerate(paths):
            if row == len(paths) - 1:
                end = "\n"
            stream.write(f'"{row}": {json.dumps(path, ensure_ascii=False)}{end}')
        stream.write("}\n")


def read_id_map(file: Path) -> Sequence[str]:
    """Open an id map; one that was written before in a single line is parsed as a whole.

    Raises:
        IndexBroken: it cannot be read, or is none.
    """
    try:
        with file.open("rb") as stream:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        if data[: len(HEAD)] == HEAD:
            return IdMap(file, data)
        names = json.loads(data[:])
        if not isinstance(names, dict):
            raise ValueError("it is no object")
        return [names[str(row)] for row in range(len(names))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IndexBroken(f"The id map {file} cannot be read: {error}.") from error


class IdMap(Sequence[str]):
    """A mapped id map; reading a line whose key is not its row raises IndexBroken."""

    def __init__(self, file: Path, data: mmap.mmap) -> None:
        self._file = file
        self._data = data
        self._ends = _line_ends(data)
        # The first line is the opening brace, the last the closing one.
        if len(self._ends) < 3 or data[self._ends[-2] + 1 :] != b"}\n":
            raise IndexBroken(f"The id map {file} is cut off.")
        for row in (0, len(self) - 1):
            _ = self[row]

    def __len__(self) -> int:
        return len(self._ends) - 2

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            first, last, step = row.indices(len(self))
            if step == 1:
                return self._lines(first, last) if last > first else []
            return [self[each] for each in range(first, last, step)]
        place = row if row >= 0 else len(self) + row
        if not 0 <= place < len(self):
            raise IndexError(row)
        return self._lines(place, place + 1)[0]

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), LINES):
            yield from self._lines(first, min(len(self), first + LINES))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def _lines(self, first: int, last: int) -> list[str]:
        start, end = int(self._ends[first]) + 1, int(self._ends[last])
        text = self._data[start:end].rstrip(b",")
        try:
            names: dict[str, str] = json.loads(b"{" + text + b"}")
            return [names[str(row)] for row in range(first, last)]
        except (ValueError, KeyError) as error:
            raise IndexBroken(
                f"The id map {self._file} is broken between rows {first} and {last}: {error}."
            ) from error


def take(paths: Sequence[str], rows: Sequence[int]) -> list[str]:
    """Return the names of rows, which mostly follow each other, in few reads."""
    found: list[str] = []
    stream = iter(rows)
    while chunk := list(islice(stream, LINES)):
        first, last = min(chunk), max(chunk) + 1
        if last - first > 4 * len(chunk):
            found += [paths[row] for row in chunk]
        else:
            names = paths[first:last]
            found += [names[row - first] for row in chunk]
    return found


def _line_ends(data: mmap.mmap) -> NDArray[np.int64]:
    """Return where the lines end, block by block: numpy lets other threads run meanwhile."""
    text = np.frombuffer(data, np.uint8)
    parts = [
        np.flatnonzero(text[start : start + BLOCK] == ord("\n")) + start
        for start in range(0, len(text), BLOCK)
    ]
    return np.concatenate(parts)
