"""Files of products, and their import without the command line."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.feeds.columns import Column, Type
from pipeline.feeds.feed import Feed
from pipeline.feeds.read_feed import read_feed
from pipeline.feeds.records import Product
from pipeline.feeds.staging import Staging
from pipeline.store.catalogue_import import Outcome, import_feed
from pipeline.store.products import Products


def import_rows(
    products: Products, rows: Iterable[Mapping[str, Any]], **options: Any
) -> tuple[Outcome, Feed]:
    """Import objects as a JSON Lines file holds them."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return import_file(products, file, **options)


def import_text(
    products: Products, text: str, name: str = "products.csv", **options: Any
) -> tuple[Outcome, Feed]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        return import_file(products, file, **options)


def import_file(
    products: Products,
    file: Path,
    types: Mapping[str, Type] | None = None,
    replace: bool = False,
    dry_run: bool = False,
    **reading: Any,
) -> tuple[Outcome, Feed]:
    with Staging() as staging:
        feed = read_feed(file, staging, **reading)
        database = products._database
        return import_feed(database, feed, types, replace=replace, dry_run=dry_run), feed


def read(file: Path, **reading: Any) -> tuple[list[Product], dict[str, Column], Feed]:
    """Read a file as an import into an empty catalogue does."""
    with Staging() as staging:
        feed = read_feed(file, staging, **reading)
        columns = {
            name: finder.column(None, feed.decimal_comma) for name, finder in feed.finders.items()
        }
        return list(feed.products(columns)), columns, feed
