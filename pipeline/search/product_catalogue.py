"""What a shop knows about its products: looked up, and asked with conditions."""

from __future__ import annotations

import json
import operator
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.errors import WrongUse, quote
from pipeline.feeds.columns import Column, Type, TypeFinder, Value, text_of
from pipeline.feeds.numbers import read_number
from pipeline.names import nfc

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Facts = dict[str, Value]
Key = str | float

# Spaces are stripped afterwards: a pattern that skips them tries every split of a long blank text.
CONDITION = re.compile(
    r'(\s*"[^"]+"\s*|[^<>=!]+)(==|=<|=>|<>|<=|>=|!=|=|<|>)(?![<>=!])(.*)', re.DOTALL
)
SAME = {"==": "=", "<>": "!=", "=<": "<=", "=>": ">="}  # as other languages write them
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
EXPONENT = re.compile(r"[-+]?[0-9]{1,15}(\.[0-9]{1,15})?[eE][-+]?[0-9]{1,2}")
YES, NO = ("true", "yes", "1"), ("false", "no", "0")


@dataclass(frozen=True)
class Catalogue:
    """All products at one revision; facts stay JSON until they are looked at."""

    revision: int = 0
    facts_json: Mapping[str, str] = field(default_factory=dict)
    by_image: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, Column] = field(default_factory=dict)
    variants_json: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def product_of(self, filename: str) -> str:
        """Name the product that an image shows.

        That is the product that lists the image, else the one that is called like it without its
        suffix, else the one that is called like the nearest folder that it lies in; an image that
        no product claims is a product of its own.
        """
        filename = nfc(filename)
        listed = self.by_image.get(filename)
        if listed is not None:
            return listed
        # Not PurePosixPath: this runs once for every row of an index.
        folder, slash, name = filename.rpartition("/")
        own = f"{folder}{slash}{name.rpartition('.')[0] or name}"
        if own in self.facts_json or not self.facts_json:
            return own
        while folder:
            if folder in self.facts_json:
                return folder
            folder = folder.rpartition("/")[0]
        return own

    def facts(self, product_id: str) -> Facts:
        """Return what is known about a product; nothing, if it was not imported."""
        facts: Facts = json.loads(self.facts_json.get(nfc(product_id), "{}"))
        return facts

    def values(self, product_id: str) -> dict[str, list[Value]]:
        """Return the values of each column: those of the product, then of its variants."""
        values = {name: [value] for name, value in self.facts(product_id).items()}
        for variant in self.variants_json.get(product_id, ()):
            for name, value in json.loads(variant).items():
                if value not in values.setdefault(name, []):
                    values[name].append(value)
        return values

    def varying(self, product_id: str) -> dict[str, list[Value]]:
        """Return the values of the columns in which a product's variants differ."""
        if product_id not in self.variants_json:
            return {}
        values = self.values(product_id)
        return {name: several for name, several in values.items() if len(several) > 1}

    def column(self, name: str, values: Iterable[Value]) -> Column:
        """Return a column; that of an older catalogue has the type that its values show."""
        column = self.columns.get(name)
        if column is not None:
            return column
        finder = TypeFinder(name)
        for value in values:
            finder.add(text_of(value))
        return finder.column()


@dataclass(frozen=True)
class Condition:
    """One `--where`: a column compared with a value."""

    column: str
    sign: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read `category=shoe`, `price<50`, `color!=red`, ...

        Raises:
            WrongUse: it is none.
        """
        match = CONDITION.fullmatch(text)
        column, sign, value = (part.strip() for part in match.groups()) if match else ("", "", "")
        if len(column) > 2 and column[0] == column[-1] == '"':
            column = column[1:-1]
        if len(value) > 2 and value[0] == value[-1] == '"':
            value = value[1:-1]
        if not column or not value:
            raise WrongUse(
                f"Invalid condition {quote(text)}: write COLUMN=VALUE, or one of !=, <, <=, "
                '> and >= in place of =. Names and values that contain such signs stand in "".'
            )
        return cls(unicodedata.normalize("NFC", column), SAME.get(sign, sign), value)

    def bound(self, column: Column) -> Key:
        """Return the value as the values of the column are compared.

        Raises:
            WrongUse: the value or the sign does not fit the column's type.
        """
        is_ = f"The column {quote(self.column)} is {column.type.noun}"
        if self.sign not in ("=", "!=") and column.type not in (Type.NUMBER, Type.DATE):
            raise WrongUse(
                f"{is_}: '{self.sign}' does not apply to it, only = and != do. 'import-catalogue "
                f"FILE --type {self.column}=number' makes it a number."
            )
        if column.type == Type.NUMBER:
            return self._number(is_)
        if column.type == Type.BOOLEAN:
            value = self.value.casefold()
            if value not in (*YES, *NO):
                raise WrongUse(f"{is_}: {quote(self.value)} is neither true nor false.")
            return "true" if value in YES else "false"
        key = column.key(self.value)
        if key is None:
            raise WrongUse(
                f"{is_}: {quote(self.value)} is none. Write it like 2026-01-31 or "
                "2026-01-31T12:00:00."
            )
        return key

    def holds(self, keys: NDArray[Any], column: Column) -> NDArray[np.bool_]:
        """Compare the keys of a column's values -> (n,).

        Args:
            keys: (n,) numbers or texts, see `Column.key`.

        Raises:
            WrongUse: see `bound`.
        """
        import numpy as np  # not at the top: the command line only reads conditions

        same: NDArray[np.bool_] = np.asarray(COMPARE[self.sign](keys, self.bound(column)), bool)
        return same

    def _number(self, is_: str) -> float:
        """Read the bound of a comparison with numbers."""
        number = read_number(self.value)
        if number is None and EXPONENT.fullmatch(self.value):
            return float(self.value)
        value = number.value(".") if number else None
        if number is None or value is None:
            raise WrongUse(f"{is_}: {quote(self.value)} is not one.")
        if number.currency:
            raise WrongUse(
                f"{is_}: leave out the currency of {quote(self.value)}. --where "
                f"'{self.column}_currency={number.currency}' chooses a currency."
            )
        if number.either == ",":
            raise WrongUse(
                f"{is_}: {quote(self.value)} can be read in two ways. Write {number.digits} or "
                f"{self.value.replace(',', '.')}."
            )
        return float(value)
