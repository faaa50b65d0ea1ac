"""The product catalogue joined with an index version: the product of each row, filters as masks."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from pipeline.errors import WrongUse, quote
from pipeline.feeds.columns import Column, Type, Value
from pipeline.feeds.names import PRODUCT_ID
from pipeline.index.versions import Version
from pipeline.names import nfc
from pipeline.search.product_catalogue import Catalogue, Condition

MAX_MASKS = 64  # of the most recently used conditions
MAX_COUNTED = 200_000  # rows that are grouped by product for a mere count
MAX_CATALOGUES = 2  # the version that serves, and the one that is being made ready


class IndexedCatalogues:
    """The catalogue as each index version sees it, made once for a version and a revision."""

    def __init__(self, catalogue: Callable[[bool], Catalogue]) -> None:
        """Follow a catalogue.

        Args:
            catalogue: returns it; its argument says whether to look for a change at once.
        """
        self._catalogue = catalogue
        self._lock = threading.Lock()
        # The identity, not the name: the name of a deleted version is given again.
        self._cache: LRUCache[tuple[str, int], IndexedCatalogue] = LRUCache(MAX_CATALOGUES)

    def of(self, version: Version, at_once: bool = False) -> IndexedCatalogue:
        """Return a version beside the catalogue as it is now, or was a moment ago.

        Args:
            at_once: as it is now.
        """
        catalogue = self._catalogue(at_once)
        key = (version.identity, catalogue.revision)
        with self._lock:
            if key not in self._cache:
                self._cache[key] = IndexedCatalogue(version, catalogue)
            return self._cache[key]

    def prepare(self, version: Version) -> None:
        """Make a version ready before it serves, with the filters that are in use."""
        with self._lock:
            in_use = list(self._cache.values())
        fresh = self.of(version)
        for other in in_use:
            fresh.warm_from(other)


@dataclass(frozen=True)
class _Values:
    """A column as it is compared: `keys[i]` belongs to the index row `rows[i]`."""

    column: Column
    rows: NDArray[np.int64]
    keys: NDArray[Any]
    has_value: NDArray[np.int64]  # rows of products that have any value, one that fits or not

    def rows_where(self, condition: Condition, n_rows: int) -> NDArray[np.bool_]:
        """Return the (n_rows,) rows that meet a condition; where there is no value, none does.

        A product with variants meets it if one of them does, `!=` if none of them is equal.
        """
        mask = np.zeros(n_rows, bool)
        if condition.sign == "!=":
            mask[self.has_value] = True
            equal = replace(condition, sign="=").holds(self.keys, self.column)
            mask[self.rows[equal]] = False
        else:
            mask[self.rows[condition.holds(self.keys, self.column)]] = True
        return mask


class IndexedCatalogue:
    """The product of each row of an index version, and filters over them; computed on demand."""

    def __init__(self, version: Version, catalogue: Catalogue) -> None:
        self.version = version
        self.catalogue = catalogue
        self._columns: dict[str, _Values] = {}
        self._lock = threading.Lock()
        self._masks: LRUCache[tuple[Condition, ...], NDArray[np.bool_]] = LRUCache(MAX_MASKS)

    def warm_from(self, other: IndexedCatalogue) -> None:
        """Compute the masks that another catalogue has been asked for."""
        with other._lock:
            in_use = list(other._masks)
        for conditions in in_use:
            with contextlib.suppress(WrongUse):  # a column that the catalogue no longer has
                self.allowed(conditions)

    def product_of(self, row: int) -> str:
        return self.catalogue.product_of(self.version.paths[row])

    def vector_of(self, product_id: str) -> NDArray[np.float32] | None:
        """Return the (d,) unit mean of a product's images; None for one that is not indexed."""
        rows = self._rows.get(nfc(product_id))
        if rows is None:
            return None
        mean = np.asarray(self.version.vectors[rows]).mean(axis=0)
        unit: NDArray[np.float32] = (mean / np.linalg.norm(mean)).astype(np.float32)
        return unit

    def filenames_of(self, product_id: str) -> list[str]:
        """Return a product's images; none for one that is not indexed."""
        return [self.version.paths[row] for row in self._rows.get(nfc(product_id), ())]

    def allowed(self, conditions: Sequence[Condition]) -> NDArray[np.bool_] | None:
        """Return the (n,) rows whose product meets all conditions; None where there are none.

        Raises:
            WrongUse: no product has such a column.
        """
        key = tuple(conditions)
        if not key:
            return None
        with self._lock:
            mask = self._masks.get(key)
        if mask is None:
            mask = np.ones(len(self.version.paths), bool)
            for condition in key:
                mask &= self._column(condition.column).rows_where(condition, len(mask))
            if self.version.kept is not None:
                mask &= self.version.kept
            with self._lock:
                self._masks[key] = mask
        return mask

    def count(self, conditions: Sequence[Condition], without: Collection[str] = ()) -> int | None:
        """Count the products that meet all conditions; None where that would take seconds.

        Args:
            without: products that are not counted.
        """
        mask = self.allowed(conditions)
        if mask is None:
            if len(self.version.paths) > MAX_COUNTED:
                return None
            return len(self._rows.keys() - set(without))
        rows = np.flatnonzero(mask)
        return len({self.products[row] for row in rows.tolist()} - set(without))

    def require_column(self, name: str) -> Column:
        """Return a column that a product has.

        Raises:
            WrongUse: none has.
        """
        return self._column(name).column

    @cached_property
    def products(self) -> list[str]:
        """The product of each row."""
        return [self.catalogue.product_of(path) for path in self.version.paths]

    @cached_property
    def _rows(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        kept = self.version.kept
        for row, product_id in enumerate(self.products):
            if kept is None or kept[row]:
                rows.setdefault(product_id, []).append(row)
        return rows

    def _column(self, name: str) -> _Values:
        """Return the values of a column, those of variants too."""
        if name in self._columns:
            return self._columns[name]
        values: dict[str, list[Value]]
        if name == PRODUCT_ID:
            values = {product: [product] for product in self._rows}
            column = Column(name)
        else:
            known = {product: self.catalogue.values(product) for product in self._rows}
            values = {product: row[name] for product, row in known.items() if name in row}
            if not values and name not in self.catalogue.columns:
                columns = {column for row in known.values() for column in row}
                raise WrongUse(self._no_column(name, columns | self.catalogue.columns.keys()))
            column = self.catalogue.column(name, chain.from_iterable(values.values()))
        rows, keys, has_value = list[int](), list[str | float](), list[int]()
        for product_id, several in values.items():
            has_value += self._rows[product_id]
            for value in several:
                key = column.key(value)
                if key is not None:
                    rows += self._rows[product_id]
                    keys += [key] * len(self._rows[product_id])
        kind = np.float64 if column.type in (Type.NUMBER, Type.DATE) else object
        self._columns[name] = _Values(
            column, np.array(rows, np.int64), np.array(keys, kind), np.array(has_value, np.int64)
        )
        return self._columns[name]

    def _no_column(self, name: str, columns: set[str]) -> str:
        if not columns:
            return (
                f"Unknown column {quote(name)}: the products of index {self.version.name} have no "
                "columns yet. 'imgrec import-catalogue FILE' imports them."
            )
        return f"Unknown column {quote(name)}. Available columns: {', '.join(sorted(columns))}."
