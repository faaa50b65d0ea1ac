"""Tables are read as spreadsheets, shops and pandas write them; what cannot be read is named."""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from catalogue_files import read

from pipeline.errors import WrongUse
from pipeline.feeds.columns import Type
from pipeline.feeds.feed import Feed
from pipeline.feeds.records import Problem, Problems
from pipeline.feeds.table import MAX_LINE, Table
from pipeline.names import nfc


def write(folder: Path, text: str | bytes, name: str = "products.csv") -> Path:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def facts(file: Path, **reading: Any) -> tuple[dict[str, dict[str, Any]], Feed]:
    products, _, feed = read(file, **reading)
    return {
        product.product_id: {k: v for k, v in product.facts.items() if v is not None}
        for product in products
    }, feed


def reasons(problems: Iterable[Problem]) -> list[tuple[int, str]]:
    return [(problem.line, problem.reason) for problem in problems]


TEXT = "product_id,title,price\nshoe/1,Rød sko,9.5\n\nshoe/2,,\n"
READ = {"shoe/1": {"title": "Rød sko", "price": 9.5}, "shoe/2": {}}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends_are_found(tmp_path: Path, encoding: str, newline: str) -> None:
    file = write(tmp_path, TEXT.replace("\n", newline).encode(encoding))
    products, feed = facts(file)
    assert products == READ
    told = [] if encoding.startswith("utf-8") else [f"The file was read as {feed.encoding}"]
    assert [note.lower()[: len(told[0])] for note in feed.problems.notes] == [
        sentence.lower().replace("cp1252", "windows-1252")[: len(told[0])] for sentence in told
    ]


def test_a_damaged_utf8_file_is_not_read_as_another_encoding(tmp_path: Path) -> None:
    products, feed = facts(
        write(tmp_path, "product_id,title\na,Größe\nb,Stra".encode() + b"\xc3e\n")
    )
    assert products == {"a": {"title": "Größe"}, "b": {"title": "Stra\ufffde"}}
    assert reasons(feed.problems.warnings) == [
        (3, "'title' contains bytes that are not valid text; replaced by \ufffd")
    ]


