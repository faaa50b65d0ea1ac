"""What `imgrec import-catalogue` says: counts, types, bad rows, and what it left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inline_worker import InlineWorker

Run = Callable[..., Any]

FEED = """\
product_id,title,price,sku,image
kind0/00,Hat,"12,99",007,
kind0/02,Bag,$45.00,8,
kind0/04,Cap,on request,9,
kind0/06,Shoe, red,10,10,x.jpg
,Scarf,5,11,
"""


@pytest.fixture
def feed(tmp_path: Path) -> Path:
    file = tmp_path / "products.csv"
    file.write_text(FEED)
    return file


def test_an_import_shows_the_type_of_each_column_and_names_what_does_not_fit(
    imgrec: Run, inline_worker: InlineWorker, feed: Path
) -> None:
    inline_worker.rebuild()
    done = imgrec("import-catalogue", feed)
    assert done.code == 0
    first, *columns = done.out.splitlines()
    assert first == ("Imported 3 products (3 new), 3 of them in the index. Products in total: 3.")
    assert [" ".join(line.split()) for line in columns] == [
        "title text 3 values",
        "price number 3 values ($ 1), 1 not numbers: rows 4",
        "sku identifier 3 values",
    ]
    assert "Line 5 was not imported: has 6 cells, but the header has 5." in done.err
    assert "Line 6 was not imported: has no product_id." in done.err


def test_json_holds_columns_types_and_bad_rows(imgrec: Run, feed: Path) -> None:
    answer = imgrec("import-products", feed, "--json").object
    assert (answer["products"], answer["new"], answer["total"]) == (3, 3, 3)
    assert answer["columns"] == ["title", "price", "sku"]
    assert answer["types"]["price"] == {
        "type": "number",
        "values": 3,
        "currencies": {"$": 1},
        "misfits": 1,
        "misfit_lines": [4],
    }
    assert answer["bad_rows"] == 2
    assert [problem["line"] for problem in answer["bad"]] == [5, 6]
    assert (answer["format"], answer["indexed"], answer["dry_run"]) == ("csv", None, False)


def test_a_dry_run_says_what_it_understood_and_changes_nothing(imgrec: Run, feed: Path) -> None:
    done = imgrec("import-catalogue", feed, "--dry-run")
    assert done.out.startswith("Would import 3 products (3 new). Products in total: 3.\n")
    assert "Line 5 was not imported" in done.err
    feed.write_text("product_id,stock\na,1\n")
    assert imgrec("import-catalogue", feed, "--json").object["total"] == 1


def test_replace_says_how_many_products_it_removes(imgrec: Run, feed: Path) -> None:
    imgrec("import-catalogue", feed)
    done = imgrec("import-catalogue", feed, "--replace")
    assert done.code == 2
    assert "--replace would remove the products of bad rows (2, e.g. line 5:" in done.err
    feed.write_text("product_id,title\nkind0/00,Hat\n")
    done = imgrec("import-catalogue", feed, "--replace")
    assert "(0 new, 2 removed). Products in total: 1." in done.out


def test_types_are_chosen_by_the_user(imgrec: Run, feed: Path) -> None:
    chosen = ("--type", "sku=number", "--type", "price=text")
    types = imgrec("import-catalogue", feed, *chosen, "--json").object["types"]
    assert (types["sku"]["type"], types["price"]["type"]) == ("number", "text")
    done = imgrec("import-catalogue", feed, "--type", "sku=money")
    assert done.code == 2
    assert "'money' is not a type. Types: number, text, identifier, boolean, date." in done.err
    done = imgrec("import-catalogue", feed, "--type", "number")
    assert (done.code, "not of the form COLUMN=TYPE" in done.err) == (2, True)


def test_a_later_file_says_what_it_removed_added_and_could_not_read_for_sure(
    imgrec: Run, feed: Path
) -> None:
    feed.write_text('product_id,title,price\na,Hat,"1,299"\nb,Bag,5\n')
    done = imgrec("import-catalogue", feed)
    assert (
        "In 'price', values like 1,299 can be read in two ways; this one was read as 1299."
        in done.err
    )
    feed.write_text("product_id,price\na,\nc,7\n")
    done = imgrec("import-catalogue", feed)
    assert "Removed 1 value, because the cell is empty in this file: price 1." in done.err
    assert "New products: c." in done.err


def test_a_long_list_of_bad_rows_is_cut_off_for_people_only(imgrec: Run, feed: Path) -> None:
    rows = "".join(f"x{n},1,2,3\n" for n in range(50))
    feed.write_text(f"product_id,a\nok,1\n{rows}")
    done = imgrec("import-catalogue", feed)
    assert done.err.count("was not imported") == 20
    assert "... and 30 more like these; --json lists them." in done.err
    assert len(imgrec("import-catalogue", feed, "--json").object["bad"]) == 50


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be imported: it is empty"),
        ("product_id\n", "contains no products"),
        ("name\nHat\n", "no column identifies a product: name it 'product_id'"),
    ],
)
def test_a_file_without_products_is_one_sentence(
    imgrec: Run, feed: Path, text: str, words: str
) -> None:
    feed.write_text(text)
    done = imgrec("import-catalogue", feed)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
