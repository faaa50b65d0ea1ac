"""Catalogue files are read or refused with the line; products claim images; conditions hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import WrongUse
from pipeline.search.product_catalogue import Catalogue, Condition, Product, read_products
from pipeline.store.database import Database
from pipeline.store.products import Products


def write(folder: Path, text: str, name: str = "products.csv") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_a_csv_file_gives_products_with_their_other_columns(tmp_path: Path) -> None:
    file = write(tmp_path, "\ufeffproduct_id,title,price\nshoe/1,Red shoe,9.5\n\nshoe/2,,\n")
    assert read_products(file) == [
        Product("shoe/1", {"title": "Red shoe", "price": "9.5"}),
        Product("shoe/2", {}),  # empty cells say nothing
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_first_line_tells_the_delimiter(tmp_path: Path, delimiter: str) -> None:
    file = write(tmp_path, delimiter.join(["product_id", "price"]) + f"\nx{delimiter}5\n")
    assert read_products(file)[0].facts == {"price": "5"}


def test_several_images_stand_in_several_rows(tmp_path: Path) -> None:
    file = write(tmp_path, "product_id,image,title\nA,a/1.jpg,Shoe\nA,a/2.jpg,\nB,b.jpg,Bag\n")
    assert read_products(file) == [
        Product("A", {"title": "Shoe"}, ("a/1.jpg", "a/2.jpg")),
        Product("B", {"title": "Bag"}, ("b.jpg",)),
    ]


def test_json_lines_keep_numbers_and_truth(tmp_path: Path) -> None:
    rows = [{"product_id": 7, "price": 9.5, "sale": True, "note": None}]
    file = write(tmp_path, "\n".join(map(json.dumps, rows)), "products.jsonl")
    assert read_products(file) == [Product("7", {"price": 9.5, "sale": True})]


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("title\nx\n", "p.csv", "line 1 has no column 'product_id'"),
        ("product_id,a,a\n", "p.csv", "has a duplicate or empty column name"),
        ("product_id,a\nx,1,2\n", "p.csv", "line 2 has 3 cells, but the header has 2"),
        ("product_id,a\nx,1\n ,2\n", "p.csv", "line 3 has no product_id"),
        ("product_id,a\nx,1\nx,1\n", "p.csv", "line 3: product 'x' is listed twice"),
        (
            "product_id,image,a\nx,1.jpg,1\nx,2.jpg,2\n",
            "p.csv",
            "'a' of product 'x' is '2', before",
        ),
        (
            "product_id,image\nx,1.jpg\ny,1.jpg\n",
            "p.csv",
            "'1.jpg' is already an image of product 'x'",
        ),
        ("product_id,image\nx,../1.jpg\n", "p.csv", "not below the products folder"),
        ("product_id,image\nx,/etc/passwd\n", "p.csv", "not below the products folder"),
        ("product_id,a\nx,\0\n", "p.csv", "NUL"),
        ("product_id,a\n", "p.csv", "contains no products"),
        ("", "p.csv", "line 1 has no column"),
        ('product_id,a\n"x,1\n', "p.csv", "line 2"),
        ("not json\n", "p.jsonl", "line 1 is not valid JSON"),
        ("[1]\n", "p.jsonl", "line 1 is not a JSON object"),
        ('{"product_id": "x", "a": [1]}\n', "p.jsonl", "line 1: 'a' is not a string"),
        ('{"product_id": "x", "a": NaN}\n', "p.jsonl", "'a' is not a finite number"),
        ('{"product_id": true}\n', "p.jsonl", "line 1 has no product_id"),
        ("x", "p.xlsx", "neither .csv nor .jsonl"),
    ],
)
def test_a_mistake_is_a_sentence_with_its_line(
    tmp_path: Path, text: str, name: str, words: str
) -> None:
    with pytest.raises(WrongUse) as refused:
        read_products(write(tmp_path, text, name))
    assert words in str(refused.value)
    assert name in str(refused.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(b"product_id\n\xff\xfe\n")
    with pytest.raises(WrongUse, match="not UTF-8"):
        read_products(tmp_path / "p.csv")


def test_an_image_belongs_to_who_lists_it_then_to_its_name_then_to_its_folder() -> None:
    catalogue = Catalogue(1, {"A": "{}", "shoe/red": "{}", "shoe": "{}"}, {"x/1.jpg": "A"})
    assert catalogue.product_of("x/1.jpg") == "A"
    assert catalogue.product_of("shoe/red.jpg") == "shoe/red"
    assert catalogue.product_of("shoe/red/front.jpg") == "shoe/red"  # the nearest folder
    assert catalogue.product_of("shoe/blue/front.jpg") == "shoe"
    assert catalogue.product_of("hat/1.jpg") == "hat/1"  # nobody's: a product of its own
    assert Catalogue().product_of("shoe/red/front.jpg") == "shoe/red/front"


TEXTS = np.array(["shoe", "hat", None, "10", "9.5", "2026-01-02"], object)
NUMBERS = np.array([np.nan, np.nan, np.nan, 10.0, 9.5, np.nan])


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("x=Shoe", [0]),
        (" x = shoe ", [0]),
        ("x!=shoe", [1, 3, 4, 5]),  # where nothing is known, nothing holds
        ("x<10", [4]),
        ("x<=10", [3, 4]),
        ("x>9.5", [3]),
        ("x>=9.5", [3, 4]),
        ("x=10.0", [3]),  # as numbers
        ("x>2026-01-01", [0, 1, 4, 5]),  # as text
        ("x=", []),
    ],
)
def test_conditions_compare_numbers_as_numbers_and_the_rest_as_text(
    condition: str, rows: list[int]
) -> None:
    assert np.flatnonzero(Condition.parse(condition).holds(TEXTS, NUMBERS)).tolist() == rows


@pytest.mark.parametrize("text", ["", "price", "=5", "<5"])
def test_what_is_no_condition_is_a_sentence(text: str) -> None:
    with pytest.raises(WrongUse, match="write COLUMN=VALUE"):
        Condition.parse(text)


def test_an_import_adds_replaces_by_id_or_replaces_all(database: Database) -> None:
    products = Products(database)
    assert products.catalogue() == Catalogue()
    products.put([Product("a", {"x": 1}, ("1.jpg", "2.jpg")), Product("b", {"x": "é%?"})])
    first = products.catalogue()
    assert first.facts("b") == {"x": "é%?"}
    assert first.by_image == {"1.jpg": "a", "2.jpg": "a"}
    products.put([Product("a", {"y": 2}, ("2.jpg", "3.jpg"))])
    second = products.catalogue()
    assert second.facts("a") == {"y": 2}
    assert set(second.facts_json) == {"a", "b"}
    assert second.by_image == {"2.jpg": "a", "3.jpg": "a"}
    assert products.revision() == second.revision > first.revision
    products.put([Product("c", {})], replace=True)
    assert set(products.catalogue().facts_json) == {"c"}
    assert products.catalogue().by_image == {}


def test_a_page_for_a_condition_is_not_a_page_in_the_answer() -> None:
    with pytest.raises(WrongUse) as caught:
        Condition.parse("x" * 1000)
    assert len(str(caught.value)) < 250
    assert "xxx...'" in str(caught.value)
