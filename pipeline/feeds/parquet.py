"""Rows of a Parquet file; pyarrow is optional."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import SetupError, WrongUse, one_line
from pipeline.feeds.json_lines import NotFinite, cells_of
from pipeline.feeds.records import Problems, Row, Unusable

BATCH = 1000


def parquet_rows(file: Path, problems: Problems) -> Iterator[Row]:
    """Yield the rows of a file; a row's line is its number, from 1.

    Raises:
        SetupError: pyarrow is not installed.
        WrongUse: the file is not valid.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise SetupError(
            "pyarrow, which reads Parquet files, is not installed. Install it with 'pip install "
            "imgrec[parquet]', or export the table as CSV or JSON Lines."
        ) from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(BATCH):
                for row in batch.to_pylist():
                    number += 1
                    cells = {name: json_value(value) for name, value in row.items()}
                    yield Row(number, cells_of(cells, number, problems))
    except pyarrow.ArrowException as error:
        raise WrongUse(f"it is not a valid Parquet file ({one_line(error)}).") from error


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
    if value is None or isinstance(value, bool | str | dict):
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
        return Unusable("is not text in UTF-8")
