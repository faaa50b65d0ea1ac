"""The type of a column: found over all of its values, or named by the user."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache

from pipeline.feeds.numbers import read_number

Value = str | int | float | bool
MAX_LINES = 20  # of the values that do not fit, each column
# The share of a column's values that must be numbers: less where its name says that it counts.
NUMBERS, NUMBERS_BY_NAME = 0.9, 0.5

_IDENTIFIERS = (
    "id ids uid uuid guid sku gtin gtin8 gtin12 gtin13 gtin14 ean ean8 ean13 upc isbn isbn13 mpn "
    "asin barcode code reference ref handle slug artikelnummer artikelnr bestellnummer phone "
    "telefon zip postcode plz"
)
IDENTIFIERS = frozenset(_IDENTIFIERS.split())
_AMOUNTS = (
    "price preis prix precio prezzo prijs cost costs kosten amount msrp uvp rrp discount rabatt "
    "stock lager bestand quantity qty menge quantite inventory weight gewicht poids width breite "
    "height höhe hoehe length länge depth tiefe rating"
)
AMOUNTS = frozenset(_AMOUNTS.split())
PLACEHOLDERS = frozenset(("n/a", "na", "nan", "#n/a", "null", "none", "-", "--", "inf", "-inf"))
TRUTH = {"true": True, "false": False}
_DATE = re.compile(
    r"[0-9]{4}-[0-9]{2}(-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?"
    r"( ?(Z|[-+][0-9]{2}:?[0-9]{2}))?)?)?"
)
_HUGE = re.compile(r"[-+]?([0-9]{61,}(\.[0-9]*)?|[0-9]+(\.[0-9]+)?[eE][-+]?[0-9]{3,})")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
_WORD = re.compile(r"[^\W_]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Type(StrEnum):
    """What the values of a column are."""

    NUMBER = "number"
    TEXT = "text"
    IDENTIFIER = "identifier"
    BOOLEAN = "boolean"
    DATE = "date"

    @property
    def noun(self) -> str:
        """The type with its article, as in 'the column is a number'."""
        return {"text": "text", "identifier": "an identifier"}.get(self, f"a {self}")


@dataclass(frozen=True)
class Column:
    """How the values of a column are read and compared.

    Attributes:
        decimal_sign: what begins decimals in numbers that do not tell, "." or ",".
        chosen: the user named the type.
    """

    name: str
    type: Type = Type.TEXT
    decimal_sign: str = "."
    chosen: bool = False

    def read(self, text: str) -> tuple[Value, str]:
        """Return a value and its currency, or "". What does not fit the type stays text."""
        if self.type == Type.BOOLEAN:
            return TRUTH.get(text.casefold(), text), ""
        if self.type == Type.NUMBER and (number := read_number(text)) is not None:
            value = number.value(self.decimal_sign)
            if value is not None:
                return value, number.currency
        return text, ""

    def key(self, value: Value) -> str | float | None:
        """Return what a stored value is compared by; None for one that does not fit the type."""
        if self.type == Type.NUMBER:
            if isinstance(value, str):
                value = self.read(value)[0]
            if isinstance(value, str | bool):
                return None
            try:
                return float(value)
            except OverflowError:  # of an older catalogue: 10 to the power of 400
                return None
        if self.type == Type.DATE:
            return date_key(text_of(value))
        if self.type == Type.BOOLEAN:
            fold = text_of(value).casefold()
            return fold if fold in TRUTH else None
        return fold_text(text_of(value))


def is_huge(text: str) -> bool:
    """Tell whether a text is a number beyond what a computer holds as one: 10^400, 1e999."""
    return bool(_HUGE.fullmatch(text))


def text_of(value: Value) -> str:
    """Return a stored value as a file would have it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else repr(value)


def fold_text(text: str) -> str:
    """Return what texts are compared by: without regard to case or to how accents are encoded."""
    return unicodedata.normalize("NFC", text).casefold()


@lru_cache(maxsize=4096)
def date_key(text: str) -> float | None:
    """Return the seconds of `2026-01-31`, `2026-01`, `2026-01-31T12:00:00Z`; None for others."""
    if not _DATE.fullmatch(text):
        return None
    try:
        moment = datetime.fromisoformat(f"{text}-01" if len(text) == 7 else text.replace(" Z", "Z"))
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH).total_seconds()


