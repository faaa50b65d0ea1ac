"""The columns of the product catalogue, as filters are built from them."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from pipeline.search.product_catalogue import Catalogue

MAX_CHOICES = 50  # of a column whose values are listed


def columns(catalogue: Catalogue) -> list[dict[str, Any]]:
    """Describe the columns, by name: numbers by their range, text by its values where few."""
    counts: dict[str, Counter[str]] = {}
    numbers: dict[str, list[float]] = {}
    for facts_json in catalogue.facts_json.values():
        for name, value in json.loads(facts_json).items():
            for each in value if isinstance(value, list) else [value]:
                counts.setdefault(name, Counter())[str(each)] += 1
                if isinstance(each, int | float) and not isinstance(each, bool):
                    numbers.setdefault(name, []).append(float(each))
    described: list[dict[str, Any]] = []
    for name, values in sorted(counts.items()):
        of_column = numbers.get(name, [])
        if of_column and len(of_column) == values.total():
            low, high = min(of_column), max(of_column)
            described.append({"name": name, "kind": "number", "min": low, "max": high})
            continue
        few = len(values) <= MAX_CHOICES
        choices = [value for value, _ in values.most_common()] if few else None
        described.append({"name": name, "kind": "text", "values": choices})
    return described
