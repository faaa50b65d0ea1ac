"""An index version beside a catalogue: what each row of the index is, and which rows are wanted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import WrongUse, quote
from pipeline.index.versions import Version
from pipeline.search.product_catalogue import PRODUCT_ID, Catalogue, Condition, Value, to_number

KEPT_MASKS = 64  # of the newest conditions


class IndexedCatalogues:
    """Keeps the newest shelf as long as its version and its catalogue are the ones in use."""

    def __init__(self, catalogue: Callable[[bool], Catalogue]) -> None:
        """Follow a catalogue.

        Args:
            catalogue: returns it; told whether to look at once for a change.
        """
        self._catalogue = catalogue
        self._newest: IndexedCatalogue | None = None
        self._ready: IndexedCatalogue | None = None

    def prepare(self, version: Version) -> None:
        """Make a version's shelf before it serves, with what the one in use has been asked."""
        fresh = IndexedCatalogue(version, self._catalogue(False))
        if self._newest is not None:
            fresh.warm_from(self._newest)
        self._ready = fresh

    def of(self, version: Version, at_once: bool = False) -> IndexedCatalogue:
        """Return a version beside the catalogue as it is now, or was a moment ago.

        Args:
            at_once: as it is now.
        """
        now, held = self._catalogue(at_once), self._newest
        # Identity, not the name: a deleted folder's name is given again.
        if held is None or held.version is not version or held.catalogue is not now:
            ready = self._ready
            if ready is not None and ready.version is version and ready.catalogue is now:
                held, self._ready = ready, None
            else:
                held = IndexedCatalogue(version, now)
            self._newest = held
        return held


class IndexedCatalogue:
    """Nothing is worked out before somebody asks for it; what was, is kept."""

    def __init__(self, version: Version, catalogue: Catalogue) -> None:
        self.version = version
        self.catalogue = catalogue
        self._columns: dict[str, tuple[NDArray[np.object_], NDArray[np.float64]]] = {}
        self._masks: dict[tuple[Condition, ...], NDArray[np.bool_]] = {}

    def warm_from(self, other: IndexedCatalogue) -> None:
        """Work out what another shelf has worked out: the filters and lookups that are in use."""
        if "_rows" in vars(other):
            _ = self._rows
        for conditions in list(other._masks):
            with contextlib.suppress(WrongUse):  # of a column that the catalogue lost
                self.allowed(conditions)

    def product_of(self, row: int) -> str:
        return self.catalogue.product_of(self.version.paths[row])

    def vector_of(self, product_id: str) -> NDArray[np.float32] | None:
        """Return the (d,) unit mean of a product's images; None for one that is not indexed."""
        rows = self._rows.get(product_id)
        if rows is None:
            return None
        mean = np.asarray(self.version.vectors[rows]).mean(axis=0)
        unit: NDArray[np.float32] = (mean / np.linalg.norm(mean)).astype(np.float32)
        return unit

    def allowed(self, conditions: Sequence[Condition]) -> NDArray[np.bool_] | None:
        """Return the (n,) rows whose product meets all conditions; None where there are none.

        Raises:
            WrongUse: no product has such a column.
        """
        key = tuple(conditions)
        if not key:
            return None
        mask = self._masks.get(key)
        if mask is None:
            mask = np.ones(len(self.version.paths), bool)
            for condition in key:
                mask &= condition.holds(*self._column(condition.column))
            while len(self._masks) >= KEPT_MASKS:
                self._masks.pop(next(iter(self._masks)), None)
            self._masks[key] = mask
        return mask

    @cached_property
    def products(self) -> list[str]:
        """The product of each row."""
        return [self.catalogue.product_of(path) for path in self.version.paths]

    @cached_property
    def _rows(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for row, product_id in enumerate(self.products):
            rows.setdefault(product_id, []).append(row)
        return rows

    def _column(self, name: str) -> tuple[NDArray[np.object_], NDArray[np.float64]]:
        held = self._columns.get(name)
        if held is not None:
            return held
        values: dict[str, Value]
        if name == PRODUCT_ID:
            values = dict(zip(self.products, self.products, strict=True))
        else:
            facts = {product: self.catalogue.facts(product) for product in self._rows}
            values = {p: known[name] for p, known in facts.items() if name in known}
            if not values:
                raise WrongUse(
                    self._no_column(name, {c for known in facts.values() for c in known})
                )
        texts = np.full(len(self.products), None, object)
        numbers = np.full(len(self.products), np.nan)
        for product_id, value in values.items():
            number = to_number(value)
            text = str(value).casefold()
            for row in self._rows[product_id]:
                texts[row] = text
                if number is not None:
                    numbers[row] = number
        self._columns[name] = texts, numbers
        return texts, numbers

    def _no_column(self, name: str, known: set[str]) -> str:
        if not known:
            return (
                f"No product of index {self.version.name} has a {quote(name)}: 'imgrec "
                "import-products FILE' tells imgrec about your products."
            )
        return f"No product has a {quote(name)}; there are: {', '.join(sorted(known))}."
