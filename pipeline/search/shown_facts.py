"""Facts of a match as people read them."""

from __future__ import annotations

from typing import Any


def shown_facts(match: dict[str, Any]) -> dict[str, str]:
    """Return what is known about a product; where its variants differ, all of their values."""
    variants = match.get("variants", {})
    return {
        name: _several(variants[name]) if name in variants else _one(value)
        for name, value in match.get("product", {}).items()
    }


def _several(values: list[Any]) -> str:
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(numbers) == len(values) and not any(isinstance(value, bool) for value in values):
        return f"{_one(min(numbers))} to {_one(max(numbers))}"
    return ", ".join(map(_one, values))


def _one(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and round(value, 2) == value:
        return f"{value:.2f}"
    return str(value)
