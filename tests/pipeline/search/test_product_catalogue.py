"""Products claim images; conditions follow the types of columns."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.errors import WrongUse
from pipeline.feeds.columns import Column, Type
from pipeline.search.catalogue_filter import IndexedCatalogue
from pipeline.search.product_catalogue import Catalogue, Condition


def test_an_image_belongs_to_who_lists_it_then_to_its_name_then_to_its_folder() -> None:
    catalogue = Catalogue(1, {"A": "{}", "shoe/red": "{}", "shoe": "{}"}, {"x/1.jpg": "A"})
    assert catalogue.product_of("x/1.jpg") == "A"
    assert catalogue.product_of("shoe/red.jpg") == "shoe/red"
    assert catalogue.product_of("shoe/red/front.jpg") == "shoe/red"  # the nearest folder
    assert catalogue.product_of("shoe/blue/front.jpg") == "shoe"
    assert catalogue.product_of("hat/1.jpg") == "hat/1"  # nobody's: a product of its own
    assert Catalogue().product_of("shoe/red/front.jpg") == "shoe/red/front"


def rows(condition: str, values: list[Any], column: Column | None, **more: Any) -> list[int]:
    """Return the rows of an index, one product a row, that meet a condition on column `x`."""
    facts = {f"p{n}": {} if v is None else {"x": v} for n, v in enumerate(values)}
    catalogue = Catalogue(
        1,
        {name: json.dumps(known) for name, known in facts.items()},
        columns={} if column is None else {"x": column},
        **more,
    )
    version: Any = SimpleNamespace(
        name="v0001", kept=None, paths=[f"p{n}.jpg" for n in range(len(values))]
    )
    mask = IndexedCatalogue(version, catalogue).allowed([Condition.parse(condition)])
    assert mask is not None
    return np.flatnonzero(mask).tolist()


PRICES = [49, 12.99, None, 1299, "on request"]


@pytest.mark.parametrize(
    ("condition", "matches"),
    [
        ("x<50", [0, 1]),
        ("x<=49", [0, 1]),
        ("x=<49", [0, 1]),
        ("x>12.99", [0, 3]),
        ("x>=12,99", [0, 1, 3]),
        ("x=>12.99", [0, 1, 3]),
        ("x = 49.00", [0]),
        ("x==49", [0]),
        ("x<>49", [1, 3, 4]),  # where nothing is known, nothing holds
        ("x!=49", [1, 3, 4]),
        ("x>1.2e3", [3]),
        ("x<0", []),
        ("x=1299.00", [3]),
    ],
)
def test_numbers_are_compared_as_numbers(condition: str, matches: list[int]) -> None:
    assert rows(condition, PRICES, Column("x", Type.NUMBER)) == matches


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("x<cheap", "The column 'x' is a number: 'cheap' is not one."),
        ("x=NaN", "'NaN' is not one"),
        ("x<inf", "'inf' is not one"),
        ("x<1_0", "'1_0' is not one"),
        ("x<50 EUR", "--where 'x_currency=EUR' chooses a currency"),
        ("x<1,299", "can be read in two ways. Write 1299 or 1.299."),
    ],
)
def test_a_bound_that_is_no_number_is_told_with_the_type(condition: str, words: str) -> None:
    with pytest.raises(WrongUse) as refused:
        rows(condition, PRICES, Column("x", Type.NUMBER))
    assert words in str(refused.value)


def test_identifiers_are_compared_digit_by_digit() -> None:
    skus = ["007", "7", "10", "1e1", "1_0", "12345678901234567", "12345678901234568"]
    column = Column("x", Type.IDENTIFIER)
    for n, sku in enumerate(skus):
        assert rows(f"x={sku}", skus, column) == [n]
    with pytest.raises(WrongUse, match=r"The column 'x' is an identifier: '<' does not apply"):
        rows("x<8", skus, column)


def test_texts_are_equal_without_regard_to_case_or_to_how_accents_are_encoded() -> None:
    texts = ["Thé\u0301", "THÉ\u0301", "cafe\u0301", "tea"]
    assert rows("x=CAF\u00c9", texts, Column("x")) == [2]
    assert rows("x!=tea", texts, Column("x")) == [0, 1, 2]
    with pytest.raises(WrongUse, match="is text: '>' does not apply"):
        rows("x>b", texts, Column("x"))


def test_truth_and_dates_have_their_own_bounds() -> None:
    truth, dates = Column("x", Type.BOOLEAN), Column("x", Type.DATE)
    assert rows("x=yes", [True, False, "perhaps"], truth) == [0]
    assert rows("x=FALSE", [True, False, "perhaps"], truth) == [1]
    with pytest.raises(WrongUse, match="is a boolean: 'soon' is neither true nor false"):
        rows("x=soon", [True], truth)
    days = ["2025-12-31", "2026-01-02T10:00:00Z", "2026-01-02", "soon"]
    assert rows("x>=2026-01", days, dates) == [1, 2]
    assert rows("x=2026-01-02", days, dates) == [2]
    with pytest.raises(WrongUse, match="is a date: 'soon' is none"):
        rows("x<soon", days, dates)


def test_a_product_with_variants_matches_by_any_of_them_and_differs_by_all() -> None:
    variants = {"p0": ['{"x": "Brass"}', '{"x": "Black"}'], "p1": ['{"x": "Brass"}']}
    values = ["Brass", "Brass", "Red"]
    assert rows("x=black", values, Column("x"), variants_json=variants) == [0]
    assert rows("x=brass", values, Column("x"), variants_json=variants) == [0, 1]
    assert rows("x!=black", values, Column("x"), variants_json=variants) == [1, 2]


def test_a_column_of_an_older_catalogue_has_the_type_that_its_values_show() -> None:
    """Which were stored as the texts of the file."""
    assert rows("x<50", ["49", "12,99", "$45.00", "1.299,00"], None) == [0, 1, 2]
    assert rows("x=007", ["007", "7"], None) == [0]


@pytest.mark.parametrize(
    "text", ["", "price", "=5", "<5", "x=", "x<", "x===5", "x<<5", "x=!5", "x!<5", "x><5"]
)
def test_what_is_no_condition_is_a_sentence(text: str) -> None:
    with pytest.raises(WrongUse, match="write COLUMN=VALUE"):
        Condition.parse(text)


def test_names_and_values_with_signs_stand_in_quotes() -> None:
    assert Condition.parse('"a=b" = "<i>"') == Condition("a=b", "=", "<i>")


def test_a_page_for_a_condition_is_not_a_page_in_the_answer() -> None:
    with pytest.raises(WrongUse) as caught:
        Condition.parse("x" * 1000)
    assert len(str(caught.value)) < 350
    assert "xxx...'" in str(caught.value)