def words_of(name: str) -> frozenset[str]:
    """Return the words of a column's name: `unitPrice`, `Unit price` -> unit, price."""
    return frozenset(_WORD.findall(_CAMEL.sub(" ", name).casefold()))


@dataclass
class Misfits:
    """Values that do not fit a type."""

    count: int = 0
    lines: list[int] = field(default_factory=list)

    def add(self, line: int) -> None:
        self.count += 1
        if len(self.lines) < MAX_LINES and line:
            self.lines.append(line)


class TypeFinder:
    """Sees every value of a column, remembers counts, and tells its type."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.values = 0
        self.currencies: Counter[str] = Counter()
        self.misfits = {kind: Misfits() for kind in (Type.NUMBER, Type.BOOLEAN, Type.DATE)}
        self.either: list[str] = []  # examples of numbers like 1,299
        self._signs: Counter[str] = Counter()
        self._placeholders = 0
        self._codes = 0  # leading zeros, or more digits than a number holds
        self.code: tuple[str, int] | None = None  # the first of them, and its line
        self._wholes = 0  # digits, or digits with .0
        self._zeros = 0  # of these with .0
        words = words_of(name)
        self.named_identifier = bool(words & IDENTIFIERS)
        self._named_amount = bool(words & AMOUNTS) and not self.named_identifier

    def add(self, text: str, line: int = 0) -> None:
        """See a value that is not empty.

        Args:
            line: 0 for a value that is not of a file.
        """
        self.values += 1
        number = read_number(text)
        if number is None or (not number.either and number.value(".") is None):
            self.misfits[Type.NUMBER].add(line)
            self._placeholders += text.casefold() in PLACEHOLDERS or is_huge(text)
            if number is not None:
                self._add_code(text, line)
        else:
            self._signs[number.sign] += 1
            if number.currency:
                self.currencies[number.currency] += 1
            if number.either and len(self.either) < 3:
                self.either.append(text)
            if "0" in text[:2] and _LEADING_ZERO.fullmatch(text):
                self._add_code(text, line)
            if text.isdecimal():
                self._wholes += 1
            elif text.endswith(".0") and text[:-2].isdecimal():
                self._wholes += 1
                self._zeros += 1
        if len(text) > 5 or text.casefold() not in TRUTH:
            self.misfits[Type.BOOLEAN].add(line)
        if text[4:5] != "-" or date_key(text) is None:
            self.misfits[Type.DATE].add(line)

    @property
    def has_float_identifiers(self) -> bool:
        """Whether all values are whole and some end in `.0`, as pandas writes gaps."""
        return bool(self._zeros) and self._wholes == self.values

    def column(self, chosen: Type | None = None, decimal_comma: bool = False) -> Column:
        """Return the column with its type.

        Args:
            chosen: the type that the user named.
            decimal_comma: the file is of a kind that writes 12,99.
        """
        signs = self._signs
        if signs[","] != signs["."]:
            decimal_sign = "," if signs[","] > signs["."] else "."
        elif self.either and not signs[","] and not decimal_comma:
            # Alone, 1,299 is a number with thousands and 1.299 one with decimals.
            decimal_sign = "."
        else:
            decimal_sign = "," if decimal_comma else "."
        return Column(self.name, chosen or self._type(), decimal_sign, chosen is not None)

    def _add_code(self, text: str, line: int) -> None:
        self._codes += 1
        if self.code is None and line:
            self.code = text, line

    def _type(self) -> Type:
        if self.named_identifier:
            return Type.IDENTIFIER
        if not self.values:
            return Type.TEXT
        for kind in (Type.BOOLEAN, Type.DATE):
            if not self.misfits[kind].count:
                return kind
        numbers = self.values - self.misfits[Type.NUMBER].count
        candidates = self.values - self._placeholders
        if self._named_amount and numbers >= NUMBERS_BY_NAME * candidates:
            return Type.NUMBER
        if self._codes and numbers + self._codes >= NUMBERS * candidates:
            return Type.IDENTIFIER
        if not self._codes and numbers >= NUMBERS * candidates > 0:
            return Type.NUMBER
        return Type.TEXT
