"""What a shop knows about its products: read from a file, looked up, and asked with conditions."""

from __future__ import annotations

import csv
import io
import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pipeline.errors import WrongUse, quote
from pipeline.names import nfc

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Value = str | int | float | bool
Facts = dict[str, Value]

PRODUCT_ID, IMAGE = "product_id", "image"
MAX_TEXT = 10_000  # characters of one value
# Spaces are stripped afterwards: a pattern that skips them tries every split of a long blank text.
CONDITION = re.compile(r"([^<>=!]+)(<=|>=|!=|=|<|>)(.*)", re.DOTALL)
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Product:
    """One product of a catalogue file; `images` are paths below the products folder."""

    product_id: str
    facts: Facts
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Catalogue:
    """All products at one revision; facts stay JSON until they are looked at."""

    revision: int = 0
    facts_json: Mapping[str, str] = field(default_factory=dict)
    by_image: Mapping[str, str] = field(default_factory=dict)

    def product_of(self, filename: str) -> str:
        """Name the product that an image shows.

        That is the product that lists the image, else the one that is called like it without its
        suffix, else the one that is called like the nearest folder that it lies in; an image that
        no product claims is a product of its own.
        """
        filename = nfc(filename)
        listed = self.by_image.get(filename)
        if listed is not None:
            return listed
        # Not PurePosixPath: this runs once for every row of an index.
        folder, slash, name = filename.rpartition("/")
        own = f"{folder}{slash}{name.rpartition('.')[0] or name}"
        if own in self.facts_json or not self.facts_json:
            return own
        while folder:
            if folder in self.facts_json:
                return folder
            folder = folder.rpartition("/")[0]
        return own

    def facts(self, product_id: str) -> Facts:
        """Return what is known about a product; nothing, if it was not imported."""
        found: Facts = json.loads(self.facts_json.get(nfc(product_id), "{}"))
        return found


@dataclass(frozen=True)
class Condition:
    """One `--where`: a column compared with a value."""

    column: str
    sign: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read `category=shoe`, `price<50`, `color!=red`, ...

        Raises:
            WrongUse: it is none.
        """
        found = CONDITION.fullmatch(text)
        column, sign, value = (part.strip() for part in found.groups()) if found else ("", "", "")
        if not column:
            raise WrongUse(
                f"Invalid condition {quote(text)}: write COLUMN=VALUE, or one of !=, <, <=, "
                "> and >= in place of =."
            )
        return cls(column, sign, value)

    def holds(self, texts: NDArray[np.object_], numbers: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Compare a column -> (n,); where there is no value, nothing holds.

        Two numbers are compared as numbers, everything else as text without regard to case.

        Args:
            texts: (n,) casefolded text, None where there is no value.
            numbers: (n,) the same as numbers, NaN where it is none.
        """
        import numpy as np  # not at the top: the command line only reads conditions

        compare, wanted = COMPARE[self.sign], to_number(self.value)
        known = np.array([text is not None for text in texts], bool)
        if self.sign in ("=", "!="):
            same = np.array([text == self.value.casefold() for text in texts], bool)
            if wanted is not None:
                same |= numbers == wanted
            equal: NDArray[np.bool_] = known & (same if self.sign == "=" else ~same)
            return equal
        if wanted is not None:
            found: NDArray[np.bool_] = compare(numbers, wanted)  # NaN is neither less nor more
            return found
        text = self.value.casefold()
        return np.array([t is not None and bool(compare(t, text)) for t in texts], bool)


