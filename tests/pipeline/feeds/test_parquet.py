"""Values of a Parquet file are read as those of a CSV or JSON Lines file are."""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from catalogue_files import read

from pipeline.errors import WrongUse
from pipeline.feeds.columns import Type
from pipeline.feeds.feed import Feed
from pipeline.feeds.json_lines import cells_of
from pipeline.feeds.parquet import json_value, python_value, written
from pipeline.feeds.records import Problems, Unusable


def read_table(tmp_path: Path, columns: Any) -> tuple[dict[str, dict[str, Any]], Feed]:
    """Write columns to a file and read it: the facts of each product, and the feed."""
    reason = "the extra 'parquet' is not installed"
    pyarrow = pytest.importorskip("pyarrow", reason=reason)
    parquet = pytest.importorskip("pyarrow.parquet", reason=reason)
    table = columns if isinstance(columns, pyarrow.Table) else pyarrow.table(columns)
    parquet.write_table(table, tmp_path / "a.parquet")
    products, _, feed = read(tmp_path / "a.parquet")
    return {product.product_id: product.facts for product in products}, feed


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12, "12"),
        (12.0, "12.0"),
        (4006381333931.0, "4006381333931.0"),
        (1e16, "10000000000000000.0"),
        (9.5, "9.5"),
        (float("nan"), None),
        (Decimal("12.90"), "12.90"),
        (datetime.date(2026, 1, 31), "2026-01-31"),
        (datetime.datetime(2026, 1, 31, 12, 0, 0, 5), "2026-01-31 12:00:00.000005"),
        (True, True),
        (None, None),
        ("lamp", "lamp"),
        (["a", "b"], ["a", "b"]),
        (Unusable("cannot be read"), Unusable("cannot be read")),
        ("größe".encode(), "größe"),
        ([b"a", b"b"], ["a", "b"]),
        (b"\xff", Unusable("is not text in UTF-8")),
        ([b"a", b"\xff"], Unusable("is not text in UTF-8")),
    ],
)
def test_a_value_is_written_as_a_json_lines_file_has_it(value: object, text: object) -> None:
    assert json_value(value) == text


def test_whole_numbers_that_pandas_stored_as_floats_stay_identifiers(tmp_path: Path) -> None:
    products, feed = read_table(
        tmp_path, {"product_id": [12.0, 13.0, None], "gtin": [4006381333931.0, None, 1.0]}
    )
    assert products == {"12": {"gtin": "4006381333931"}, "13": {"gtin": None}}
    assert [(problem.line, problem.reason) for problem in feed.problems.bad] == [
        (3, "has no product_id")
    ]
    assert "Ids such as 12.0 were read as 12" in feed.problems.notes[0]


def test_bytes_are_text_in_utf8_or_left_out_with_a_warning(tmp_path: Path) -> None:
    products, feed = read_table(
        tmp_path,
        {"product_id": [b"a", b"b", b"\xff"], "title": ["Lämp".encode(), b"\xff\xfe", b"x"]},
    )
    assert products == {"a": {"title": "Lämp"}, "b": {}}
    assert [(problem.line, problem.reason) for problem in feed.problems.warnings] == [
        (2, "'title' is not text in UTF-8; it was left out"),
        (3, "'product_id' is not text in UTF-8; it was left out"),
    ]
    assert [(problem.line, problem.reason) for problem in feed.problems.bad] == [
        (3, "has no product_id")
    ]


def test_a_value_that_cannot_be_used_is_named_and_leaves_the_others() -> None:
    problems = Problems()
    cells = {"title": Unusable("is not text in UTF-8"), "price": "5"}
    assert cells_of(cells, 7, problems) == {"price": "5"}
    (warning,) = problems.warnings
    assert (warning.line, warning.reason) == (7, "'title' is not text in UTF-8; it was left out")