@pytest.mark.parametrize(
    "content",
    [TEXT.encode("utf-16")[:-1], TEXT.encode("utf-16") + b"\x00\xdc", b"\xff\xfe\x00\x00\x00\x01"],
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_utf16_that_is_cut_off_is_one_sentence(tmp_path: Path, content: bytes, name: str) -> None:
    with pytest.raises(
        WrongUse, match=r"cannot be imported: it is not valid UTF-(16|32) \(.*cut off"
    ):
        facts(write(tmp_path, content, name))


def test_an_encoding_can_be_chosen(tmp_path: Path) -> None:
    file = write(tmp_path, "product_id,title\na,Żółw\n".encode("cp1250"))
    assert facts(file, encoding="cp1250")[0] == {"a": {"title": "Żółw"}}
    with pytest.raises(WrongUse, match="unknown encoding 'nonsense'"):
        facts(file, encoding="nonsense")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_header_tells_the_delimiter(tmp_path: Path, delimiter: str) -> None:
    line = delimiter.join(['"x"', '"5"'])
    file = write(tmp_path, delimiter.join(["product_id", "size"]) + f"\n{line}\n")
    assert facts(file)[0] == {"x": {"size": 5}}


@pytest.mark.parametrize(
    "header",
    [
        '"product_id";"colour, main, shade, tone";"price"',
        "product_id;colour, main, shade, tone;price",
        'sep=;\nproduct_id;"colour, main, shade, tone";price',
        '"sep=;"\nproduct_id;"colour, main, shade, tone";price',
        '\ufeffsep=;\r\nproduct_id;"colour, main, shade, tone";price',
    ],
)
def test_separators_in_names_of_columns_part_nothing(tmp_path: Path, header: str) -> None:
    file = write(tmp_path, f"{header}\np0;red;5,50\np1;blue;1.299\n")
    assert facts(file)[0] == {
        "p0": {"colour, main, shade, tone": "red", "price": 5.5},
        "p1": {"colour, main, shade, tone": "blue", "price": 1299},
    }


def test_a_row_that_is_too_long_is_named_and_the_others_are_imported(tmp_path: Path) -> None:
    products, feed = facts(
        write(
            tmp_path,
            'product_id,title,price\na,Run, Rest,5\nb,"Plain, Slim",6\nc,Tote,7,\nd,12,99\n'
            ' \n,,\ne,7" cap,8\nf,"Orbit" lamp,9\n',
        )
    )
    assert products == {
        "b": {"title": "Plain, Slim", "price": 6},
        "c": {"title": "Tote", "price": 7},
        "d": {"title": "12", "price": 99},
        "e": {"title": '7" cap', "price": 8},
        "f": {"title": '"Orbit" lamp', "price": 9},
    }
    assert reasons(feed.problems.bad) == [(2, "has 4 cells, but the header has 3")]
    ((line, reason),) = reasons(feed.problems.warnings)  # other rows have no such cell
    assert line == 4
    assert "has an empty cell more than the header" in reason


def test_an_empty_cell_more_in_all_rows_is_harmless(tmp_path: Path) -> None:
    products, feed = facts(write(tmp_path, "product_id;title\na;Hat;\nb;Bag;\nc;;\n"))
    assert products == {"a": {"title": "Hat"}, "b": {"title": "Bag"}, "c": {}}
    assert (feed.problems.warnings, feed.problems.bad) == ([], [])


def test_a_row_that_is_too_short_is_told_and_one_of_half_its_cells_is_bad(tmp_path: Path) -> None:
    products, feed = facts(write(tmp_path, "product_id,a,b,c,d\nx,1,2,3\nTotal: 1 row\n"))
    assert list(products) == ["x"]
    assert reasons(feed.problems.warnings) == [
        (2, "has 4 cells, but the header has 5: the last ones count as empty")
    ]
    assert reasons(feed.problems.bad) == [(3, "has 1 cells, but the header has 5")]


def test_a_quote_that_is_never_closed_swallows_no_other_row(tmp_path: Path) -> None:
    for broken in ('a,"open,1', 'a,"open, and more,1'):
        lines = ["product_id,title,price", broken, *(f"p{n},T{n},{n}" for n in range(50))]
        products, feed = facts(write(tmp_path, "\n".join(lines) + "\n"))
        assert len(products) == 50
        ((line, reason),) = reasons(feed.problems.bad)
        assert line == 2
        assert "its quotes cannot be followed" in reason


def test_the_rest_of_a_broken_row_becomes_no_product(tmp_path: Path) -> None:
    text = 'product_id,title,price\na,"a "big" word, more\nsecond line",5\nb,Hat,6\n'
    products, feed = facts(write(tmp_path, text))
    assert list(products) == ["b"]
    assert [problem.line for problem in feed.problems.bad] == [2, 3]


def test_line_breaks_in_quotes_belong_to_their_cell_and_lines_are_still_counted(
    tmp_path: Path,
) -> None:
    text = 'product_id,note,price\r\na,"one\r\ntwo; ""three""",1\r\nb,x,2,3\r\n'
    products, feed = facts(write(tmp_path, text))
    assert products == {"a": {"note": 'one\r\ntwo; "three"', "price": 1}}
    assert reasons(feed.problems.bad) == [(4, "has 4 cells, but the header has 3")]


def test_empty_columns_at_the_end_and_an_index_column_are_no_facts(tmp_path: Path) -> None:
    products, feed = facts(write(tmp_path, ",product_id,price,,\n0,a,5,,\n1,b,6,,\n2,c,7,oops,\n"))
    assert products == {"a": {"price": 5}, "b": {"price": 6}}
    assert reasons(feed.problems.bad) == [(4, "has 4 cells, but the header has 3")]
    assert feed.problems.notes == ["Column 1 has no name: its values (2) were left out."]
    products, feed = facts(write(tmp_path, "Unnamed: 0,product_id,price\n0,a,5\n"))
    assert products == {"a": {"price": 5}}
    assert feed.problems.notes == ["Column 1 has no name: its values (1) were left out."]


def test_a_name_that_stands_twice_keeps_both_columns(tmp_path: Path) -> None:
    products, feed = facts(write(tmp_path, "product_id,price,price\na,5,6\n"))
    assert products == {"a": {"price": 5, "price.2": 6}}
    assert "column 3 is imported as 'price.2'" in feed.problems.notes[0]


def test_ids_of_pandas_and_texts_of_excel_lose_what_is_no_part_of_them(tmp_path: Path) -> None:
    text = "product_id,ean,sku\n12.0,'2000000001012,=\"007\"\n13.0,2000000001029.0,'t Hooft\n"
    products, feed = facts(write(tmp_path, text))
    assert products == {
        "12": {"ean": "2000000001012", "sku": "007"},
        "13": {"ean": "2000000001029", "sku": "'t Hooft"},
    }
    assert "Ids such as 12.0 were read as 12" in feed.problems.notes[0]
    products, _ = facts(write(tmp_path, "product_id,x\n12.0,1\nA1,2\n"))
    assert list(products) == ["12.0", "A1"]  # versions, perhaps: not all are whole numbers


def test_digits_that_a_spreadsheet_lost_are_told(tmp_path: Path) -> None:
    text = 'sku,gtin\n1E5,2.00000E+12\nTRUE,"2,00000E+12"\n007,2.000000001036E12\n2.1E+11,1\n'
    products, feed = facts(write(tmp_path, text))
    assert products == {"1E5": {}, "TRUE": {}, "007": {"gtin": "2000000001036"}}
    assert reasons(feed.problems.bad) == [
        (5, "the sku '2.1E+11' was shortened by a spreadsheet: its digits are lost")
    ]
    assert sorted(line for line, _ in reasons(feed.problems.warnings)) == [2, 3, 4]


def test_an_exponent_that_no_spreadsheet_writes_is_text(tmp_path: Path) -> None:
    text = "1.5E+" + "9" * 5000
    products, feed = facts(write(tmp_path, f"sku,gtin\na,{text}\nb,7\n1.5E+1000,8\n"))
    assert products == {"a": {"gtin": text}, "b": {"gtin": "7"}, "1.5E+1000": {"gtin": "8"}}
    assert feed.problems.bad == []


def test_ids_and_other_identifiers_lose_their_digits_in_the_same_forms(tmp_path: Path) -> None:
    forms = ["2.1E+11", "2,1E+11", "2.10000E12"]
    text = "".join(f'"{form}",1\nx{n},"{form}"\n' for n, form in enumerate(forms))
    products, feed = facts(write(tmp_path, f"sku,gtin\n{text}"))
    assert products == {"x0": {}, "x1": {}, "x2": {}}
    assert [problem.line for problem in feed.problems.bad] == [2, 4, 6]
    assert [problem.line for problem in feed.problems.warnings] == [3, 5, 7]


def test_several_images_stand_in_several_rows_or_in_one_cell(tmp_path: Path) -> None:
    cdn = "https://cdn.example.com"
    text = (
        "product_id,image,title,picture_url\n"
        f"A,a/1.jpg,Shoe,{cdn}/1.jpg|{cdn}/2.jpg\nA,a/2.jpg,,\nB,b.jpg,Bag,n/a\n"
    )
    products, _, feed = read(write(tmp_path, text))
    assert [(p.images, p.urls) for p in products] == [
        (("a/1.jpg", "a/2.jpg"), (f"{cdn}/1.jpg", f"{cdn}/2.jpg")),
        (("b.jpg",), ()),
    ]
    assert reasons(feed.problems.warnings)[0][0] == 4


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("product_id,a\nx,1\n ,2\n", 3, "has no product_id"),
        ("product_id,a\nx,1\nx,1\n", 3, "'x' is listed twice, first in line 2"),
        ("product_id,image,a\nx,1.jpg,1\nx,2.jpg,2\n", 3, "'a' of product 'x' is '2', before '1'"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    products, feed = facts(write(tmp_path, text))
    assert list(products) == ["x"]
    assert reasons(feed.problems.bad) == [(line, words)]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("product_id,image\nx,1.jpg\ny,1.jpg\n", 3, "'1.jpg' is already an image of product 'x'"),
        ("product_id,image\nx,../1.jpg\n", 2, "not below the products folder"),
        ("product_id,image\nx,/etc/passwd\n", 2, "not below the products folder"),
        ("product_id,image\nx,N/A\n", 2, "it names no image"),
        ("product_id,a\nx,y\0\x1b[31m\n", 2, "control characters"),
        ("product_id,a\nx," + "y" * 10_001 + "\n", 2, "has 10,001 characters; cut off"),
    ],
)
def test_a_value_that_cannot_be_used_is_told_and_the_row_is_imported(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    products, feed = facts(write(tmp_path, text))
    assert "x" in products
    ((number, reason),) = reasons(feed.problems.warnings)
    assert number == line
    assert words in reason


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("", "p.csv", "it is empty"),
        ("\n \n", "p.csv", "it is empty"),
        ("product_id,a\n", "p.csv", "contains no products"),
        ("title\nx\n", "p.csv", "no column identifies a product"),
        ("id,id\n1,2\n", "p.csv", "'id' stands twice"),
        (" , \n1,2\n", "p.csv", "no column identifies a product"),
        ("product_id,a\nx,1,2\ny,1,2\n", "p.csv", "line 2 has 3 cells, but the header has 2 (2"),
        (b"PK\x03\x04....", "p.xlsx", "is a spreadsheet file. Save it as CSV"),
        (b"\x1f\x8b....", "p.csv.gz", "is compressed"),
        (bytes(range(32)) * 200, "p.csv", "is not a text file"),
        ("not json\n", "p.jsonl", "line 1 is not valid JSON"),
        ('{"price": 1e9999999999999999999}\n', "p.jsonl", "line 1 is not valid JSON"),
        ('[{"product_id": 1}]', "p.json", "it is one JSON array. Write one object on each line"),
        ("[1]\n", "p.jsonl", "line 1 is not a JSON object"),
        ('{"product_id": null}\n', "p.jsonl", "line 1 has no product_id"),
        ('{"product_id": "x", "product_id": "y"}\n', "p.jsonl", "stands twice"),
        ("<html><body>Not found</body></html>", "p.csv", "XML without <item> or <entry>"),
        ('{"product_id": "\\udc00x"}\n', "p.jsonl", "is not valid text"),
        ("product_id,t\n" + '"' + "x" * 200_000 + '"\n', "p.csv", "field larger than field limit"),
    ],
)
def test_a_file_of_which_nothing_can_be_imported_is_refused(
    tmp_path: Path, text: str | bytes, name: str, words: str
) -> None:
    with pytest.raises(WrongUse) as refused:
        read(write(tmp_path, text, name))
    assert words in str(refused.value)
    assert name in str(refused.value)