def to_number(value: Value) -> float | None:
    """Return a value as a finite number, or None."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def read_products(file: Path) -> list[Product]:
    """Read a .csv (first line: columns) or .jsonl file with a column `product_id`.

    A column `image` names an image below the products folder; a product of several images has a row
    for each, whose other columns may be left empty.

    Raises:
        WrongUse: naming the file and the line.
    """
    readers = {".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _json_rows, ".ndjson": _json_rows}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise WrongUse(f"The file '{file}' is neither .csv nor .jsonl.")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise WrongUse(f"The file '{file}' is not UTF-8 (byte {error.start}).") from error
    except OSError as error:
        raise WrongUse(f"The file '{file}' cannot be read: {error.strerror}.") from error
    try:
        products = _collect(reader(text))
    except _Mistake as mistake:
        raise WrongUse(f"The file '{file}' cannot be imported: {mistake}.") from mistake
    if not products:
        raise WrongUse(f"The file '{file}' contains no products.")
    return products


class _Mistake(Exception):
    """What is wrong with a file, and in which line."""


def _csv_rows(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = [column.strip() for column in next(reader, [])]
        if PRODUCT_ID not in columns:
            raise _Mistake(f"line 1 has no column '{PRODUCT_ID}'")
        if len(set(columns)) < len(columns) or "" in columns:
            raise _Mistake("line 1 has a duplicate or empty column name")
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(columns):
                line = f"line {reader.line_num} has {len(cells)} cells"
                raise _Mistake(f"{line}, but the header has {len(columns)}")
            yield reader.line_num, dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        raise _Mistake(f"line {reader.line_num}: {error}") from error


def _json_rows(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # Not splitlines(): a line separator of Unicode may stand within a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _Mistake(f"line {number} is not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise _Mistake(f"line {number} is not a JSON object")
        yield number, row


def _collect(rows: Iterable[tuple[int, dict[str, Any]]]) -> list[Product]:
    facts: dict[str, Facts] = {}
    images: dict[str, list[str]] = {}
    owner: dict[str, str] = {}
    for line, row in rows:
        product_id = _product_id(row.pop(PRODUCT_ID, None), line)
        image = row.pop(IMAGE, None)
        values = {str(k): _value(v, k, line) for k, v in row.items() if v not in (None, "")}
        if image not in (None, ""):
            path = _image(image, line)
            if owner.setdefault(path, product_id) != product_id:
                raise _Mistake(
                    f"line {line}: '{path}' is already an image of product '{owner[path]}'"
                )
            images.setdefault(product_id, []).append(path)
        elif product_id in facts:
            raise _Mistake(f"line {line}: product '{product_id}' is listed twice")
        known = facts.setdefault(product_id, {})
        for column, value in values.items():
            if known.setdefault(column, value) != value:
                reason = (
                    f"'{column}' of product '{product_id}' is '{value}', before '{known[column]}'"
                )
                raise _Mistake(f"line {line}: {reason}")
    return [
        Product(product_id, known, tuple(dict.fromkeys(images.get(product_id, ()))))
        for product_id, known in facts.items()
    ]


def _product_id(value: Any, line: int) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise _Mistake(f"line {line} has no {PRODUCT_ID}")
    return nfc(_text(value.strip(), PRODUCT_ID, line))


def _image(value: Any, line: int) -> str:
    if not isinstance(value, str):
        raise _Mistake(f"line {line}: '{IMAGE}' is not a string")
    path = PurePosixPath(nfc(_text(value.strip(), IMAGE, line)).replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise _Mistake(f"line {line}: the image '{path}' is not below the products folder")
    return str(path)


def _value(value: Any, column: Any, line: int) -> Value:
    if not isinstance(value, str | int | float | bool):
        raise _Mistake(f"line {line}: '{column}' is not a string, a number or a boolean")
    if isinstance(value, str):
        return _text(value.strip(), str(column), line)
    if isinstance(value, float) and not math.isfinite(value):
        raise _Mistake(f"line {line}: '{column}' is not a finite number")
    return value


def _text(value: str, column: str, line: int) -> str:
    if len(value) > MAX_TEXT:
        raise _Mistake(f"line {line}: '{column}' has more than {MAX_TEXT:,} characters")
    if "\0" in value:  # which PostgreSQL refuses to store
        raise _Mistake(f"line {line}: '{column}' contains a NUL character")
    return value
