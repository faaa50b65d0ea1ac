"""The catalogue in the database."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pipeline.search.product_catalogue import Catalogue, Product
from pipeline.store.database import Database, count_change

NAME = "products"  # of the revision


class Products:
    """Imported products and their facts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, products: Sequence[Product], *, replace: bool = False) -> None:
        """Add products or put them in place of those with the same id, all or none.

        Args:
            replace: forget every other product.
        """
        ids = [(product.product_id,) for product in products]
        images = [(path, p.product_id) for p in products for path in p.images]
        with self._database.transaction() as tx:
            if replace:
                tx.rows("DELETE FROM products")
                tx.rows("DELETE FROM product_images")
            else:
                tx.many("DELETE FROM product_images WHERE product_id = ?", ids)
                tx.many("DELETE FROM products WHERE product_id = ?", ids)
            facts = [(p.product_id, json.dumps(p.facts, ensure_ascii=False)) for p in products]
            tx.many("INSERT INTO products VALUES (?, ?)", facts)
            tx.many(
                "INSERT INTO product_images VALUES (?, ?) "
                "ON CONFLICT (filename) DO UPDATE SET product_id = excluded.product_id",
                images,
            )
            count_change(tx, NAME)

    def revision(self) -> int:
        """Return a number that every import changes."""
        return self._database.revision(NAME)

    def catalogue(self) -> Catalogue:
        """Read all products."""
        with self._database.transaction(read_only=True) as tx:
            revision = tx.rows("SELECT n FROM revisions WHERE name = ?", (NAME,))
            facts = tx.rows("SELECT product_id, facts FROM products ORDER BY product_id")
            images = tx.rows("SELECT filename, product_id FROM product_images")
        return Catalogue(
            int(revision[0]["n"]) if revision else 0,
            {row["product_id"]: row["facts"] for row in facts},
            {row["filename"]: row["product_id"] for row in images},
        )
