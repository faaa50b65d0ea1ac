"""A file of products: read once into a staging area, then yielded product by product."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property

from pipeline.errors import quote
from pipeline.feeds.columns import Column, Type, TypeFinder, Value, is_huge
from pipeline.feeds.plain import LOST_DIGITS, PathColumns, unique
from pipeline.feeds.records import Item, Problems, Product, Variant
from pipeline.feeds.staging import Staging
from pipeline.images.path_length import too_long

JOINING = ("shopify",)  # formats in which several rows make one product as a matter of course
REPORT_EVERY = 1000  # items
CURRENCY = "{}_currency"  # the column beside one of money

Report = Callable[[int], None]


def no_report(count: int) -> None:
    """Tell nobody how far a long piece of work is."""


class Feed:
    """What was understood of a file.

    Args:
        report: told now and then how many items were read.

    Attributes:
        finders: what was seen of each column.
        path_columns: those that name images below the products folder.
        decimal_comma: it is of a kind that writes 12,99.
    """

    def __init__(self, staging: Staging, report: Report = no_report) -> None:
        self.staging = staging
        self._report = report
        self.problems = Problems()
        self.finders: dict[str, TypeFinder] = {}
        self.format = "csv"
        self.encoding = ""
        self.path_columns = PathColumns()
        self._any_url = False
        self.decimal_comma = False
        self.whole = False  # each item is all that is known of it: what it lacks is removed
        self.update_only = False  # its rows are about products that are known already
        self._ids = TypeFinder("")

    def read(self, items: Iterable[Item]) -> None:
        """Stage items, and look at their values."""
        for number, item in enumerate(items, 1):
            if number % REPORT_EVERY == 0:
                self._report(number)
            if size := too_long(item.item_id) or too_long(item.parent):
                self.problems.refuse(item.line, f"its id has {size}")
                continue
            self.staging.add(item)
            self._ids.add(item.item_id)
            if item.parent:
                self._ids.add(item.parent)
            self._any_url |= bool(item.urls)
            for name, text in item.facts.items():
                finder = self.finders.get(name)
                if finder is None:
                    finder = self.finders[name] = TypeFinder(name)
                if text:
                    finder.add(text, item.line)
                    if is_huge(text):
                        self.problems.warn(
                            item.line,
                            f"'{name}' is {quote(text)}, more than a number can hold; it is text",
                        )
        self.staging.finish()
        for line, item_id, product in self.staging.contested():
            self.problems.refuse(
                line,
                f"{quote(item_id)} is a variant of {quote(product)}, but an earlier line of the "
                "file says that it belongs to another product",
            )
        if self._ids.has_float_identifiers:
            self.staging.strip_float_zeros()
            self.problems.note("Ids such as 12.0 were read as 12: all are whole numbers.")
        self._refuse_contradictions()

    @property
    def has_images(self) -> bool:
        """Whether the file says which images below the products folder its products have."""
        return bool(self.path_columns)

    @property
    def has_urls(self) -> bool:
        """Whether the file says which addresses of images its products have, if only none."""
        return self._any_url or bool(self.path_columns.addresses)

    @cached_property
    def n_items(self) -> int:
        """How many products and variants the file names."""
        return self.staging.count_items()

    def column_names(self, columns: Mapping[str, Column]) -> set[str]:
        """Return all columns that an import of this file sets, with those of currencies."""
        return {*columns, *(CURRENCY.format(name) for name in self._currencies(columns))}

    def products(self, columns: Mapping[str, Column]) -> Iterator[Product]:
        """Yield the products with their values read by the types of the columns."""
        convert = _Conversion(self, columns, self._currencies(columns))
        for rows in self.staging.products():
            items = [self._without_others_images(item) for item in rows]
            is_group = any(item.parent for item in items)
            product = self._grouped(items, convert) if is_group else self._one(items, convert)
            if self.has_urls and not self.update_only and not (product.urls or product.images):
                self.problems.warn(
                    product.line, f"product {quote(product.product_id)} has no image"
                )
            yield product

    def _currencies(self, columns: Mapping[str, Column]) -> set[str]:
        """Return the columns that have a currency beside them."""
        return {
            name
            for name, column in columns.items()
            if column.type == Type.NUMBER
            and name in self.finders
            and self.finders[name].currencies
            and CURRENCY.format(name) not in self.finders
        }

    def _one(self, items: list[Item], convert: _Conversion) -> Product:
        """Make a product of rows that all name it: the first has its facts, others add images."""
        facts, images, urls = self._merged(items)
        first = items[0]
        return Product(first.line, first.item_id, convert(facts, first.line), images, urls)

    def _grouped(self, items: list[Item], convert: _Conversion) -> Product:
        """Make a product of its variants."""
        rows: dict[str, list[Item]] = {}
        for item in items:
            rows.setdefault(item.item_id, []).append(item)
        images, urls, variants = list[str](), list[str](), list[Variant]()
        for item_id, several in rows.items():
            facts, some_images, some_urls = self._merged(several)
            images += some_images
            urls += some_urls
            variants.append(Variant(item_id, convert(facts, several[0].line)))
        name = items[0].parent or items[0].item_id
        return Product(items[0].line, name, {}, unique(images), unique(urls), tuple(variants))

    def _merged(self, items: list[Item]) -> tuple[dict[str, str], tuple[str, ...], tuple[str, ...]]:
        """Join the rows of one item: later ones add images, and facts that the first lacks."""
        facts, images, urls = dict[str, str](), list[str](), list[str]()
        for item in items:
            _add_facts(facts, item)
            images += item.images
            urls += item.urls
        return facts, unique(images), unique(urls)

    def _refuse_contradictions(self) -> None:
        """Refuse rows that say something else of an item than earlier ones, or nothing new."""
        refused = list[int]()
        for rows in self.staging.repeated():
            first, *_ = rows.values()
            facts = dict[str, str]()
            for number, item in rows.items():
                reason = self._contradiction(item, first, facts) if item is not first else ""
                if reason:
                    self.problems.refuse(item.line, reason)
                    refused.append(number)
                else:
                    _add_facts(facts, item)
        self.staging.remove(refused)

    def _contradiction(self, item: Item, first: Item, facts: Mapping[str, str]) -> str:
        """Say why a row cannot be joined with the earlier ones of its item, or ""."""
        conflict = next(
            (
                name
                for name, text in item.facts.items()
                if text and facts.get(name, "") not in ("", text)
            ),
            None,
        )
        if not item.images and not item.urls and (self.format not in JOINING or conflict):
            return f"{quote(first.item_id)} is listed twice, first in line {first.line}"
        if conflict is None:
            return ""
        return (
            f"{quote(conflict)} of product {quote(first.item_id)} is "
            f"{quote(item.facts[conflict])}, before {quote(facts[conflict])}"
        )

    def _without_others_images(self, item: Item) -> Item:
        """Take away the images that an earlier row gives to another product."""
        product_id = item.parent or item.item_id
        paths = []
        for path in item.images:
            owner = self.staging.owner(path)
            if owner == product_id:
                paths.append(path)
                continue
            self.problems.warn(
                item.line,
                f"{quote(path)} is already an image of product {quote(owner)}; product "
                f"{quote(product_id)} does not get it",
            )
        return replace(item, images=tuple(paths))


def _add_facts(facts: dict[str, str], item: Item) -> None:
    facts |= {name: text for name, text in item.facts.items() if text or name not in facts}


class _Conversion:
    """Reads the texts of a file as values of the columns' types."""

    def __init__(self, feed: Feed, columns: Mapping[str, Column], currencies: set[str]) -> None:
        self._columns = columns
        self._currencies = currencies
        self._problems = feed.problems
        self._floats = {
            name
            for name, finder in feed.finders.items()
            if columns[name].type == Type.IDENTIFIER and finder.has_float_identifiers
        }
        for name in sorted(self._floats):
            feed.problems.note(f"Values of '{name}' such as 12.0 were read as 12.")

    def __call__(self, facts: Mapping[str, str], line: int) -> dict[str, Value | None]:
        values: dict[str, Value | None] = {}
        for name, text in facts.items():
            column = self._columns[name]
            currency = ""
            if not text:
                values[name] = None
            elif column.type == Type.IDENTIFIER:
                values[name] = self._identifier(name, text, line)
            else:
                values[name], currency = column.read(text)
            if name in self._currencies:
                values[CURRENCY.format(name)] = currency or None
        return values

    def _identifier(self, name: str, text: str, line: int) -> str | None:
        if name in self._floats:
            return text.removesuffix(".0")
        if not LOST_DIGITS.fullmatch(text):
            return text
        mantissa, exponent = text.replace(",", ".").replace("+", "").split("E")
        whole, decimals = mantissa.split(".")
        if len(decimals) != int(exponent):
            self._problems.warn(
                line,
                f"'{name}' is {quote(text)}: a spreadsheet shortened it and its digits are lost; "
                "it was left out",
            )
            return None
        self._problems.warn(line, f"'{name}' is {quote(text)}, read as {whole + decimals}")
        return whole + decimals
