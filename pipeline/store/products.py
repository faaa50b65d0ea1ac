"""The catalogue in the database."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.names import nfc
from pipeline.search.product_catalogue import Catalogue
from pipeline.store.backend import placeholders
from pipeline.store.catalogue_columns import column_of
from pipeline.store.catalogue_import import NAME
from pipeline.store.database import revision
from pipeline.store.repository import Repository


class Products(Repository):
    """Imported products and their facts, see `import_feed`."""

    def revision(self) -> int:
        """Return a number that every import changes."""
        return self._database.revision(NAME)

    def catalogue(self) -> Catalogue:
        """Read all products."""
        with self._database.transaction(read_only=True) as tx:
            n_changes = revision(tx, NAME)
            facts = tx.rows("SELECT product_id, facts FROM products ORDER BY product_id")
            images = tx.rows("SELECT filename, product_id FROM product_images")
            columns = tx.rows("SELECT name, type, decimal_sign, chosen FROM product_columns")
            variants = tx.rows(
                "SELECT product_id, facts FROM product_variants ORDER BY product_id, position"
            )
        by_product: dict[str, list[str]] = {}
        for row in variants:
            by_product.setdefault(row["product_id"], []).append(row["facts"])
        return Catalogue(
            n_changes,
            {row["product_id"]: row["facts"] for row in facts},
            {row["filename"]: row["product_id"] for row in images},
            {row["name"]: column_of(row) for row in columns},
            by_product,
        )

    def owners(self, paths: Sequence[str]) -> list[str]:
        """Name the products that some images show, see `Catalogue.product_of`.

        Reads only what it needs: a catalogue of a million products is not held in memory.
        """
        paths = list(map(nfc, paths))
        folders = {folder for path in paths for folder in _candidates(path)}
        with self._database.transaction(read_only=True) as tx:
            images = tx.rows(
                "SELECT filename, product_id FROM product_images WHERE filename IN"
                f" ({placeholders(paths)})",
                paths,
            )
            products: dict[str, str] = {}
            names = sorted(folders)
            for start in range(0, len(names), 1000):
                some = names[start : start + 1000]
                rows = tx.rows(
                    f"SELECT product_id FROM products WHERE product_id IN ({placeholders(some)})",
                    some,
                )
                products |= {row["product_id"]: "{}" for row in rows}
        catalogue = Catalogue(
            facts_json=products, by_image={row["filename"]: row["product_id"] for row in images}
        )
        return [catalogue.product_of(path) for path in paths]


def _candidates(path: str) -> list[str]:
    """Return the ids by which a product may claim an image."""
    folder, slash, name = path.rpartition("/")
    ids = [f"{folder}{slash}{name.rpartition('.')[0] or name}"]
    while folder:
        ids.append(folder)
        folder = folder.rpartition("/")[0]
    return ids