def test_json_lines_keep_numbers_and_truth_and_name_what_is_none(tmp_path: Path) -> None:
    lines = [
        '{"product_id": 7, "price": 9.5, "sale": true, "note": null, "ean": 12345678901234567}',
        '{"product_id": 8, "price": 1e3, "sale": false, "ean": 12345678901234568}',
        '{"product_id": 9, "price": NaN, "note": {"a": 1}}',
        '{"product_id": 10, "price": 1' + "0" * 400 + "}",
        '{"product_id": 11, "price": 1e400, "note": "\\ud83d cut"}',
        "{",
    ]
    products, feed = facts(write(tmp_path, "\n".join(lines), "p.jsonl"))
    assert products == {
        "7": {"price": 9.5, "sale": True, "ean": "12345678901234567"},
        "8": {"price": 1000, "sale": False, "ean": "12345678901234568"},
        "9": {},
        "10": {"price": "1" + "0" * 400},
        "11": {"price": "1e400", "note": "\ufffd cut"},
    }
    assert [line for line, _ in reasons(feed.problems.bad)] == [6]
    assert sorted(line for line, _ in reasons(feed.problems.warnings)) == [3, 3, 4, 5, 5]
    misfits = feed.finders["price"].misfits[Type.NUMBER]
    assert (misfits.count, misfits.lines) == (2, [4, 5])


