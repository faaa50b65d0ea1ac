"""Rows of a Parquet file; pyarrow is optional."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import SetupError, WrongUse, one_line
from pipeline.feeds.json_lines import NotFinite, cells_of
from pipeline.feeds.records import Problems, Row, Unusable
from pipeline.feeds.table import unique_names
from pipeline.names import nfc

BATCH = 1000
NOT_UTF8 = "is not text in UTF-8"


def parquet_rows(file: Path, problems: Problems) -> Iterator[Row]:
    """Yield the rows of a file; a row's line is its number, from 1.

    Raises:
        SetupError: pyarrow is not installed.
        WrongUse: the file is not valid, or two columns identify a product.
    """
    number, names = 0, list[str]()
    for batch in _batches(file):
        names = names or unique_names([nfc(name) for name in batch.schema.names], problems)
        columns = [
            _values(_in_microseconds(column, name, problems))
            for name, column in zip(names, batch.columns, strict=True)
        ]
        for values in zip(*columns, strict=True):
            number += 1
            cells = {name: json_value(value) for name, value in zip(names, values, strict=True)}
            yield Row(number, cells_of(cells, number, problems))


def _batches(file: Path) -> Iterator[Any]:
    """Yield some rows at a time."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise SetupError(
            "pyarrow, which reads Parquet files, is not installed: install imgrec with the extra "
            "'parquet', `pip install '.[parquet]'` in its folder, or export the table as CSV or "
            "JSON Lines."
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            yield from table.iter_batches(BATCH)
    except (pyarrow.ArrowException, ValueError, OverflowError, OSError) as error:
        if isinstance(error, OSError) and error.strerror:  # of the disk; Arrow's own have none
            raise
        raise WrongUse(f"it is not a valid Parquet file ({one_line(error)}).") from error


def _in_microseconds(column: Any, name: str, problems: Problems) -> Any:
    """Return times that count nanoseconds in microseconds: Python has nothing finer."""
    import pyarrow

    kind, types = column.type, pyarrow.types
    if types.is_timestamp(kind) and kind.unit == "ns":
        coarser = pyarrow.timestamp("us", kind.tz)
    elif types.is_time64(kind) and kind.unit == "ns":
        coarser = pyarrow.time64("us")
    elif types.is_duration(kind) and kind.unit == "ns":
        coarser = pyarrow.duration("us")
    else:
        return column
    try:
        return column.cast(coarser)
    except pyarrow.ArrowInvalid:
        problems.note(f"Times in '{name}' were cut off after microseconds.")
        return column.cast(coarser, safe=False)


def _values(column: Any) -> list[Any]:
    import pyarrow

    try:
        values = list(column.to_pylist())
    except (ValueError, OverflowError):
        return [python_value(each) for each in column]
    return list(map(written, values)) if pyarrow.types.is_float32(column.type) else values


def written(value: float | None) -> float | None:
    """Return a float32 as people wrote it: 9.99, not 9.989999771118164."""
    return None if value is None else float(str(np.float32(value)))


def python_value(scalar: Any) -> Any:
    """Return a value of Arrow as Python has it, `Unusable` for one that Python does not have."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return Unusable(NOT_UTF8)
    except (ValueError, OverflowError) as error:  # the year 36812
        return Unusable(f"cannot be read ({one_line(error)})")


def json_value(value: Any) -> Any:
    """Return a value as a JSON Lines file has it: numbers, dates and bytes in UTF-8 are text.

    What cannot be a fact is `Unusable`, or of a type that `cells.scalar` reports.
    """
    if isinstance(value, bytes):
        return _decoded(value)
    if isinstance(value, list):
        parts = [json_value(part) if isinstance(part, bytes) else part for part in value]
        return next((part for part in parts if isinstance(part, Unusable)), parts)
    if isinstance(value, float) and (value != value or value in (float("inf"), -float("inf"))):
        return None if value != value else NotFinite(value)  # pandas writes a gap as NaN
    if value is None or isinstance(value, bool | str | dict | Unusable):
        return value
    if isinstance(value, float):
        # pandas stores whole numbers with gaps as floats: a CSV file has them as 12.0, too.
        return f"{value:.1f}" if value.is_integer() else repr(value)
    return str(value)  # whole numbers, decimals, dates


def _decoded(value: bytes) -> str | Unusable:
    """Read text that Impala and Hive store as bytes, without saying that it is UTF-8."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return Unusable(NOT_UTF8)
