"""Tell what kind of file it is, and read it into a feed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path

from pipeline.allowed_hosts import Network
from pipeline.errors import WrongUse, quote
from pipeline.feeds.columns import TypeFinder
from pipeline.feeds.encoding import encoding_name, open_text, valid_text
from pipeline.feeds.feed import Feed, Report, no_report
from pipeline.feeds.google_xml import xml_rows
from pipeline.feeds.json_lines import json_rows
from pipeline.feeds.names import ID_NAMES, PRODUCT_ID, normalize
from pipeline.feeds.parquet import parquet_rows
from pipeline.feeds.plain import id_column, plain_items
from pipeline.feeds.records import Problems, Row
from pipeline.feeds.shops import (
    google_items,
    is_google,
    is_shopify,
    is_woocommerce,
    shopify_items,
    woocommerce_items,
)
from pipeline.feeds.staging import Staging
from pipeline.feeds.table import Table

JSON_SUFFIXES = (".jsonl", ".ndjson")
FIRST_ROWS = 100  # which show the columns of a file without a header


def read_feed(
    file: Path,
    staging: Staging,
    *,
    form: str = "auto",
    encoding: str = "",
    identified_by: str = "",
    shown: str = "",
    private: tuple[Network, ...] = (),
    report: Report = no_report,
) -> Feed:
    """Read a file into a staging area.

    Args:
        form: one of `names.FORMATS`.
        encoding: of the text, in place of the one that is found.
        identified_by: the column that identifies a product, in place of the one that is found.
        shown: what sentences call the file, in place of its path.
        report: told now and then how many items were read.
        private: networks whose addresses may be fetched although they are private.

    Raises:
        WrongUse: nothing of it can be imported.
        SetupError: a library that its format needs is not installed.
    """
    feed, shown = Feed(staging, report), shown or str(file)
    feed.problems.private = private
    try:
        _read(feed, staging.regular(file), form, encoding, identified_by)
    except OSError as error:
        raise WrongUse(f"The file '{shown}' cannot be imported: {error.strerror}.") from error
    except WrongUse as error:
        raise WrongUse(f"The file '{shown}' cannot be imported: {error}") from error
    if not feed.n_items:
        raise WrongUse(_nothing(shown, feed.problems))
    return feed


def _read(feed: Feed, file: Path, form: str, encoding: str, identified_by: str) -> None:
    container = _container(file, form)
    if container == "xml":
        feed.format, feed.encoding = "google", "xml"
        feed.read(google_items(xml_rows(file, feed.problems), feed.problems))
        if not feed.n_items and not feed.problems.bad:
            raise WrongUse("it is XML without <item> or <entry>, which a product feed has.")
        _judge(feed, feed.finders)
        return
    if container == "parquet":
        feed.format = "parquet"
        _read_plain(feed, parquet_rows(file, feed.problems), identified_by)
        return
    stream, feed.encoding = open_text(file, encoding)
    with stream, valid_text(stream):
        if feed.encoding not in ("utf-8", "utf-8-sig") and not encoding:
            feed.problems.note(
                f"The file was read as {encoding_name(feed.encoding)}; --encoding names another."
            )
        if container == "jsonl":
            feed.format = "jsonl"
            _read_plain(feed, json_rows(stream, feed.problems), identified_by)
            return
        table = Table(stream, feed.problems)
        feed.decimal_comma = table.decimal_comma
        feed.format = _table_format(table.columns, form, identified_by)
        if feed.format == "csv":
            _read_plain(feed, table.rows(), identified_by, table.columns)
            return
        make = {"google": google_items, "shopify": shopify_items}.get(
            feed.format, woocommerce_items
        )
        feed.read(make(table.rows(), feed.problems))
        if feed.format == "woocommerce":
            _join_variations(feed)
        _judge(feed, feed.finders)


def _container(file: Path, form: str) -> str:
    """Tell what kind of file it is by its first bytes and its name: xml, parquet, jsonl, table."""
    try:
        with file.open("rb") as stream:
            head = stream.read(1024)
    except OSError as error:
        raise WrongUse(f"it cannot be read: {error.strerror}.") from error
    if head.startswith(b"PAR1") or form == "parquet":
        container = "parquet"
    elif head.replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n").startswith(b"<"):
        container = "xml"
    elif form in ("auto", "jsonl") and (
        form == "jsonl" or file.suffix.lower() in JSON_SUFFIXES or head.lstrip().startswith(b"{")
    ):
        container = "jsonl"
    elif form in ("auto", "jsonl") and head.lstrip().startswith(b"["):
        raise WrongUse(
            "it is one JSON array. Write one object on each line, e.g. with jq -c '.[]', and name "
            "the file .jsonl."
        )
    else:
        container = "table"
    fits = {"xml": ("google",), "parquet": ("parquet",), "jsonl": ("jsonl",)}
    if form != "auto" and form not in fits.get(
        container, ("google", "shopify", "woocommerce", "csv")
    ):
        raise WrongUse(f"it is not of the format '{form}', but {container.upper()}.")
    return container


def _table_format(columns: list[str], form: str, identified_by: str) -> str:
    checks = {"shopify": is_shopify, "woocommerce": is_woocommerce, "google": is_google}
    if form in checks and not checks[form](columns):
        raise WrongUse(
            f"its columns are not those of the format '{form}'. It has: {', '.join(columns)}."
        )
    if form != "auto":
        return form
    if identified_by:
        return "csv"
    return next((name for name, check in checks.items() if check(columns)), "csv")


def _read_plain(
    feed: Feed, rows: Iterator[Row], identified_by: str, columns: Iterable[str] = ()
) -> None:
    if not columns:
        first = _first_rows(rows, identified_by)
        if not first:
            return
        columns = dict.fromkeys(name for row in first for name in row.cells)
        rows = chain(first, rows)
    name = id_column(columns, identified_by)
    if name != PRODUCT_ID:
        feed.problems.note(f"Products are identified by the column '{name}'.")
    feed.read(plain_items(rows, name, feed.path_columns, feed.problems))


def _first_rows(rows: Iterator[Row], identified_by: str) -> list[Row]:
    """Take rows up to one with an id: that of the first may be missing, or have been left out."""
    first = list[Row]()
    for row in islice(rows, FIRST_ROWS):
        first.append(row)
        if identified_by:
            has_id = identified_by in row.cells
        else:
            has_id = any(normalize(name) in ID_NAMES for name in row.cells)
        if has_id:
            break
    return first


def _join_variations(feed: Feed) -> None:
    """Give variations their product; those whose product is not in the file are named."""
    feed.staging.resolve_aliases()
    if "title" not in feed.finders:
        return  # an update of some columns: the catalogue knows the products
    for line, item_id, product in feed.staging.orphans():
        feed.problems.refuse(
            line, f"{quote(item_id)} names the parent {quote(product)}, which is not in the file"
        )


def _judge(feed: Feed, finders: Mapping[str, TypeFinder]) -> None:
    """Tell a shop's whole export from one that only updates some columns: the latter has no titles.

    https://support.google.com/merchants/answer/7439882: a supplemental feed adds no product.
    """
    feed.whole = "title" in finders and finders["title"].values > 0
    feed.update_only = not feed.whole


def _nothing(file: str, problems: Problems) -> str:
    if not problems.bad:
        return f"The file '{file}' contains no products."
    first = problems.bad[0]
    more = f" ({problems.bad_rows:,} lines are wrong)" if problems.bad_rows > 1 else ""
    return f"The file '{file}' cannot be imported: line {first.line} {first.reason}{more}."
