"""Items of a file in a temporary database, so that a file of any size needs little memory."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, Self

from pipeline.access import temporary_failed, writing_temporary
from pipeline.feeds.records import Item
from pipeline.names import nfc

BATCH = 1000
SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -16384;
CREATE TABLE items (
    n       INTEGER PRIMARY KEY,
    line    INTEGER NOT NULL,
    item_id TEXT NOT NULL,
    product TEXT NOT NULL,   -- the id of its product
    alias   TEXT NOT NULL,
    item    TEXT NOT NULL    -- JSON: facts, images, urls, parent
);
-- The items that name an image.
CREATE TABLE claims (path TEXT, n INTEGER, PRIMARY KEY (path, n)) WITHOUT ROWID;
CREATE TABLE indexed (product TEXT PRIMARY KEY) WITHOUT ROWID;
"""
# What is to be written to the catalogue; `n` keeps the order.
PLANNED = {
    "products": ("product_id", "facts"),
    "variants": ("item_id", "product_id", "position", "facts"),
    "paths": ("filename", "product_id"),
    "urls": ("product_id", "position", "url"),
}


class Staging:
    """The items of one file."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="imgrec-import-")
        self._connection = sqlite3.connect(
            Path(self._folder.name) / "items.db", isolation_level=None, factory=_Connection
        )
        self._connection.executescript(SCHEMA)
        # One transaction that nobody commits: the file is only an extension of the memory.
        self._connection.execute("BEGIN")
        self._batch: list[tuple[int, int, str, str, str, str]] = []
        self._claims: list[tuple[str, int]] = []
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()
        self._folder.cleanup()

    def regular(self, file: Path) -> Path:
        """Return a file that can be read several times: a copy of what a pipe brings.

        Raises:
            OSError: it cannot be read. ImgrecError: the temporary folder is full.
        """
        if file.is_file():
            return file
        copy = Path(self._folder.name) / "piped" / file.name  # the suffix may tell the format
        with file.open("rb") as pipe, _told():
            copy.parent.mkdir()
            with copy.open("wb") as stream:
                shutil.copyfileobj(pipe, stream)
        return copy

    def add(self, item: Item) -> None:
        """Add an item; ids and paths in the one form in which names are compared."""
        item_id, parent, images = nfc(item.item_id), nfc(item.parent), list(map(nfc, item.images))
        packed = json.dumps([item.facts, images, item.urls, parent], ensure_ascii=False)
        self._count += 1
        self._batch.append(
            (self._count, item.line, item_id, parent or item_id, nfc(item.alias), packed)
        )
        self._claims += ((path, self._count) for path in images)
        if len(self._batch) >= BATCH:
            self._flush()

    def finish(self) -> None:
        """Make what was added ready to be read."""
        self._flush()
        self._connection.execute("CREATE INDEX by_product ON items (product, n)")
        self._connection.execute("CREATE INDEX by_item ON items (item_id)")

    def count_items(self) -> int:
        """Return how many ids of items there are."""
        (count,) = self._connection.execute("SELECT COUNT(DISTINCT item_id) FROM items").fetchone()
        return int(count)

    def strip_float_zeros(self) -> None:
        """Take the `.0` from ids such as 12.0."""
        for column in ("item_id", "product"):
            self._connection.execute(
                f"UPDATE items SET {column} = substr({column}, 1, length({column}) - 2)"
                f" WHERE {column} LIKE '%.0'"
            )

    def resolve_aliases(self) -> None:
        """Have variants that call their product by its other name call it by its id."""
        for sql in (
            "CREATE TABLE aliases AS SELECT alias, item_id FROM items WHERE alias <> ''",
            "CREATE INDEX by_alias ON aliases (alias)",
            "UPDATE items SET product = (SELECT item_id FROM aliases"
            " WHERE aliases.alias = items.product LIMIT 1)"
            " WHERE product IN (SELECT alias FROM aliases)",
        ):
            self._connection.execute(sql)

    def contested(self) -> Iterator[tuple[int, str, str]]:
        """Take away items that an earlier line gives to another product: (line, id, product)."""
        later = (
            "SELECT items.n FROM items JOIN (SELECT item_id, MIN(n) AS first FROM items"
            " GROUP BY item_id HAVING COUNT(DISTINCT product) > 1) AS several"
            " USING (item_id) JOIN items AS owner ON owner.n = several.first"
            " WHERE items.product <> owner.product"
        )
        rows = self._connection.execute(
            f"SELECT line, item_id, product FROM items WHERE n IN ({later}) ORDER BY n"
        ).fetchall()
        if rows:
            self._connection.execute(f"DELETE FROM items WHERE n IN ({later})")
        yield from rows

    def orphans(self) -> Iterator[tuple[int, str, str]]:
        """Take away items whose product is not in the file: (line, item id, product)."""
        where = "product <> item_id AND product NOT IN (SELECT item_id FROM items)"
        rows = self._connection.execute(
            f"SELECT line, item_id, product FROM items WHERE {where} ORDER BY n"
        )
        yield from rows
        self._connection.execute(f"DELETE FROM items WHERE {where}")

    def repeated(self) -> Iterator[dict[int, Item]]:
        """Yield the rows of each item that has several, by their number in the file's order."""
        rows = self._connection.execute(
            "SELECT n, line, item_id, product, alias, item FROM items WHERE item_id IN"
            " (SELECT item_id FROM items GROUP BY item_id HAVING COUNT(*) > 1) ORDER BY item_id, n"
        )
        for _, group in groupby(rows, key=lambda row: str(row[2])):
            yield {row[0]: _unpacked(*row[1:]) for row in group}

    def remove(self, numbers: Iterable[int]) -> None:
        """Take away rows, by their numbers."""
        self._connection.executemany("DELETE FROM items WHERE n = ?", ((n,) for n in numbers))

    def products(self) -> Iterator[list[Item]]:
        """Yield the items of one product after the other, each in the order of the file."""
        rows = self._connection.execute(
            "SELECT line, item_id, product, alias, item FROM items ORDER BY product, n"
        )
        for _, group in groupby(rows, key=lambda row: str(row[2])):
            yield [_unpacked(*row) for row in group]

    def holds(self, product_ids: Sequence[str]) -> set[str]:
        """Return those of some ids that are products of this file."""
        marks = ",".join("?" * len(product_ids))
        sql = f"SELECT DISTINCT product FROM items WHERE product IN ({marks})"
        return {row[0] for row in self._connection.execute(sql, product_ids)}

    def owner(self, path: str) -> str:
        """Return the product of the first item that names an image, "" for an image of none."""
        row = self._connection.execute(
            "SELECT product FROM claims JOIN items USING (n) WHERE path = ? ORDER BY n LIMIT 1",
            (path,),
        ).fetchone()
        return str(row[0]) if row else ""

    def mark_indexed(self, product_ids: Iterable[str]) -> None:
        """Note products that have an image in the index."""
        self._connection.executemany(
            "INSERT OR IGNORE INTO indexed VALUES (?)", ((name,) for name in product_ids)
        )

    def count_indexed(self) -> tuple[int, str]:
        """Return how many products have an image in the index, and one that has none, or ""."""
        (count,) = self._connection.execute(
            "SELECT COUNT(*) FROM indexed WHERE product IN (SELECT product FROM items)"
        ).fetchone()
        stranger = self._connection.execute(
            "SELECT product FROM items WHERE product NOT IN (SELECT product FROM indexed)"
            " ORDER BY n LIMIT 1"
        ).fetchone()
        return int(count), str(stranger[0]) if stranger else ""

    def single_ids(self, size: int) -> Iterator[list[str]]:
        """Yield the ids of rows that name no product beside their own id, some at a time."""
        last = 0
        while rows := self._connection.execute(
            "SELECT n, item_id FROM items WHERE product = item_id AND n > ? ORDER BY n LIMIT ?",
            (last, size),
        ).fetchall():
            last = rows[-1][0]
            yield [row[1] for row in rows]

    def assign(self, products: Mapping[str, str]) -> None:
        """Note the products of some variants, by the variants' ids."""
        self._connection.executemany(
            "UPDATE items SET product = ? WHERE product = ?",
            [(product, item_id) for item_id, product in products.items()],
        )

    def begin_plan(self) -> None:
        for table, names in PLANNED.items():
            self._connection.execute(f"DROP TABLE IF EXISTS planned_{table}")
            self._connection.execute(f"CREATE TABLE planned_{table} ({', '.join(names)})")

    def plan(
        self,
        product_id: str,
        facts: str,
        variants: Sequence[tuple[str, str, int, str]],
        paths: Sequence[tuple[str, str]],
        urls: Sequence[tuple[str, int, str]],
    ) -> None:
        """Note the rows of one product that are to be written."""
        insert = self._connection.executemany
        insert("INSERT INTO planned_products VALUES (?, ?)", [(product_id, facts)])
        insert("INSERT INTO planned_variants VALUES (?, ?, ?, ?)", variants)
        insert("INSERT INTO planned_paths VALUES (?, ?)", paths)
        insert("INSERT INTO planned_urls VALUES (?, ?, ?)", urls)

    def planned(self, table: str) -> Iterator[list[tuple[Any, ...]]]:
        """Yield the rows that are to be written to a table, some at a time."""
        rows = self._connection.execute(f"SELECT * FROM planned_{table}")
        while batch := rows.fetchmany(BATCH):
            yield batch

    def planned_ids(self) -> Iterator[list[tuple[str]]]:
        """Yield the ids of the products that are to be written, some at a time."""
        rows = self._connection.execute("SELECT product_id FROM planned_products")
        while batch := rows.fetchmany(BATCH):
            yield batch

    def _flush(self) -> None:
        self._connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?)", self._batch)
        self._connection.executemany("INSERT OR IGNORE INTO claims VALUES (?, ?)", self._claims)
        self._batch.clear()
        self._claims.clear()


def _unpacked(line: int, item_id: str, product: str, alias: str, packed: str) -> Item:
    facts, images, urls, parent = json.loads(packed)
    parent = product if parent or product != item_id else ""
    return Item(line, item_id, facts, tuple(images), tuple(urls), parent, alias)


class _Connection(sqlite3.Connection):
    """Its errors are told as the temporary folder's, within a transaction of the database, too."""

    def execute(self, *args: Any) -> sqlite3.Cursor:
        with _told():
            return super().execute(*args)

    def executemany(self, *args: Any) -> sqlite3.Cursor:
        with _told():
            return super().executemany(*args)


@contextmanager
def _told() -> Iterator[None]:
    what = "What was read of the file"
    with writing_temporary(what):
        try:
            yield
        except sqlite3.OperationalError as error:
            raise temporary_failed(what, str(error)) from error
