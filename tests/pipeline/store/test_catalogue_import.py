"""An import changes the columns that its file has, and nothing else."""

from __future__ import annotations

import json
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from catalogue_files import import_rows, import_text

from pipeline.errors import ImgrecError, WrongUse
from pipeline.feeds.columns import Type
from pipeline.feeds.staging import Staging
from pipeline.search.product_catalogue import Catalogue
from pipeline.store import catalogue_import
from pipeline.store import database as database_module
from pipeline.store.database import Database
from pipeline.store.products import Products


@pytest.fixture
def products(database: Database) -> Products:
    return Products(database)


def facts(products: Products) -> dict[str, Any]:
    catalogue = products.catalogue()
    return {name: json.loads(known) for name, known in catalogue.facts_json.items()}


def urls(database: Database) -> list[tuple[str, str]]:
    with database.transaction(read_only=True) as tx:
        rows = tx.rows("SELECT product_id, url FROM product_urls ORDER BY product_id, position")
    return [(row["product_id"], row["url"]) for row in rows]


def test_a_file_of_stock_leaves_titles_prices_and_images(products: Products) -> None:
    assert products.catalogue() == Catalogue()
    import_text(products, "product_id,title,price,image\np0,Hat,10,\nX9,Bag,5,1.jpg\nX9,,,2.jpg\n")
    first = products.revision()
    outcome, _ = import_text(products, "product_id,stock\np0,3\nX9,7\nnew,1\n")
    assert facts(products) == {
        "X9": {"title": "Bag", "price": 5, "stock": 7},
        "new": {"stock": 1},
        "p0": {"title": "Hat", "price": 10, "stock": 3},
    }
    assert products.catalogue().by_image == {"1.jpg": "X9", "2.jpg": "X9"}
    assert (outcome.new, outcome.total, outcome.products) == (["new"], 3, 3)
    assert products.revision() > first


def test_an_empty_cell_takes_a_value_away_and_says_so(products: Products) -> None:
    import_text(products, "product_id,title,sale_price\na,Hat,5\nb,Bag,6\n")
    outcome, _ = import_text(products, "product_id,sale_price\na,\nb,7\n")
    assert facts(products) == {"a": {"title": "Hat"}, "b": {"title": "Bag", "sale_price": 7}}
    assert outcome.emptied == {"sale_price": 1}
    import_rows(products, [{"product_id": "b", "title": None}, {"product_id": "a", "x": "é%?"}])
    assert facts(products) == {"a": {"title": "Hat", "x": "é%?"}, "b": {"sale_price": 7}}


def test_images_of_a_file_take_the_place_of_those_before(products: Products) -> None:
    import_text(products, "product_id,image\na,1.jpg\na,2.jpg\nb,3.jpg\n")
    import_text(products, "product_id,image\na,2.jpg\na,4.jpg\n")
    assert products.catalogue().by_image == {"2.jpg": "a", "4.jpg": "a", "3.jpg": "b"}


IMAGES = "product_id,title,image\na,Hat,1.jpg\na,,2.jpg\nb,Bag,3.jpg\nc,Cap,4.jpg\n"


@pytest.mark.parametrize("text", ["product_id,image\na,\nb,\n", "product_id,images\na,n/a\nb,\n"])
def test_an_emptied_column_of_images_removes_them_and_says_so(
    products: Products, text: str
) -> None:
    import_text(products, IMAGES)
    outcome, _ = import_text(products, text)
    assert products.catalogue().by_image == {"4.jpg": "c"}
    assert outcome.emptied == {"image": 3}
    assert facts(products)["a"] == {"title": "Hat"}


