"""What the products can be filtered by."""

from __future__ import annotations

import json
from typing import Any

from pipeline.search.facets import MAX_CHOICES, Facet, facets
from pipeline.search.product_catalogue import Catalogue


def of(*rows: dict[str, Any]) -> list[Facet]:
    return facets(Catalogue(1, {f"p{n}": json.dumps(row) for n, row in enumerate(rows)}))


def test_numbers_are_a_range_and_few_texts_are_choices() -> None:
    columns = of({"price": "12.5", "color": "red"}, {"price": 7, "color": "Blue"}, {"price": -1})
    assert columns == [Facet("color", choices=("Blue", "red")), Facet("price", -1, 12.5)]


def test_choices_are_told_apart_without_regard_to_case_as_filters_do() -> None:
    columns = of({"color": "Red"}, {"color": "red"}, {"color": "Red"}, {"color": "blue"})
    assert columns == [Facet("color", choices=("blue", "Red"))]


def test_choices_are_written_as_a_file_has_them() -> None:
    columns = of({"sale": True, "size": 38.5}, {"sale": False, "size": "XL"})
    assert columns == [
        Facet("sale", choices=("false", "true")),
        Facet("size", choices=("38.5", "XL")),
    ]


def test_a_column_of_many_texts_or_of_one_value_is_no_filter() -> None:
    rows = [{"title": f"Title {n}", "shop": "mine"} for n in range(MAX_CHOICES + 1)]
    assert of(*rows) == []
    assert len(of(*rows[:-1])[0].choices) == MAX_CHOICES


def test_a_text_among_many_numbers_leaves_a_range_and_one_of_two_does_not() -> None:
    rows: list[dict[str, Any]] = [{"size": n} for n in range(MAX_CHOICES + 1)]
    assert of(*rows) == [Facet("size", 0, MAX_CHOICES)]
    assert of(*rows, {"size": "XL"}) == [Facet("size", 0, MAX_CHOICES)]
    assert of({"size": 38}, {"size": "XL"}) == [Facet("size", choices=("38", "XL"))]


def test_a_column_of_any_name_that_stands_in_quotes_is_a_filter() -> None:
    columns = of({"a<b": 1, "a=b": 1, '"b"': 1}, {"a<b": 2, "a=b": 2, '"b"': 2})
    assert columns == [Facet('"b"', 1, 2), Facet("a<b", 1, 2), Facet("a=b", 1, 2)]


def test_a_column_that_no_condition_can_name_is_no_filter() -> None:
    assert of({'"a"<b': 1}, {'"a"<b': 2}) == []
    assert facets(Catalogue()) == []