@pytest.mark.parametrize("first", ["[{}]", "NaN"])
def test_a_first_line_without_a_usable_id_loses_no_other_line(tmp_path: Path, first: str) -> None:
    text = f'{{"product_id": {first}, "price": 1}}\n{{"product_id": "b", "price": 2}}\n'
    products, feed = facts(write(tmp_path, text, "p.jsonl"))
    assert products == {"b": {"price": 2}}
    assert reasons(feed.problems.bad) == [(1, "has no product_id")]
    assert [problem.line for problem in feed.problems.warnings] == [1]
    chosen = text.replace("product_id", "number").replace("price", "ean")
    products, feed = facts(write(tmp_path, chosen, "p.jsonl"), identified_by="number")
    assert products == {"b": {"ean": "2"}}
    assert reasons(feed.problems.bad) == [(1, "has no number")]


def test_a_line_without_end_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(WrongUse, match="more than 1,048,576 characters"):
        Table(io.StringIO("a" * (MAX_LINE + 1)), Problems())


def test_ids_and_images_have_one_form_whichever_way_accents_are_written(tmp_path: Path) -> None:
    """macOS writes the names of files in parts: e and an accent."""
    parts, whole = "e\u0301te\u0301", "\u00e9t\u00e9"
    text = f"product_id,title,image\n{parts},one,{parts}.jpg\n{whole},one,{whole}-2.jpg\n"
    products, _, _ = read(write(tmp_path, text))
    (product,) = products
    assert (product.product_id, product.facts["title"]) == (whole, "one")
    assert product.images == (f"{whole}.jpg", f"{whole}-2.jpg")


