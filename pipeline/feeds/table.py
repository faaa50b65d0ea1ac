"""Rows of a delimited table, as Excel, Numbers, shops and pandas write them."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TextIO

from pipeline.errors import WrongUse, quote
from pipeline.feeds.cells import clean
from pipeline.feeds.names import ID_NAMES, normalize
from pipeline.feeds.records import Problems, Row

DELIMITERS = (",", ";", "\t", "|")
MAX_LINE = 1 << 20  # characters
SAMPLE = 20  # lines that show the delimiter
_SEPARATOR = re.compile(r'"?sep=(.|\\t)"?\s*', re.IGNORECASE)
_NAMELESS = re.compile(r"unnamed: [0-9]+(_level_[0-9]+)?", re.IGNORECASE)


class Lines:
    """Lines with a way back; `readline` is that of a stream."""

    def __init__(self, readline: Callable[[int], str]) -> None:
        self._readline = readline
        self._number = 0
        self._pushed: deque[tuple[int, str]] = deque()
        self.record: list[tuple[int, str]] = []  # the lines of the record that is being read

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        line = self._pushed.popleft() if self._pushed else self._read()
        self.record.append(line)
        return line[1]

    def push_back(self, lines: list[tuple[int, str]]) -> None:
        self._pushed.extendleft(reversed(lines))

    def _read(self) -> tuple[int, str]:
        text = self._readline(MAX_LINE)
        if not text:
            raise StopIteration
        self._number += 1
        if len(text) == MAX_LINE and text[-1] not in "\r\n":
            raise WrongUse(
                f"line {self._number:,} of the file has more than {MAX_LINE:,} characters: this is "
                "not a table."
            )
        return self._number, text


@dataclass(frozen=True)
class Record:
    """The cells of one row; `broken` says why its quotes could not be followed."""

    line: int
    last_line: int
    cells: list[str]
    broken: str = ""


class Table:
    """A table with a header.

    Attributes:
        columns: the names, in the order of the header.
        decimal_comma: the delimiter is the one of countries that write 12,99.
    """

    def __init__(self, stream: TextIO, problems: Problems) -> None:
        """Read the header.

        Raises:
            WrongUse: there is none.
        """
        self._problems = problems
        self._lines = Lines(stream.readline)
        self._delimiter = self._find_delimiter()
        self.decimal_comma = self._delimiter == ";"
        self._records = _records(self._lines, self._delimiter)
        header = next((record for record in self._records if _has_text(record)), None)
        if header is None:
            raise WrongUse("it is empty.")
        self._names = unique_names(
            [_name(cell, header.line, problems) for cell in header.cells], problems
        )
        self.columns = [name for name in self._names if name]
        if not self.columns:
            raise WrongUse("its first line names no columns.")
        self._nameless = {
            n: 0 for n, name in enumerate(self._names) if not name and any(self._names[n:])
        }

    def rows(self) -> Iterator[Row]:
        """Yield the rows that can be read; the others are named."""
        usual = 0  # cells of a row that can be read
        in_doubt = False  # whether a line may be the rest of a row whose quotes are broken
        for record in self._records:
            if not _has_text(record):
                continue
            reason = self._mismatch(record, in_doubt)
            if reason:
                in_doubt = in_doubt or bool(record.broken)
                self._problems.refuse(record.line, reason)
                continue
            in_doubt = False
            usual = usual or len(record.cells)
            if len(record.cells) > max(usual, len(self._names)):
                # Or a delimiter within a cell has moved the cells behind it into an empty last one.
                self._problems.warn(
                    record.line,
                    "has an empty cell more than the header; look whether a cell with a delimiter "
                    "is not quoted",
                )
            cells = {
                name: clean(cell, name, record.line, self._problems)
                for name, cell in zip(self._names, record.cells, strict=False)
                if name
            }
            for name in self._names[len(record.cells) :]:
                if name:
                    cells[name] = ""
            for n in self._nameless:
                self._nameless[n] += bool(n < len(record.cells) and record.cells[n].strip())
            yield Row(record.line, cells)
        for n, count in self._nameless.items():
            if count:
                self._problems.note(
                    f"Column {n + 1} has no name: its values ({count:,}) were left out."
                )

    def _mismatch(self, record: Record, in_doubt: bool) -> str:
        """Say why a row cannot be read, or ""; warn where cells are missing at its end."""
        names = self._names
        width = len(names)
        while width and not names[width - 1]:
            width -= 1
        filled = len(record.cells)
        while filled and not record.cells[filled - 1].strip():
            filled -= 1
        # Cells whose quotes are even are whole: the quotes belong to the text.
        whole = not any(cell.count('"') % 2 for cell in record.cells)
        if record.broken and not (whole and width <= len(record.cells) <= len(names)):
            return f"its quotes cannot be followed ({record.broken})"
        upto = f" (up to line {record.last_line})" if record.last_line > record.line else ""
        if filled > width:
            return f"has {filled} cells{upto}, but the header has {width}"
        if len(record.cells) < width:
            reason = f"has {len(record.cells)} cells{upto}, but the header has {width}"
            if in_doubt or 2 * len(record.cells) < width:
                return reason
            self._problems.warn(record.line, f"{reason}: the last ones count as empty")
        return ""

    def _find_delimiter(self) -> str:
        """Choose what gives an id column, the same number of cells a line, and most columns."""
        sample = list[str]()
        for text in self._lines:
            if not sample and (match := _SEPARATOR.fullmatch(text.lstrip("\ufeff"))):
                self._lines.record.clear()
                return match[1].replace("\\t", "\t")
            if text.strip():
                sample.append(text)
            if len(sample) == SAMPLE:
                break
        self._lines.push_back(self._lines.record)
        self._lines.record = []
        best, delimiter = (False, 0.0, 0), ","
        for candidate in DELIMITERS:
            records = list(_records(_in_memory(sample), candidate))
            if not records or records[0].broken or len(records[0].cells) < 2:
                continue
            header, *rows = records
            has_id = any(normalize(cell) in ID_NAMES for cell in header.cells)
            same = sum(len(row.cells) == len(header.cells) for row in rows) / max(len(rows), 1)
            score = has_id, round(same, 1), len(header.cells)
            if score > best:
                best, delimiter = score, candidate
        return delimiter


def _in_memory(lines: list[str]) -> Lines:
    left = iter(lines)
    return Lines(lambda limit: next(left, ""))


def _records(lines: Lines, delimiter: str) -> Iterator[Record]:
    """Read records; after one whose quotes are broken, go on with the line after its first."""
    while True:
        reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
        try:
            while True:
                lines.record.clear()
                cells = next(reader)
                if lines.record:
                    yield Record(lines.record[0][0], lines.record[-1][0], cells)
        except StopIteration:
            return
        except csv.Error as error:
            (number, text), *rest = lines.record
            lines.push_back(rest)
            cells = []
            with suppress(csv.Error):  # a cell that is too long
                plain = csv.reader([text], delimiter=delimiter, quoting=csv.QUOTE_NONE)
                cells = next(plain, [])
            yield Record(number, number, cells, str(error))


def _has_text(record: Record) -> bool:
    return bool(record.broken) or any(cell.strip("\ufeff\x1a \t\r\n") for cell in record.cells)


def _name(cell: str, line: int, problems: Problems) -> str:
    name = unicodedata.normalize("NFC", clean(cell, "header", line, problems))
    name = " ".join(name.split())
    return "" if _NAMELESS.fullmatch(name) else name


def unique_names(names: list[str], problems: Problems) -> list[str]:
    """Number the names that stand twice: price, price -> price, price.2.

    Raises:
        WrongUse: it is the one that identifies a product.
    """
    unique: list[str] = []
    for n, name in enumerate(names, start=1):
        if name and name in unique:
            if normalize(name) in ID_NAMES and normalize(unique[0]) == normalize(name):
                raise WrongUse(
                    f"the column {quote(name)} stands twice in the header: which one identifies "
                    "a product?"
                )
            at, count = unique.index(name) + 1, 2
            while f"{name}.{count}" in names or f"{name}.{count}" in unique:
                count += 1
            problems.note(
                f"The column {quote(name)} stands twice in the header: column {at} keeps the name, "
                f"column {n} is imported as '{name}.{count}'."
            )
            name = f"{name}.{count}"
        unique.append(name)
    return unique
