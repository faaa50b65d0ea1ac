"""Feeds and exports of shops become products: variants are joined, images counted once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from catalogue_files import import_file, read

from pipeline.errors import WrongUse
from pipeline.search.product_catalogue import Catalogue
from pipeline.store.database import Database
from pipeline.store.products import Products

CDN = "https://img.example.com"

GOOGLE = f"""<?xml version="1.0" encoding="UTF-8"?>
<rss version="2.0" xmlns:g="http://base.google.com/ns/1.0"><channel><title>Shop</title>
<item>
  <g:id>SOFA-1-RED</g:id><g:item_group_id>SOFA-1</g:item_group_id>
  <title><![CDATA[Sofa "Ann" <Red> & Oak]]></title>
  <g:image_link>{CDN}/red.jpg?w=1&amp;f=jpg</g:image_link>
  <g:additional_image_link>{CDN}/side.jpg</g:additional_image_link>
  <g:additional_image_link>{CDN}/base.jpg</g:additional_image_link>
  <g:price>1,249.00 USD</g:price><g:sale_price>999.00 USD</g:sale_price>
  <g:availability>in_stock</g:availability><g:gtin>0012345678905</g:gtin><g:color>Red</g:color>
  <g:shipping><g:country>US</g:country><g:price>14.95 USD</g:price></g:shipping>
</item>
<item>
  <g:id>SOFA-1-BLUE</g:id><g:item_group_id>SOFA-1</g:item_group_id>
  <title>Sofa Ann Blue &amp; Oak</title>
  <g:image_link>{CDN}/blue.jpg</g:image_link>
  <g:additional_image_link>{CDN}/side.jpg, {CDN}/detail.jpg</g:additional_image_link>
  <g:price>1,299.00 USD</g:price><g:availability>out of stock</g:availability>
  <g:color>Blue</g:color>
</item>
<item><g:id>0</g:id><title>Gift card</title><g:image_link></g:image_link>
  <g:price>25 USD</g:price></item>
