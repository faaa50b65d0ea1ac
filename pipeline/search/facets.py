"""What products can be filtered by on the page: columns of numbers, and columns of few values."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.search.product_catalogue import Catalogue, columns

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
