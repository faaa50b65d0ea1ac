"""What products can be filtered by on the page: columns of numbers, and columns of few values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from pipeline.feeds.columns import Type, Value, text_of
from pipeline.search.product_catalogue import Catalogue

MAX_CHOICES = 50  # of a column whose values are listed
SIGNS = frozenset("<>=!")  # of a condition: a column with one of them is named in quotes


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
        if '"' in column["name"] and SIGNS & set(column["name"]):
            continue  # no condition can name it
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
    counts: dict[str, Counter[Value]] = {}
    for product_id in catalogue.facts_json:
        for name, values in catalogue.values(product_id).items():
            counts.setdefault(name, Counter()).update(values)
    described: list[dict[str, Any]] = []
    for name, count in sorted(counts.items()):
        column = catalogue.column(name, count)
        numbers = [key for key in map(column.key, count) if isinstance(key, float)]
        if column.type == Type.NUMBER and numbers:
            described.append(
                {"name": name, "kind": "number", "min": min(numbers), "max": max(numbers)}
            )
            continue
        few = len(count) <= MAX_CHOICES
        choices = [text_of(value) for value, _ in count.most_common()] if few else None
        described.append({"name": name, "kind": "text", "values": choices})
    return described