def addresses(products: Products) -> list[tuple[str, str]]:
    with products._database.transaction(read_only=True) as tx:
        rows = tx.rows("SELECT product_id, url FROM product_urls ORDER BY product_id, position")
    return [(row["product_id"], row["url"]) for row in rows]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("product_id,image_url\na,\nb,\n", ["c"]),
        ("product_id,image_url\na,\nb,https://x.example/9.jpg\n", ["b", "c"]),
        ("product_id,title\na,Hat\n", ["a", "a", "b", "c"]),
    ],
)
def test_emptied_cells_of_addresses_remove_them_and_say_so(
    products: Products, text: str, left: list[str]
) -> None:
    urls = "https://x.example/1.jpg https://x.example/2.jpg"
    rows = f"a,{urls}\nb,https://x.example/3.jpg\nc,https://x.example/4.jpg\n"
    import_text(products, f"product_id,image_url\n{rows}")
    assert len(addresses(products)) == 4
    outcome, _ = import_text(products, text)
    assert [product_id for product_id, _ in addresses(products)] == left
    removed = 4 - len(left)
    assert outcome.emptied == ({"image address": removed} if removed else {})


def test_null_removes_the_images_of_a_product(products: Products) -> None:
    import_text(products, IMAGES)
    import_rows(products, [{"product_id": "b", "image": None}])
    assert products.catalogue().by_image == {"1.jpg": "a", "2.jpg": "a", "4.jpg": "c"}


def test_an_image_that_changes_its_product_is_not_counted_as_removed(products: Products) -> None:
    import_text(products, IMAGES)
    outcome, _ = import_text(products, "product_id,image\nb,\nc,3.jpg\n")
    assert products.catalogue().by_image == {"1.jpg": "a", "2.jpg": "a", "3.jpg": "c"}
    assert outcome.emptied == {}


@pytest.mark.parametrize(
    "text",
    [
        "product_id,price\na,5\n",
        "product_id,picture_url\na,\n",
        "product_id,image\na,https://x.example/1.jpg\nb,\n",  # a column of addresses
        "product_id,image\na,/srv/1.jpg\n",  # left out with a warning
    ],
)
def test_a_file_that_says_nothing_of_images_below_the_folder_leaves_them(
    products: Products, text: str
) -> None:
    import_text(products, IMAGES)
    before = products.catalogue().by_image
    outcome, _ = import_text(products, text)
    assert products.catalogue().by_image == before
    assert outcome.emptied == {}


def test_an_image_changes_its_owner_only_where_both_are_in_the_file(products: Products) -> None:
    import_text(products, "product_id,image\na,1.jpg\nb,2.jpg\n")
    _, feed = import_text(products, "product_id,image\nc,1.jpg\nc,3.jpg\n")
    assert products.catalogue().by_image == {"1.jpg": "a", "2.jpg": "b", "3.jpg": "c"}
    (warning,) = feed.problems.warnings
    assert warning.line == 2
    assert "'1.jpg' is an image of product 'a' since an earlier import" in warning.reason
    _, feed = import_text(products, "product_id,image\nz,1.jpg\na,5.jpg\n")
    assert products.catalogue().by_image["1.jpg"] == "z"
    assert feed.problems.warnings == []


def test_replace_takes_the_whole_catalogues_place_and_counts_what_goes(
    products: Products, database: Database
) -> None:
    import_text(products, "product_id,title,image,picture_url\na,Hat,1.jpg,https://x.example/1\n")
    import_text(products, "product_id,title\nb,Bag\nc,Cap\n")
    text = "product_id,price\nc,5\nd,6\n"
    outcome, _ = import_text(products, text, replace=True, dry_run=True)
    assert (outcome.removed, outcome.n_new, outcome.total) == (2, 1, 2)
    assert set(facts(products)) == {"a", "b", "c"}
    outcome, _ = import_text(products, text, replace=True)
    assert (outcome.removed, outcome.total) == (2, 2)
    assert facts(products) == {"c": {"price": 5}, "d": {"price": 6}}
    assert products.catalogue().by_image == {}
    assert urls(database) == []
    assert set(products.catalogue().columns) == {"price"}


