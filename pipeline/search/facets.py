"""What products can be filtered by: columns of numbers, and columns of few values."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from pipeline.search.product_catalogue import Catalogue, Value, to_number

MAX_CHOICES = 30  # a column of more texts describes products, it does not group them
SIGNS = frozenset("<>=!")  # no condition can name a column with one of them


@dataclass(frozen=True)
class Facet:
    """One column: numbers from `low` to `high`, or `choices` in alphabetical order."""

    column: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str, ...] = ()


@dataclass
class _Column:
    numbers: bool = True
    low: float = float("inf")
    high: float = float("-inf")
    texts: dict[str, str] = field(default_factory=dict)  # without regard to case, as filters do

    def add(self, value: Value) -> None:
        number = to_number(value)
        if number is None:
            self.numbers = False
        else:
            self.low, self.high = min(self.low, number), max(self.high, number)
        if len(self.texts) <= MAX_CHOICES:
            text = str(value)
            self.texts.setdefault(text.casefold(), text)


def facets(catalogue: Catalogue) -> list[Facet]:
    """Return the columns that a filter can be made of, in the order in which they appear."""
    columns: dict[str, _Column] = {}
    for text in catalogue.facts_json.values():
        for name, value in json.loads(text).items():
            columns.setdefault(name, _Column()).add(value)
    usable = []
    for name, column in columns.items():
        if SIGNS & set(name) or len(column.texts) < 2:
            continue
        if column.numbers:
            usable.append(Facet(name, column.low, column.high))
        elif len(column.texts) <= MAX_CHOICES:
            order = sorted(column.texts)
            usable.append(Facet(name, choices=tuple(column.texts[text] for text in order)))
    return usable
