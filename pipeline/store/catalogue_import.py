"""A file of products into the catalogue: planned without a lock, then written at once."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from pipeline.errors import ImgrecError, WrongUse, quote
from pipeline.feeds.columns import Column, Type, Value
from pipeline.feeds.feed import Feed, Report, no_report
from pipeline.feeds.names import IMAGE
from pipeline.feeds.records import MAX_LISTED, Product, Variant
from pipeline.store.backend import Transaction, placeholders
from pipeline.store.catalogue_columns import (
    BATCH,
    Facts,
    decide_columns,
    found_columns,
    stored_columns,
    stored_rows,
)
from pipeline.store.database import Database, count_change, revision
from pipeline.store.feeds import Origin

NAME = "products"  # of the revision
ATTEMPTS = 5  # to plan again where another import came in between
Nullable = Mapping[str, Value | None]


@dataclass
class Outcome:
    """What an import did, or would do."""

    columns: dict[str, Column]  # those of the file
    products: int = 0
    new: list[str] = field(default_factory=list)  # the first of them
    n_new: int = 0
    removed: int = 0
    images: int = 0
    urls: int = 0
    unknown: list[str] = field(default_factory=list)
    n_unknown: int = 0
    emptied: Counter[str] = field(default_factory=Counter)  # values that a column lost
    total: int = 0


def import_feed(
    database: Database,
    feed: Feed,
    types: Mapping[str, Type] | None = None,
    *,
    replace: bool = False,
    dry_run: bool = False,
    origin: Origin | None = None,
    report: Report = no_report,
) -> Outcome:
    """Update the columns that a file has, all or nothing; other columns and products stay.

    Args:
        types: of columns, named by the user.
        replace: the file takes the place of the whole catalogue.
        dry_run: write nothing.
        report: told now and then how many products were compared with those that are stored.
        origin: the feed that the file is; the addresses of images are listed under its name.

    Raises:
        WrongUse: `types` names an unknown column; `replace` would lose the products of bad rows.
    """
    if replace and feed.update_only:
        raise WrongUse(
            "--replace needs a file with titles: this one only updates some columns of products, "
            "and would remove all others."
        )
    problems = feed.problems
    for _ in range(ATTEMPTS):
        feed.problems = copy.deepcopy(problems)  # planning adds to them
        with database.transaction(read_only=True) as tx:
            planned_on = revision(tx, NAME)  # first: what changes while the plan is made spoils it
            plan = _Plan(tx, feed, types or {}, replace)
            outcome = plan.make(report)
        if replace and feed.problems.bad_rows:
            raise WrongUse(
                f"--replace would remove the products of bad rows ({feed.problems.bad_rows}, e.g. "
                f"line {feed.problems.bad[0].line}: {feed.problems.bad[0].reason}). Correct them, "
                "or import without --replace."
            )
        if dry_run:
            return outcome
        with suppress(_PlanSpoiled), database.transaction() as tx:
            # Counted first, which locks the row: two imports at once must not both find it as it
            # was when they planned.
            count_change(tx, NAME)
            if revision(tx, NAME) != planned_on + 1:
                raise _PlanSpoiled
            _write(tx, feed, plan.stored_columns, replace, origin)
            return outcome
    raise ImgrecError("Other imports keep changing the catalogue: try again when they have ended.")


class _PlanSpoiled(Exception):
    """Another import was written while this one was planned; rolls the transaction back."""


class _Plan:
    """The rows that an import writes, computed from the file and from what is stored."""

    def __init__(
        self, tx: Transaction, feed: Feed, types: Mapping[str, Type], replace: bool
    ) -> None:
        self._tx = tx
        self._feed = feed
        self._replace = replace
        stored = stored_columns(tx)
        if replace:  # what the user said still holds
            stored = {
                n: column for n, column in stored.items() if column.chosen and n in feed.finders
            }
        elif not stored:
            stored = found_columns(tx)
        columns = decide_columns(tx, feed, stored, types)
        self._outcome = Outcome(columns)
        self._names = feed.column_names(columns)
        self.stored_columns = stored | {
            name: column
            for name, column in columns.items()
            if name in stored or name in types or feed.finders[name].values
        }
        for name in self._names - set(columns):
            self.stored_columns.setdefault(name, Column(name))

    def make(self, report: Report) -> Outcome:
        """Stage what is to be written."""
        feed, outcome = self._feed, self._outcome
        feed.staging.begin_plan()
        if not feed.whole and not self._replace:
            self._find_variants()
        products = feed.products(outcome.columns)
        while batch := list(islice(products, BATCH)):
            self._plan(batch)
            report(outcome.products)
        before = int(self._tx.rows("SELECT COUNT(*) AS n FROM products")[0]["n"])
        if self._replace:
            for ids in _ids(self._tx):
                outcome.removed += len(ids) - len(feed.staging.holds(ids))
        outcome.total = before + outcome.n_new - outcome.removed
        return outcome

    def _find_variants(self) -> None:
        """Have rows that name a variant of a known product belong to that product."""
        for ids in self._feed.staging.single_ids(BATCH):
            rows = self._tx.rows(
                "SELECT item_id, product_id FROM product_variants"
                f" WHERE item_id IN ({placeholders(ids)}) AND item_id <> product_id",
                ids,
            )
            self._feed.staging.assign({row["item_id"]: row["product_id"] for row in rows})

    def _plan(self, products: list[Product]) -> None:
        outcome, staging = self._outcome, self._feed.staging
        ids = [product.product_id for product in products]
        known = _facts(self._tx, ids)
        # What --replace removes counts as known: the ids go on.
        old = {} if self._replace else known
        variants = {} if self._replace else _variants(self._tx, ids)
        owners = self._image_owners(products)
        emptied = {
            IMAGE: self._count_emptied_images(products),
            "image address": self._count_emptied_urls(products),
        }
        outcome.emptied.update({name: count for name, count in emptied.items() if count})
        for product in products:
            name = product.product_id
            if self._feed.update_only and name not in old:
                outcome.n_unknown += 1
                if len(outcome.unknown) < MAX_LISTED:
                    outcome.unknown.append(name)
                continue
            if name not in known:
                outcome.n_new += 1
                if len(outcome.new) < MAX_LISTED:
                    outcome.new.append(name)
            outcome.products += 1
            mine = self._merge_variants(product, variants.get(name, []))
            before = old.get(name, {})
            if mine:
                varying = {column for variant in mine for column in variant.facts}
                base = {column: v for column, v in before.items() if column not in varying}
                facts = self._merge(base, _combined(mine))
            else:
                facts = self._merge(before, product.facts)
            outcome.emptied.update(before.keys() - facts.keys())
            images = self._images(product, owners)
            outcome.images += len(images)
            outcome.urls += len(product.urls)
            staging.plan(
                name,
                _json(facts),
                [
                    (variant.item_id, name, n, _json(variant.facts))
                    for n, variant in enumerate(mine)
                ],
                [(path, name) for path in images],
                [(name, n, url) for n, url in enumerate(product.urls)],
            )

    def _merge(self, before: Facts, facts: Nullable) -> Facts:
        """Put the columns of the file into facts; an empty cell takes a value away."""
        merged = dict(before)
        if self._feed.whole:
            merged = {name: v for name, v in before.items() if name not in self._names}
        for name, value in facts.items():
            if value is None:
                merged.pop(name, None)
            else:
                merged[name] = value
        return merged

    def _merge_variants(self, product: Product, before: list[Variant]) -> list[Variant]:
        """Return the variants of a product after the import; none for one without variants."""
        if not product.variants and (not before or self._feed.whole):
            return []
        stated = {variant.item_id: variant.facts for variant in product.variants}
        if not product.variants:  # about the product as a whole
            stated = {product.product_id: product.facts}
        known: dict[str, Facts] = {
            variant.item_id: {name: v for name, v in variant.facts.items() if v is not None}
            for variant in before
        }
        names = list(stated) if self._feed.whole else list(dict.fromkeys([*known, *stated]))
        if product.product_id in names:  # what is said of all variants comes first
            names.remove(product.product_id)
            names.insert(0, product.product_id)
        return [
            Variant(name, {**self._merge(known.get(name, {}), stated[name])})
            if name in stated
            else Variant(name, {**known[name]})
            for name in names
        ]

    def _image_owners(self, products: list[Product]) -> dict[str, str]:
        """Return the products outside of the file that have an image of these products."""
        paths = [path for product in products for path in product.images]
        owners: dict[str, str] = {}
        if self._replace:
            return owners
        for some in _batches(paths):
            rows = self._tx.rows(
                "SELECT filename, product_id FROM product_images"
                f" WHERE filename IN ({placeholders(some)})",
                some,
            )
            owners |= {row["filename"]: row["product_id"] for row in rows}
        in_file = set[str]()
        for ids in _batches(list(set(owners.values()))):
            in_file |= self._feed.staging.holds(ids)
        return {path: owner for path, owner in owners.items() if owner not in in_file}

    def _count_emptied_images(self, products: list[Product]) -> int:
        """Count the images that the import takes from products for which the file has none."""
        ids = [product.product_id for product in products if not product.images]
        if self._replace or not self._feed.has_images or not ids:
            return 0
        rows = self._tx.rows(
            f"SELECT filename FROM product_images WHERE product_id IN ({placeholders(ids)})", ids
        )
        return sum(not self._feed.staging.owner(row["filename"]) for row in rows)

    def _count_emptied_urls(self, products: list[Product]) -> int:
        """Count the addresses that the import takes from products for which the file has none."""
        ids = [product.product_id for product in products if not product.urls]
        if self._replace or not self._feed.has_urls or not ids:
            return 0
        (row,) = self._tx.rows(
            f"SELECT COUNT(*) AS count FROM product_urls WHERE product_id IN ({placeholders(ids)})",
            ids,
        )
        return int(row["count"])

    def _images(self, product: Product, owners: Mapping[str, str]) -> list[str]:
        images = []
        for path in product.images:
            owner = owners.get(path)
            if owner is None:
                images.append(path)
                continue
            self._feed.problems.warn(
                product.line,
                f"{quote(path)} is an image of product {quote(owner)} since an earlier import; "
                f"product {quote(product.product_id)} does not get it. To move it, import both "
                "products in one file",
            )
        return images


def _write(
    tx: Transaction,
    feed: Feed,
    columns: Mapping[str, Column],
    replace: bool,
    origin: Origin | None,
) -> None:
    """Write what was planned, within one transaction."""
    staging = feed.staging
    if replace:
        for table in ("products", "product_images", "product_variants", "product_urls", "feeds"):
            tx.rows(f"DELETE FROM {table}")
    if origin is not None:
        origin.write(tx)
    tx.rows("DELETE FROM product_columns")
    tx.many(
        "INSERT INTO product_columns VALUES (?, ?, ?, ?)",
        [
            (column.name, column.type.value, column.decimal_sign, int(column.chosen))
            for column in columns.values()
        ],
    )
    for ids in staging.planned_ids():
        if not replace:
            stale = ["product_variants"]
            stale += ["product_images"] * feed.has_images + ["product_urls"] * feed.has_urls
            for table in stale:
                tx.many(f"DELETE FROM {table} WHERE product_id = ?", ids)
    for rows in staging.planned("products"):
        tx.many(
            "INSERT INTO products VALUES (?, ?)"
            " ON CONFLICT (product_id) DO UPDATE SET facts = excluded.facts",
            rows,
        )
    for rows in staging.planned("variants"):
        tx.many(
            "INSERT INTO product_variants VALUES (?, ?, ?, ?) ON CONFLICT (item_id) DO UPDATE"
            " SET product_id = excluded.product_id, position = excluded.position,"
            " facts = excluded.facts",
            rows,
        )
    for rows in staging.planned("paths"):
        tx.many(
            "INSERT INTO product_images VALUES (?, ?)"
            " ON CONFLICT (filename) DO UPDATE SET product_id = excluded.product_id",
            rows,
        )
    for rows in staging.planned("urls"):
        tx.many(
            "INSERT INTO product_urls (product_id, position, url, feed) VALUES (?, ?, ?, ?)",
            [(*row, origin.name if origin else "") for row in rows],
        )


def _combined(variants: Sequence[Variant]) -> dict[str, Value | None]:
    """Return the facts of a product: of each column, the first value that a variant has."""
    facts: dict[str, Value | None] = {}
    for variant in variants:
        for name, value in variant.facts.items():
            if facts.get(name) is None:
                facts[name] = value
    return facts


def _json(facts: Nullable) -> str:
    return json.dumps(facts, ensure_ascii=False, allow_nan=False)


def _facts(tx: Transaction, ids: Sequence[str]) -> dict[str, Facts]:
    rows = tx.rows(
        f"SELECT product_id, facts FROM products WHERE product_id IN ({placeholders(ids)})", ids
    )
    return {row["product_id"]: json.loads(row["facts"]) for row in rows}


def _variants(tx: Transaction, ids: Sequence[str]) -> dict[str, list[Variant]]:
    rows = tx.rows(
        "SELECT item_id, product_id, facts FROM product_variants"
        f" WHERE product_id IN ({placeholders(ids)}) ORDER BY product_id, position",
        ids,
    )
    variants: dict[str, list[Variant]] = {}
    for row in rows:
        variant = Variant(row["item_id"], json.loads(row["facts"]))
        variants.setdefault(row["product_id"], []).append(variant)
    return variants


def _ids(tx: Transaction) -> Iterator[list[str]]:
    """Yield the ids of all products, some at a time."""
    for ids, _ in stored_rows(tx, "product_id"):
        yield ids


def _batches(values: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), BATCH):
        yield values[start : start + BATCH]