</channel></rss>
"""
STOCK = (
    "id\tavailability\tquantity\n00120\tin_stock\t1\nSOFA-1-RED\tin_stock\t3\n0\tin_stock\t250\n"
)


@pytest.fixture
def products(tmp_path: Path) -> Products:
    return Products(Database(f"sqlite:///{tmp_path}/app.db"))


def write(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    file = folder / name
    file.write_bytes(text.encode(encoding))
    return file


def known(products: Products) -> tuple[dict[str, Any], Catalogue]:
    catalogue = products.catalogue()
    return {name: json.loads(text) for name, text in catalogue.facts_json.items()}, catalogue


def test_items_of_a_google_feed_are_joined_by_their_group(
    tmp_path: Path, products: Products
) -> None:
    outcome, feed = import_file(products, write(tmp_path, "feed.xml", GOOGLE))
    facts, catalogue = known(products)
    assert (feed.format, outcome.products, outcome.urls, feed.problems.bad) == ("google", 2, 5, [])
    assert feed.n_items == 3  # not the groups
    assert facts["SOFA-1"] == {
        "title": 'Sofa "Ann" <Red> & Oak',
        "price": 1249.0,
        "price_currency": "USD",
        "sale_price": 999.0,
        "sale_price_currency": "USD",
        "availability": "in_stock",
        "gtin": "0012345678905",
        "color": "Red",
        "shipping": "US:14.95 USD",
    }
    assert catalogue.varying("SOFA-1") == {
        "title": ['Sofa "Ann" <Red> & Oak', "Sofa Ann Blue & Oak"],
        "price": [1249.0, 1299.0],
        "availability": ["in_stock", "out_of_stock"],
        "color": ["Red", "Blue"],
    }
    assert [problem.reason for problem in feed.problems.warnings] == ["product '0' has no image"]
    (sofa,) = [p for p in read(tmp_path / "feed.xml")[0] if p.product_id == "SOFA-1"]
    assert sofa.urls[0] == f"{CDN}/red.jpg?w=1&f=jpg"


def test_a_supplemental_feed_updates_items_and_adds_none(
    tmp_path: Path, products: Products
) -> None:
    import_file(products, write(tmp_path, "feed.xml", GOOGLE))
    outcome, feed = import_file(products, write(tmp_path, "stock.tsv", STOCK))
    facts, catalogue = known(products)
    assert (outcome.products, outcome.unknown, outcome.total) == (2, ["00120"], 2)
    assert feed.problems.warnings == []
    assert facts["0"]["quantity"] == 250
    assert facts["0"]["title"] == "Gift card"
    assert facts["SOFA-1"]["price"] == 1249.0
    variants = [json.loads(text) for text in catalogue.variants_json["SOFA-1"]]
    assert [variant.get("quantity") for variant in variants] == [3, None]
    assert [variant["availability"] for variant in variants] == ["in_stock", "out_of_stock"]
    # The whole feed again keeps what the supplemental one has added.
    import_file(products, tmp_path / "feed.xml")
    assert known(products)[0]["SOFA-1"]["quantity"] == 3


def test_a_whole_feed_takes_away_what_its_items_no_longer_have(
    tmp_path: Path, products: Products
) -> None:
    import_file(products, write(tmp_path, "feed.xml", GOOGLE))
    without_sale = GOOGLE.replace("<g:sale_price>999.00 USD</g:sale_price>", "")
    other = (
        "<item><g:id>1</g:id><title>T</title><g:sale_price>1 USD</g:sale_price></item></channel>"
    )
    without_sale = without_sale.replace("</channel>", other)
    outcome, _ = import_file(products, write(tmp_path, "feed.xml", without_sale))
    assert "sale_price" not in known(products)[0]["SOFA-1"]
    assert outcome.emptied["sale_price"] == 1


def test_a_variant_belongs_to_one_product(tmp_path: Path) -> None:
    text = "id,item_group_id,title,availability\n1,A,T,x\n1,B,T,x\n2,B,T,x\n"
    products, _, feed = read(write(tmp_path, "a.csv", text))
    assert [(p.product_id, [v.item_id for v in p.variants]) for p in products] == [
        ("A", ["1"]),
        ("B", ["2"]),
    ]
    assert [problem.line for problem in feed.problems.bad] == [3]


def test_an_atom_feed_and_a_table_say_the_same_as_rss(tmp_path: Path) -> None:
    atom = (
        '<?xml version="1.0"?><feed xmlns="http://www.w3.org/2005/Atom" '
        'xmlns:g="http://base.google.com/ns/1.0"><title>Shop</title><entry><g:id>7</g:id>'
        '<title>Hat</title><link href="https://x.example/7"/>'
        f"<g:image_link>{CDN}/7.jpg</g:image_link><g:price>5.00 EUR</g:price></entry></feed>"
    )
    table = (
        f"id\ttitle\tlink\timage link\tprice\n7\tHat\thttps://x.example/7\t{CDN}/7.jpg\t5.00 EUR\n"
    )
    one = read(write(tmp_path, "a.xml", atom))
    two = read(write(tmp_path, "a.txt", table))
    assert one[2].format == two[2].format == "google"
    assert (one[0][0].facts, one[0][0].urls) == (two[0][0].facts, two[0][0].urls)
    assert one[0][0].facts["price_currency"] == "EUR"


@pytest.mark.parametrize(
    ("element", "text"),
    [
        ("<description>Nice <b>red</b> shoe</description>", "Nice red shoe"),
        ("<description><b>Red</b> <i>s</i>hoe</description>", "Red shoe"),
        ("<description>Nice<br/>shoe</description>", "Nice\nshoe"),
        ("<description><p>One</p><p>Two: <b>2</b></p></description>", "One\nTwo: 2"),
        ("<g:description>Nice <g:b>red</g:b> shoe</g:description>", "Nice red shoe"),
        ("<description>Sale: </description>", "Sale:"),
        ("<description>: new</description>", ": new"),
        ("<g:description>Sale:</g:description>", "Sale:"),
        ('<a:description xmlns:a="a"><a:x>One</a:x><a:y>Two</a:y></a:description>', "One\nTwo"),
    ],
)
def test_markup_within_a_value_leaves_its_text_as_it_is(
    tmp_path: Path, element: str, text: str
) -> None:
    feed = GOOGLE.replace("<g:id>0</g:id>", f"<g:id>0</g:id>{element}")
    products, _, _ = read(write(tmp_path, "a.xml", feed))
    assert products[0].facts["description"] == text


@pytest.mark.parametrize(
    ("element", "text"),
    [
        (
            "<g:shipping>\n<g:country>US</g:country>\n<g:region/>\n<g:price>5 USD</g:price>\n"
            "</g:shipping>",
            "US::5 USD",
        ),
        ("<g:tax><g:country/><g:rate>5</g:rate></g:tax>", "5"),
        ("<g:installment><g:months>6</g:months><g:amount>9</g:amount></g:installment>", "6:9"),
        ("<shipping><country>US</country><price>5 USD</price></shipping>", "US:5 USD"),
        ("<g:shipping>US:::5 USD</g:shipping>", "US:::5 USD"),
    ],
)
def test_parts_of_a_google_attribute_are_joined_as_in_a_table(
    tmp_path: Path, element: str, text: str
) -> None:
    feed = GOOGLE.replace("<g:id>0</g:id>", f"<g:id>0</g:id>{element}")
    products, _, _ = read(write(tmp_path, "a.xml", feed))
    name = element.partition(">")[0].strip("<").removeprefix("g:")
    assert str(products[0].facts[name]) == text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "iso-8859-1", "windows-1252"])
def test_xml_is_read_in_the_encoding_that_it_declares(tmp_path: Path, encoding: str) -> None:
    text = f'<?xml version="1.0" encoding="{encoding}"?>'
    text += "<rss><item><id>1</id><title>Thé</title></item></rss>"
    products, _, _ = read(write(tmp_path, "a.xml", text, encoding))
    assert products[0].facts == {"title": "Thé"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('<!DOCTYPE r [<!ENTITY a "b">]><rss><item><id>&a;</id></item></rss>', "declares entities"),
        ('<!DOCTYPE r [<!ENTITY a SYSTEM "file:///etc/passwd">]><rss/>', "declares entities"),
        (GOOGLE[:900], "is not well-formed XML"),
        ("<rss>" + "<a>" * 100, "nests elements too deeply"),
        ("<rss><item><id>1</id><title>" + "x" * 1_100_000, "more than 1,048,576 characters"),
        ("<rss><channel/></rss>", "XML without <item> or <entry>"),
    ],
)
def test_xml_that_is_broken_or_hostile_is_refused_whole(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(WrongUse, match=words):
        read(write(tmp_path, "a.xml", text))


SHOPIFY = f"""Handle,Title,Body (HTML),Vendor,Tags,Published,Option1 Name,Option1 Value,\
Option2 Name,Option2 Value,Variant SKU,Variant Inventory Qty,Variant Price,Variant Barcode,\
Image Src,Image Position,Variant Image,Status
shirt,Linen Shirt,"<p>Light</p>
<li>""stone washed""</li>",Mill,"linen, summer",true,Color,Navy,Size,S,HLS,4,59.00,'2000000001012,\
{CDN}/front.jpg?v=1,1,{CDN}/navy.jpg?v=4,active
shirt,,,,,,,Navy,,M,HLS,0,59.00,,{CDN}/back.jpg?v=2,2,{CDN}/navy.jpg?v=4,
shirt,,,,,,,Sand,,M,HLS,7,54.00,,{CDN}/navy.jpg?v=4,3,{CDN}/sand.jpg?v=5,
shirt,,,,,,,,,,,,,,{CDN}/cuff.jpg?v=3,4,,
tote,Canvas Tote,,Mill,,true,Title,Default Title,,,CT-1,12,18.50,,{CDN}/tote.jpg?v=6,1,,active
"""


def test_rows_of_a_shopify_export_are_joined_by_their_handle(
    tmp_path: Path, products: Products
) -> None:
    outcome, feed = import_file(products, write(tmp_path, "export.csv", SHOPIFY))
    facts, catalogue = known(products)
    assert (feed.format, outcome.products, outcome.urls) == ("shopify", 2, 6)
    assert (feed.problems.bad, feed.problems.warnings) == ([], [])
    assert facts["shirt"] == {
        "title": "Linen Shirt",
        "description": '<p>Light</p>\n<li>"stone washed"</li>',
        "vendor": "Mill",
        "tags": "linen, summer",
        "published": True,
        "status": "active",
        "Color": "Navy",
        "Size": "S",
        "sku": "HLS",
        "quantity": 4,
        "price": 59.0,
        "barcode": "2000000001012",
    }
    assert catalogue.varying("shirt")["price"] == [59.0, 54.0]
    assert catalogue.varying("shirt")["Color"] == ["Navy", "Sand"]
    assert facts["tote"]["price"] == 18.5
    assert "Title" not in facts["tote"]
    assert "tote" not in catalogue.variants_json


def test_a_variant_that_left_a_shopify_export_leaves_the_product(
    tmp_path: Path, products: Products
) -> None:
    import_file(products, write(tmp_path, "export.csv", SHOPIFY))
    less = "".join(line for line in SHOPIFY.splitlines(True) if ",Sand," not in line)
    import_file(products, write(tmp_path, "export.csv", less))
    _, catalogue = known(products)
    assert "price" not in catalogue.varying("shirt")
    update = "Handle,Option1 Name,Option1 Value,Option2 Name,Option2 Value,Variant Price\n"
    update += "shirt,Color,Navy,Size,M,49.00\nnobody,,,,,1.00\n"
    outcome, _ = import_file(products, write(tmp_path, "prices.csv", update))
    facts, catalogue = known(products)
    assert outcome.unknown == ["nobody"]
    assert facts["shirt"]["title"] == "Linen Shirt"
    assert catalogue.varying("shirt")["price"] == [59.0, 49.0]


WOOCOMMERCE = f"""\ufeffID,Typ,Artikelnummer,Name,Veröffentlicht,Beschreibung,Vorrätig?,Lager,\
Angebotspreis,"Regulärer Preis",Kategorien,Bilder,"Übergeordnetes Produkt",Position,\
"Attribut 1 Name","Attribut 1 Wert(e)"
501,variable,M-1,Mütze,1,"<p>Weich</p>\\n<p>Hand</p>",1,,,,"Mützen, Winter > Zubehör",\
"{CDN}/1.jpg, {CDN}/2.jpg",,0,Farbe,"Rot, Blau"
502,variation,M-1-R,Mütze - Rot,1,,1,5,"24,90","29,90",,{CDN}/rot.jpg,M-1,0,Farbe,Rot
503,variation,M-1-B,Mütze - Blau,1,,0,0,,"29,90",,,id:501,1,Farbe,Blau
504,simple,M-2,Handschuh,1,,1,40,,"1.029,00",Küche,{CDN}/h.jpg,,0,,
505,simple,,Probe,-1,,1,1,,"5,00",Küche,,,0,,
506,variation,M-9-X,Waise,1,,1,2,,"9,00",,{CDN}/w.jpg,M-9,0,Farbe,Grün
507,variation,M-8-X,Ohne,1,,1,2,,"9,00",,,,0,Farbe,Grün
""".replace("\n", "\r\n")


def test_variations_of_a_woocommerce_export_find_their_product_by_sku_or_id(
    tmp_path: Path, products: Products
) -> None:
    outcome, feed = import_file(products, write(tmp_path, "export.csv", WOOCOMMERCE))
    facts, catalogue = known(products)
    assert (feed.format, set(facts), outcome.urls) == ("woocommerce", {"M-1", "M-2", "505"}, 4)
    assert facts["M-1"]["title"] == "Mütze"
    assert facts["M-1"]["description"] == "<p>Weich</p>\n<p>Hand</p>"
    assert catalogue.values("M-1")["price"] == [24.9, 29.9]
    assert catalogue.values("M-1")["Farbe"] == ["Rot, Blau", "Rot", "Blau"]
    assert facts["M-2"]["price"] == 1029.0
    assert facts["505"]["published"] == "draft"
    assert sorted((p.line, p.reason) for p in feed.problems.bad) == [
        (7, "'M-9-X' names the parent 'M-9', which is not in the file"),
        (8, "is a variation (M-8-X) that names no parent"),
    ]
    assert (6, "product '505' is not published (draft)") in [
        (p.line, p.reason) for p in feed.problems.warnings
    ]


@pytest.mark.parametrize(
    ("header", "form"),
    [
        ("id,title,price,availability", "google"),
        ("id,title,price", "csv"),
        ("Handle,Title,Variant Price", "shopify"),
        ("ID,Type,UGS,Nom,Publié,Stock,Tarif régulier,Images,Parent", "woocommerce"),
        ("ID,Type,SKU,Name,Published,Stock,Regular price,Images,Parent", "woocommerce"),
        ("product_id,type,name", "csv"),
    ],
)
def test_the_columns_tell_the_format(tmp_path: Path, header: str, form: str) -> None:
    row = ",".join("1" for _ in header.split(","))
    file = write(tmp_path, "a.csv", f"{header}\n{row}\n")
    assert read(file)[2].format == form
    assert read(file, form=form)[2].format == form
    others = {"google", "shopify", "woocommerce"} - {form}
    for other in sorted(others):
        with pytest.raises(WrongUse, match=f"not those of the format '{other}'"):
            read(file, form=other)


def test_a_parquet_file_needs_its_library_or_is_read(tmp_path: Path) -> None:
    reason = "the extra 'parquet' is not installed"
    pyarrow = pytest.importorskip("pyarrow", reason=reason)
    parquet = pytest.importorskip("pyarrow.parquet", reason=reason)
    file = tmp_path / "a.parquet"
    table = pyarrow.table(
        {
            "product_id": [1, 2],
            "price": [9.5, float("nan")],
            "ean": [12345678901234567, None],
            "image": [[f"{CDN}/1.jpg", f"{CDN}/2.jpg"], None],
        }
    )
    parquet.write_table(table, file)
    products, _, feed = read(file)
    assert feed.format == "parquet"
    assert products[0].facts == {"price": 9.5, "ean": "12345678901234567"}
    assert products[0].urls == (f"{CDN}/1.jpg", f"{CDN}/2.jpg")
    assert products[1].facts == {"price": None, "ean": None}


def test_without_pyarrow_a_parquet_file_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.errors import SetupError

    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(SetupError, match=r"pip install '.\[parquet\]'"):
        read(write(tmp_path, "a.parquet", "PAR1"))