def test_replace_refuses_a_file_with_bad_rows_whose_products_it_would_remove(
    products: Products,
) -> None:
    import_text(products, "product_id,title\na,Hat\nb,Bag\n")
    with pytest.raises(
        WrongUse, match=r"would remove the products of bad rows \(1, e.g. line 3: has 3 cells"
    ):
        import_text(products, "product_id,title\na,Hat\nb,Bag, big\n", replace=True)
    assert set(facts(products)) == {"a", "b"}


def test_replace_refuses_a_file_that_only_updates(products: Products) -> None:
    import_text(products, "product_id,title\na,Hat\n")
    with pytest.raises(WrongUse, match="--replace needs a file with titles"):
        import_text(products, "id,availability\na,in_stock\n", replace=True)
    assert set(facts(products)) == {"a"}


def test_a_dry_run_writes_nothing(products: Products) -> None:
    revision = products.revision()
    outcome, _ = import_text(products, "product_id,title\na,Hat\n", dry_run=True)
    assert (outcome.products, outcome.n_new, outcome.total) == (1, 1, 1)
    assert products.catalogue() == Catalogue()
    assert products.revision() == revision


def test_the_type_of_a_column_is_stored_with_the_catalogue(products: Products) -> None:
    import_text(products, 'product_id,price,sku\na,"12,99",7\nb,15.00 USD,8\nc,n/a,9\n')
    columns = products.catalogue().columns
    assert {name: column.type.value for name, column in columns.items()} == {
        "price": "number",
        "price_currency": "text",
        "sku": "identifier",
    }
    assert facts(products) == {
        "a": {"price": 12.99, "sku": "7"},
        "b": {"price": 15.0, "price_currency": "USD", "sku": "8"},
        "c": {"price": "n/a", "sku": "9"},
    }
    import_text(products, "product_id,price\nb,16\n")
    assert facts(products)["b"] == {"price": 16, "price_currency": "USD", "sku": "8"}


def test_a_type_that_the_user_chose_holds_for_later_imports(products: Products) -> None:
    import_text(products, "product_id,size\na,40\n", types={"size": Type.TEXT})
    import_text(products, "product_id,size\nb,41\n")
    assert products.catalogue().columns["size"].type == Type.TEXT
    assert facts(products) == {"a": {"size": "40"}, "b": {"size": "41"}}
    import_text(products, "product_id,size\nc,42\n", replace=True)
    assert facts(products) == {"c": {"size": "42"}}
    with pytest.raises(WrongUse, match="--type names the column 'siez'"):
        import_text(products, "product_id,size\nb,41\n", types={"siez": Type.TEXT})


def test_a_type_follows_the_values_of_all_imports(products: Products) -> None:
    import_text(products, "product_id,size\na,XL\nb,L\n")
    _, feed = import_text(products, "product_id,size\nb,40\n")
    assert products.catalogue().columns["size"].type == Type.TEXT
    assert "stays text because of values of earlier imports" in feed.problems.notes[0]
    import_text(products, "product_id,size\na,38\nb,40\n")  # no other value is left
    assert products.catalogue().columns["size"].type == Type.NUMBER