class Scalar:
    """A value of Arrow, which Python may not have."""

    def __init__(self, value: object) -> None:
        self._value = value

    def as_py(self) -> object:
        if isinstance(self._value, Exception):
            raise self._value
        return self._value


@pytest.mark.parametrize(
    ("value", "reading"),
    [
        ("a", "a"),
        (OverflowError("date value out of range"), "cannot be read (date value out of range)"),
        (ValueError("not convertible"), "cannot be read (not convertible)"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), "is not text in UTF-8"),
    ],
)
def test_a_value_that_python_does_not_have_is_left_out(value: object, reading: str) -> None:
    expected = Unusable(reading) if isinstance(value, Exception) else reading
    assert python_value(Scalar(value)) == expected


def test_nanoseconds_are_cut_off_and_told(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra 'parquet' is not installed")
    moments = [1_700_000_000_123_456_789, None]
    exact = [1_700_000_000_000_000_000, None]
    products, feed = read_table(
        tmp_path,
        {
            "product_id": ["a", "b"],
            "added": pyarrow.array(moments, pyarrow.timestamp("ns")),
            "changed": pyarrow.array(exact, pyarrow.timestamp("ns", "UTC")),
            "opens": pyarrow.array([1, None], pyarrow.time64("ns")),
        },
    )
    assert products == {
        "a": {
            "added": "2023-11-14 22:13:20.123456",
            "changed": "2023-11-14 22:13:20+00:00",
            "opens": "00:00:00",
        },
        "b": {"added": None, "changed": None, "opens": None},
    }
    assert feed.finders["added"].column().type == Type.DATE
    assert feed.problems.notes == [
        "Times in 'added' were cut off after microseconds.",
        "Times in 'opens' were cut off after microseconds.",
    ]


def test_a_date_that_python_does_not_have_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra 'parquet' is not installed")
    letters = pyarrow.py_buffer(b"x\xff")
    offsets = pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0")
    products, feed = read_table(
        tmp_path,
        {
            "product_id": ["a", "b"],
            "added": pyarrow.array([1 << 60, 0], pyarrow.timestamp("us")),
            "title": pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, offsets, letters]),
        },
    )
    assert products == {"a": {"title": "x"}, "b": {"added": "1970-01-01 00:00:00"}}
    assert [(problem.line, problem.reason) for problem in feed.problems.warnings] == [
        (1, "'added' cannot be read (date value out of range); it was left out"),
        (2, "'title' is not text in UTF-8; it was left out"),
    ]


def test_two_columns_of_one_name_are_both_imported_as_from_a_csv_file(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra 'parquet' is not installed")
    columns = [pyarrow.array(values) for values in (["lamp"], ["red"], ["blue"])]
    table = pyarrow.Table.from_arrays(columns, names=["product_id", "color", "color"])
    products, feed = read_table(tmp_path, table)
    assert products == {"lamp": {"color": "red", "color.2": "blue"}}
    assert "stands twice in the header" in feed.problems.notes[0]


def test_a_damaged_parquet_file_is_a_sentence(tmp_path: Path) -> None:
    read_table(tmp_path, {"product_id": [f"{n}" * 20 for n in range(100)]})
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[20:35] = b"\xff" * 15
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(WrongUse, match="cannot be imported: it is not a valid Parquet file"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("price", [9.99, 0.1, 129.0, 1e-3, 16_777_217.0])
def test_a_float32_is_read_as_it_was_written(price: float) -> None:
    stored = float(np.float32(price))
    found = written(stored)
    assert found == pytest.approx(price, rel=1e-7)
    assert len(repr(found)) <= len(repr(price))
    assert written(None) is None
    assert str(written(float("nan"))) == "nan"


def test_prices_of_32_bits_are_those_of_the_file(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra 'parquet' is not installed")
    prices = pyarrow.array([9.99], "float32")
    facts, _ = read_table(tmp_path, {"product_id": ["a"], "price": prices})
    assert facts == {"a": {"price": 9.99}}
