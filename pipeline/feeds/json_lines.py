"""Rows of a JSON Lines file: one object on each line."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, TextIO

from pipeline.errors import WrongUse, one_line
from pipeline.feeds.cells import clean, scalar
from pipeline.feeds.records import Problems, Row, Unusable

MAX_LINE = 4 << 20  # characters
MAX_EXPONENT = 40  # a number of more digits stays as it is written


class NotFinite(str):
    """NaN, Infinity or -Infinity, which are no JSON but which programs write."""


def json_rows(stream: TextIO, problems: Problems) -> Iterator[Row]:
    """Yield the objects of a stream; lines that hold none are named.

    Numbers keep the digits that they are written with.
    """
    number = 0
    # readline() would part at a line break of Unicode within a string in no case: newline is "".
    while text := stream.readline(MAX_LINE):
        number += 1
        if len(text) == MAX_LINE:
            raise WrongUse(f"line {number:,} of the file has more than {MAX_LINE:,} characters.")
        if not text.strip("\ufeff\x1a \t\r\n"):
            continue
        try:
            row = json.loads(
                text.lstrip("\ufeff"),
                parse_int=str,
                parse_float=_plain,
                parse_constant=NotFinite,
                object_pairs_hook=_object,
            )
        except _TwiceError as error:
            problems.refuse(number, f"the name '{error}' stands twice in the object")
            continue
        except (ValueError, ArithmeticError, RecursionError) as error:  # 1e99999999999999999999
            problems.refuse(number, f"is not valid JSON ({one_line(error)})")
            continue
        if not isinstance(row, dict):
            problems.refuse(number, "is not a JSON object")
            continue
        yield Row(number, cells_of(row, number, problems))


def cells_of(row: dict[str, Any], line: int, problems: Problems) -> dict[str, str]:
    """Return the values of an object as clean texts."""
    cells = {}
    for key, value in row.items():
        name = unicodedata.normalize("NFC", clean(key, "the name of a column", line, problems))
        if isinstance(value, NotFinite):
            problems.warn(line, f"'{name}' is {value}, not a number; it was left out")
            continue
        if isinstance(value, Unusable):
            problems.warn(line, f"'{name}' {value.reason}; it was left out")
            continue
        text = scalar(value, name, line, problems)
        if text is not None and name:
            cells[name] = clean(text, name, line, problems)
    return cells


class _TwiceError(ValueError):
    """An object with a name that stands twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(next(name for name in names if names.count(name) > 1))
    return row


def _plain(text: str) -> str:
    """Write 1e5 as 100000: in JSON, an exponent is a number and never a part of an identifier."""
    if "e" not in text and "E" not in text:
        return text
    number = Decimal(text)
    if abs(number.adjusted()) > MAX_EXPONENT:
        return text
    return f"{number:f}"
