"""A column has one type, found over all of its values."""

from __future__ import annotations

import pytest

from pipeline.feeds.columns import Column, Type, TypeFinder


def find(name: str, values: list[str], **options: bool) -> tuple[TypeFinder, Column]:
    finder = TypeFinder(name)
    for line, value in enumerate(values, start=2):
        finder.add(value, line)
    return finder, finder.column(**options)


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("price", ["49", "12,99", "$45.00", "15.00 USD", "1,299.00"], Type.NUMBER),
        ("price", ["49", "12", "on request"], Type.NUMBER),  # its name says that it counts
        ("Price tax included", ["1\u00a0049,00 \u20ac"], Type.NUMBER),
        ("unitPrice", ["05", "7"], Type.NUMBER),
        ("year", ["2023", "2024"], Type.NUMBER),
        ("width", ["1", "nan", "n/a"], Type.NUMBER),
        ("price", ["NaN"], Type.NUMBER),
        ("x", ["1" + "0" * 400, "1e999", "5"], Type.NUMBER),
        ("size", ["38", "40", "M", "L"], Type.TEXT),
        ("title", ["Lamp", "Lamp 2"], Type.TEXT),
        ("sku", ["10", "7"], Type.IDENTIFIER),
        ("EAN13", ["2000000001012"], Type.IDENTIFIER),
        ("item_group_id", ["1"], Type.IDENTIFIER),
        ("number", ["7", "007"], Type.IDENTIFIER),
        ("number", ["7", "12345678901234567"], Type.IDENTIFIER),
        ("model", ["1E5", "2E7", "X"], Type.TEXT),
        ("sale", ["true", "FALSE"], Type.BOOLEAN),
        ("sale", ["true", "sometimes"], Type.TEXT),
        ("added", ["2026-01-31", "2026-02-01T10:00:00+02:00"], Type.DATE),
        ("added", ["2026-13-31"], Type.TEXT),
        ("anything", [], Type.TEXT),
    ],
)
def test_the_type_follows_all_values_and_the_name(name: str, values: list[str], kind: Type) -> None:
    assert find(name, values)[1].type == kind


def test_one_number_in_ten_may_be_none_and_is_told() -> None:
    values = ["1"] * 18 + ["?", "10" * 200]
    finder, column = find("x", values)
    assert column.type == Type.NUMBER
    misfits = finder.misfits[Type.NUMBER]
    assert (misfits.count, misfits.lines) == (2, [20, 21])
    assert find("x", [*values[2:], "?"])[1].type == Type.TEXT


@pytest.mark.parametrize(
    ("values", "decimal_comma", "reading"),
    [
        (["1.299", "12,99"], False, 1299),
        (["1.299", "12.99"], False, 1.299),
        (["1,299", "12,99"], False, 1.299),
        (["1,299", "12.99"], False, 1299),
        (["1.299"], False, 1.299),
        (["1,299"], False, 1299),
        (["1,299"], True, 1.299),
        (["1.299"], True, 1299),
    ],
)
def test_other_values_of_the_column_tell_what_a_separator_means(
    values: list[str], decimal_comma: bool, reading: float
) -> None:
    finder, column = find("price", values, decimal_comma=decimal_comma)
    assert column.read(values[0])[0] == reading
    assert finder.either == values[:1]


def test_a_value_that_does_not_fit_stays_as_it_is() -> None:
    number = Column("x", Type.NUMBER)
    for text in ("n/a", "9" * 400, "12345678901234567", "1E5"):
        assert number.read(text) == (text, "")
        assert number.key(text) is None
    assert Column("x", Type.BOOLEAN).read("perhaps") == ("perhaps", "")
    assert Column("x", Type.DATE).key("soon") is None


def test_what_the_user_says_counts() -> None:
    finder, _ = find("sku", ["10", "7"])
    column = finder.column(Type.NUMBER)
    assert (column.type, column.chosen, column.read("10")) == (Type.NUMBER, True, (10, ""))