def test_a_catalogue_without_types_gets_them_at_its_next_import(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = database_module._sections()
    with monkeypatch.context() as patch:
        patch.setattr(database_module, "_sections", lambda: sections[:6])
        with Database(database_url).transaction() as tx:
            for name, price in (("a", "12,99"), ("b", "$1,299.00"), ("c", "5")):
                tx.rows("INSERT INTO products VALUES (?, ?)", (name, json.dumps({"price": price})))
            tx.rows("INSERT INTO product_images VALUES ('1.jpg', 'a')")
    products = Products(Database(database_url))
    assert products.catalogue().column("price", ["12,99", "5"]).type == Type.NUMBER
    import_text(products, "product_id,stock\na,1\n")
    assert products.catalogue().columns["price"].type == Type.NUMBER
    assert facts(products)["a"] == {"price": "12,99", "stock": 1}
    assert products.catalogue().by_image == {"1.jpg": "a"}


def test_another_import_in_between_is_taken_into_account(
    products: Products, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_text(products, "product_id,title\na,Hat\n")
    make, times = catalogue_import._Plan.make, []

    def interrupted(plan: Any, report: Any) -> Any:
        outcome = make(plan, report)
        times.append(1)
        if len(times) == 1:
            import_text(products, "product_id,color\na,red\n")
        return outcome

    monkeypatch.setattr(catalogue_import._Plan, "make", interrupted)
    _, feed = import_text(products, "product_id,price,image\na,5,../x.jpg\n")
    assert len(times) == 3
    assert facts(products) == {"a": {"title": "Hat", "color": "red", "price": 5}}
    assert feed.problems.n_warnings == 1

    def always(plan: Any, report: Any) -> Any:
        outcome = make(plan, report)
        with products._database.transaction() as tx:
            catalogue_import.count_change(tx, catalogue_import.NAME)
        return outcome

    monkeypatch.setattr(catalogue_import._Plan, "make", always)
    with pytest.raises(ImgrecError, match="Other imports keep changing the catalogue"):
        import_text(products, "product_id,price\na,6\n")


def test_two_imports_at_once_lose_nothing(
    products: Products, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned, written = threading.Barrier(2), threading.Barrier(2)
    make, write, times = catalogue_import._Plan.make, catalogue_import._write, []

    def make_together(plan: Any, report: Any) -> Any:
        outcome = make(plan, report)
        times.append(1)
        if len(times) <= 2:
            planned.wait(30)
        return outcome

    def write_together(*args: Any) -> None:
        with suppress(threading.BrokenBarrierError):  # the other one waits for this transaction
            written.wait(1.0)
        write(*args)

    monkeypatch.setattr(catalogue_import._Plan, "make", make_together)
    monkeypatch.setattr(catalogue_import, "_write", write_together)
    texts = ("product_id,title\na,Hat\n", "product_id,name\na,Lampe\n")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda text: import_text(products, text), texts))
    assert facts(products) == {"a": {"title": "Hat", "name": "Lampe"}}
    assert len(times) == 3


def test_a_full_temporary_folder_is_not_the_databases_fault(
    products: Products, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Staging.begin_plan

    def full(staging: Staging) -> None:
        staging._connection.execute("PRAGMA max_page_count = 1")
        begin(staging)

    monkeypatch.setattr(Staging, "begin_plan", full)
    rows = "".join(f"p{n},{'x' * 1000}\n" for n in range(3000))
    with pytest.raises(ImgrecError, match=f"cannot be written to {tempfile.gettempdir()}: .*full"):
        import_text(products, f"product_id,title\n{rows}")


def test_many_products_are_imported_in_batches(products: Products) -> None:
    rows = "".join(f"p{n},{n},p{n}.jpg\n" for n in range(1201))
    outcome, _ = import_text(products, f"product_id,stock,image\n{rows}")
    assert (outcome.products, outcome.images, outcome.total) == (1201, 1201, 1201)
    outcome, _ = import_text(products, f"product_id,stock,image\n{rows}", replace=True)
    assert (outcome.n_new, outcome.removed, outcome.total) == (0, 0, 1201)


def test_owners_of_images_are_those_of_the_whole_catalogue(products: Products) -> None:
    rows = "A,x/1.jpg\nshoe,\nshoe/red,\n\u00e9t\u00e9,\nB,\u00e9.jpg\n"
    import_text(products, f"product_id,image\n{rows}")
    paths = ["x/1.jpg", "shoe/red.jpg", "shoe/red/front.jpg", "shoe/blue/1.jpg", "hat/1.jpg"]
    paths += ["e\u0301te\u0301/1.jpg", "e\u0301.jpg"]  # as macOS writes them
    catalogue = products.catalogue()
    assert products.owners(paths) == [catalogue.product_of(path) for path in paths]
    assert products.owners(paths)[:3] == ["A", "shoe/red", "shoe/red"]
    assert products.owners(paths)[-2:] == ["\u00e9t\u00e9", "B"]
