"""The types of the catalogue's columns, and the products that are stored, some at a time."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.errors import WrongUse, quote
from pipeline.feeds.columns import Column, Type, TypeFinder, Value, text_of
from pipeline.feeds.feed import Feed
from pipeline.store.backend import Transaction

BATCH = 500
Facts = dict[str, Value]


def decide_columns(
    tx: Transaction, feed: Feed, stored: Mapping[str, Column], types: Mapping[str, Type]
) -> dict[str, Column]:
    """Find the type of each column of a file over all values that the catalogue will have."""
    unknown = sorted(set(types) - set(feed.finders))
    if unknown:
        raise WrongUse(
            f"--type names the column {quote(unknown[0])}, which the file does not have. Its "
            f"columns: {', '.join(feed.finders)}."
        )
    columns, doubtful = dict[str, Column](), dict[str, Any]()
    for name, finder in feed.finders.items():
        before = stored.get(name)
        chosen = types.get(name, before.type if before and before.chosen else None)
        column = finder.column(chosen, feed.decimal_comma)
        if before is not None and not finder.values:
            column = before
        if before is not None and column.type != before.type and not column.chosen:
            doubtful[name] = copy.deepcopy(finder)
        columns[name] = column
    if doubtful:
        for ids, facts in stored_facts(tx):
            in_file = feed.staging.holds(ids)
            for product_id, row in zip(ids, facts, strict=True):
                for name in doubtful.keys() & row.keys():
                    if product_id not in in_file:
                        doubtful[name].add(text_of(row[name]))
        for name, finder in doubtful.items():
            column = finder.column(None, feed.decimal_comma)
            if column.type != columns[name].type:
                feed.problems.note(
                    f"The column '{name}' stays {column.type} because of values of earlier "
                    f"imports; this file alone has {columns[name].type}. '--type {name}="
                    f"{columns[name].type}' changes it."
                )
            columns[name] = column
    return columns


def stored_columns(tx: Transaction) -> dict[str, Column]:
    rows = tx.rows("SELECT name, type, decimal_sign, chosen FROM product_columns")
    return {row["name"]: column_of(row) for row in rows}


def found_columns(tx: Transaction) -> dict[str, Column]:
    """Find the types of a catalogue that an imgrec without types imported."""
    finders: dict[str, TypeFinder] = {}
    for _, rows in stored_facts(tx):
        for facts in rows:
            for name, value in facts.items():
                finders.setdefault(name, TypeFinder(name)).add(text_of(value))
    return {name: finder.column() for name, finder in finders.items()}


def column_of(row: Mapping[str, Any]) -> Column:
    """Read a row of product_columns."""
    return Column(row["name"], Type(row["type"]), row["decimal_sign"], bool(row["chosen"]))


def stored_facts(tx: Transaction) -> Iterator[tuple[list[str], list[Facts]]]:
    for ids, rows in stored_rows(tx, "product_id, facts"):
        yield ids, [json.loads(row["facts"]) for row in rows]


def stored_rows(tx: Transaction, select: str) -> Iterator[tuple[list[str], list[dict[str, Any]]]]:
    rows = tx.rows(f"SELECT {select} FROM products ORDER BY product_id LIMIT {BATCH}")
    while rows:
        yield [row["product_id"] for row in rows], rows
        rows = tx.rows(
            f"SELECT {select} FROM products WHERE product_id > ? ORDER BY product_id LIMIT {BATCH}",
            (rows[-1]["product_id"],),
        )
