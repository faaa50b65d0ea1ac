"""The group of duplicates of each row of an index version, for queries that show one of each."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from pipeline.duplicates.result import Published, rows_by_group
from pipeline.errors import Conflict
from pipeline.search.catalogue_filter import IndexedCatalogue

MAX_VERSIONS = 2


@dataclass(frozen=True)
class RowGroups:
    """`groups` is (n,) the number of each row's group or -1.

    `key` differs where the groups may differ; `warning` is empty where all images were compared.
    """

    groups: NDArray[np.int64]
    key: str
    warning: str


class DuplicateRows:
    """The groups as each index version has them, made once for a version and a revision."""

    def __init__(self, published: Callable[[], Published]) -> None:
        self._published = published
        self._lock = threading.Lock()
        self._cache: LRUCache[str, RowGroups] = LRUCache(MAX_VERSIONS)

    def of(self, indexed: IndexedCatalogue) -> RowGroups:
        """Return the groups of a version.

        Raises:
            Conflict: no search for duplicates has ended yet.
        """
        published, version = self._published(), indexed.version
        if not published.index_version:
            raise Conflict(
                "Duplicates have not been searched for yet: run 'imgrec duplicates', or leave out "
                "--collapse."
            )
        catalogue = indexed.catalogue
        key = f"{version.identity} {published.revision} {catalogue.revision}"
        with self._lock:
            if key not in self._cache:
                groups = published.groups(version, catalogue.product_of)
                warning = ""
                if published.index_version != version.published_identity:
                    warning = (
                        f"Duplicates were last searched for in index {published.version_name}: "
                        f"images that are new in {version.name} are not collapsed. Run 'imgrec "
                        "duplicates'."
                    )
                elif len(version.paths) > version.manifest["images"]:
                    warning = (
                        f"Images that were added since {version.name} was built are not collapsed. "
                        "Run 'imgrec duplicates' after the next rebuild."
                    )
                self._cache[key] = RowGroups(rows_by_group(groups, version), key, warning)
            return self._cache[key]
