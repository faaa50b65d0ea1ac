"""What products can be filtered by on the page: columns of numbers, and columns of few values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from pipeline.feeds.columns import Type
from pipeline.search.product_catalogue import Catalogue

MAX_CHOICES = 50  # of a column whose values are listed
SIGNS = frozenset("<>=!")  # no condition can name a column with one of them


@dataclass(frozen=True)
class Facet:
    """One column: numbers from `low` to `high`, or `choices` in alphabetical order."""

    column: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str, ...] = ()


def facets(catalogue: Catalogue) -> list[Facet]:
    """Return the columns that tell products apart, by name; choices without regard to case."""
    usable = []
    for column in columns(catalogue):
        if SIGNS & set(column["name"]):
            continue
        if column["kind"] == "number":
            if column["min"] < column["max"]:
                usable.append(Facet(column["name"], column["min"], column["max"]))
            continue
        # The most frequent spelling comes first, and stays.
        spellings = {text.casefold(): text for text in reversed(column["values"] or [])}
        if len(spellings) > 1:
            choices = tuple(spellings[key] for key in sorted(spellings))
            usable.append(Facet(column["name"], choices=choices))
    return usable


def columns(catalogue: Catalogue) -> list[dict[str, Any]]:
    """Describe the columns, by name: numbers by their range, text by its values where few."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in catalogue.columns}
    ranges: dict[str, tuple[float, float]] = {}
    for product_id in catalogue.facts_json:
        for name, values in catalogue.values(product_id).items():
            column = catalogue.columns.get(name)
            for value in values:
                key = column.key(value) if column else None
                if isinstance(key, float):
                    low, high = ranges.get(name, (key, key))
                    ranges[name] = min(low, key), max(high, key)
                elif column and len(counts[name]) <= MAX_CHOICES:
                    counts[name][str(value)] += 1
    described: list[dict[str, Any]] = []
    for name, column in sorted(catalogue.columns.items()):
        if column.type == Type.NUMBER and name in ranges:
            low, high = ranges[name]
            described.append({"name": name, "kind": "number", "min": low, "max": high})
            continue
        few = len(counts[name]) <= MAX_CHOICES
        choices = [value for value, _ in counts[name].most_common()] if few else None
        described.append({"name": name, "kind": "text", "values": choices})
    return described