PARTS, WHOLE = "e\u0301te\u0301", "\u00e9t\u00e9"


def owners(file: Path) -> tuple[dict[str, tuple[str, ...]], Feed]:
    products, _, feed = read(file)
    return {product.product_id: product.images for product in products}, feed


@pytest.mark.parametrize(("first", "second"), [(PARTS, WHOLE), (WHOLE, PARTS)])
def test_an_image_stays_with_its_first_product_whichever_way_accents_are_written(
    tmp_path: Path, first: str, second: str
) -> None:
    text = f"product_id,image\nb,{first}.jpg\na,{second}.jpg\n"
    images, feed = owners(write(tmp_path, text))
    assert images == {"a": (), "b": (f"{WHOLE}.jpg",)}
    assert reasons(feed.problems.warnings) == [
        (3, f"'{WHOLE}.jpg' is already an image of product 'b'; product 'a' does not get it")
    ]


@pytest.mark.parametrize(("first", "second"), [(PARTS, WHOLE), ("12.0", "12")])
def test_a_product_whose_id_is_written_in_two_ways_shares_its_images_with_itself(
    tmp_path: Path, first: str, second: str
) -> None:
    images, feed = owners(write(tmp_path, f"product_id,image\n{first},1.jpg\n{second},1.jpg\n"))
    assert images == {nfc(second): ("1.jpg",)}
    assert (feed.problems.warnings, feed.problems.bad) == ([], [])


@pytest.mark.parametrize("refused", ["a,z.jpg,B", "a,z.jpg,B\na,z.jpg,C"])
def test_a_row_that_is_refused_takes_no_image(tmp_path: Path, refused: str) -> None:
    text = f"product_id,image,title\na,x.jpg,A\n{refused}\nb,z.jpg,C\n"
    images, feed = owners(write(tmp_path, text))
    assert images == {"a": ("x.jpg",), "b": ("z.jpg",)}
    assert feed.problems.warnings == []
    assert feed.problems.bad_rows == len(refused.splitlines())


def test_a_row_whose_only_image_is_anothers_is_not_refused(tmp_path: Path) -> None:
    text = "product_id,image,title\nb,x.jpg,B\na,y.jpg,\na,x.jpg,A\n"
    products, feed = facts(write(tmp_path, text))
    assert products == {"a": {"title": "A"}, "b": {"title": "B"}}
    assert feed.problems.bad == []
    assert [problem.line for problem in feed.problems.warnings] == [4]


@pytest.mark.parametrize("name", ["feed", "feed.jsonl"])
def test_a_pipe_is_read_as_a_file_is(tmp_path: Path, name: str) -> None:
    """As a shell's <(command) or /dev/stdin brings it: what was read once is gone."""
    text = "product_id,title\nA,x\n" if name == "feed" else '{"product_id": "A", "title": "x"}\n'
    os.mkfifo(tmp_path / name)
    writer = threading.Thread(target=(tmp_path / name).write_text, args=(text,))
    writer.start()
    found, feed = facts(tmp_path / name)
    writer.join()
    assert (found, feed.format) == ({"A": {"title": "x"}}, "csv" if name == "feed" else "jsonl")


def test_a_file_that_cannot_be_read_to_its_end_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, TEXT)

    def fail(*args: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))

    monkeypatch.setattr("pipeline.feeds.read_feed.open_text", fail)
    with pytest.raises(WrongUse, match="cannot be imported: Input/output error"):
        facts(file)
