"""Feeds by their names, the addresses of images that they list, and what was fetched of these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Literal

from pipeline.errors import NotFound, quote
from pipeline.store.backend import Row, Transaction, placeholders
from pipeline.store.repository import Repository

BATCH = 500
Outcome = Literal["fetched", "unchanged", "failed", "delayed"]


@dataclass(frozen=True)
class Origin:
    """Where products were imported from.

    Attributes:
        source: the file or the address as it may be shown.
        digest: of the whole address and of how it was read; sha256: of its content.
    """

    name: str
    source: str = ""
    digest: str = ""
    sha256: str = ""
    etag: str = ""
    last_modified: str = ""

    def write(self, tx: Transaction) -> None:
        """Note the import, within its transaction."""
        tx.rows("DELETE FROM feeds WHERE name = ?", (self.name,))
        tx.rows("INSERT INTO feeds VALUES (?, ?, ?, ?, ?, ?, now_s())", astuple(self))


@dataclass(frozen=True)
class FetchedUrl:
    """What is known of the address of an image.

    `failed` has no image now; `delayed` was not available now, and keeps the image of before.
    """

    url: str
    outcome: Outcome
    reason: str = ""
    sha256: str = ""
    bytes: int = 0
    suffix: str = ""
    etag: str = ""
    last_modified: str = ""
    job_id: str = ""
    age_s: float = 0.0  # since it was last asked for

    @classmethod
    def from_row(cls, row: Row) -> FetchedUrl:
        return cls(**{field.name: row[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class FeedImage:
    """One image of a product, `number` from 1, and what was fetched of its address."""

    product_id: str
    number: int
    url: str
    fetched: FetchedUrl | None


class Feeds(Repository):
    """The tables `feeds` and `fetched`."""

    def get(self, name: str) -> Origin:
        """Return the last import of a feed.

        Raises:
            NotFound: there is none of this name.
        """
        origin = self.find(name)
        if origin is not None:
            return origin
        rows = self._read("SELECT name FROM feeds ORDER BY name LIMIT 20")
        names = ", ".join(row["name"] for row in rows) or "none yet"
        raise NotFound(
            f"There is no feed {quote(name)}: 'imgrec import-catalogue FILE --name {name}' imports "
            f"one. Feeds: {names}."
        )

    def find(self, name: str) -> Origin | None:
        columns = ", ".join(field.name for field in fields(Origin))
        rows = self._read(f"SELECT {columns} FROM feeds WHERE name = ?", (name,))
        return Origin(**rows[0]) if rows else None

    def any_urls(self) -> bool:
        """Tell whether any feed lists addresses of images."""
        return bool(self._read("SELECT 1 AS one FROM product_urls WHERE feed <> '' LIMIT 1"))

    def urls(self, name: str) -> Iterator[str]:
        """Yield the addresses of a feed, each once."""
        last = ""
        while True:
            rows = self._read(
                "SELECT DISTINCT url FROM product_urls WHERE feed = ? AND url > ?"
                f" ORDER BY url LIMIT {BATCH}",
                (name, last),
            )
            if not rows:
                return
            yield from (row["url"] for row in rows)
            last = rows[-1]["url"]

    def images(self, name: str) -> Iterator[FeedImage]:
        """Yield the images of a feed, by product."""
        last = ("", -1)
        columns = ", ".join(f"fetched.{c}" for c in _STORED if c != "url")
        while True:
            rows = self._read(
                f"SELECT product_id, position, product_urls.url AS url, {columns},"
                " now_s() - checked_at AS age_s"
                " FROM product_urls LEFT JOIN fetched ON fetched.url = product_urls.url"
                " WHERE (product_id, position) > (?, ?) AND feed = ?"
                f" ORDER BY product_id, position LIMIT {BATCH}",
                (*last, name),
            )
            if not rows:
                return
            for row in rows:
                fetched = FetchedUrl.from_row(row) if row["outcome"] is not None else None
                yield FeedImage(row["product_id"], row["position"] + 1, row["url"], fetched)
            last = (rows[-1]["product_id"], rows[-1]["position"])

    def known(self, urls: Sequence[str]) -> dict[str, FetchedUrl]:
        """Return what is known of some addresses."""
        known: dict[str, FetchedUrl] = {}
        with self._database.transaction(read_only=True) as tx:
            for start in range(0, len(urls), BATCH):
                some = urls[start : start + BATCH]
                rows = tx.rows(
                    f"SELECT {', '.join(_STORED)}, now_s() - checked_at AS age_s FROM fetched"
                    f" WHERE url IN ({placeholders(some)})",
                    some,
                )
                known |= {row["url"]: FetchedUrl.from_row(row) for row in rows}
        return known

    def record(self, fetched: FetchedUrl) -> None:
        """Note what came of an address."""
        update = ", ".join(f"{name} = excluded.{name}" for name in (*_STORED[1:], "checked_at"))
        self._write(
            f"INSERT INTO fetched ({', '.join(_STORED)}, checked_at)"
            f" VALUES ({placeholders(_STORED)}, now_s())"
            f" ON CONFLICT (url) DO UPDATE SET {update}",
            tuple(getattr(fetched, name) for name in _STORED),
        )

    def forget_unlisted(self) -> None:
        """Drop what is known of addresses that no feed lists any more."""
        self._write(
            "DELETE FROM fetched WHERE NOT EXISTS"
            " (SELECT 1 FROM product_urls WHERE product_urls.url = fetched.url)"
        )

    def needed(self, sha256: Sequence[str]) -> set[str]:
        """Return those of some files that an address still leads to."""
        rows = self._read(
            f"SELECT DISTINCT sha256 FROM fetched WHERE sha256 IN ({placeholders(sha256)})", sha256
        )
        return {row["sha256"] for row in rows}


_STORED = tuple(field.name for field in fields(FetchedUrl) if field.name != "age_s")
