"""What a search for duplicates found, and its groups as an index version has them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.duplicates.pairs import Facts, Group, Kind, Pair, group_pairs, other_of
from pipeline.index.versions import Version


@dataclass(frozen=True)
class SearchResult:
    """Pairs, and facts about their images by path."""

    pairs: Sequence[Pair] = ()
    facts: Mapping[str, Facts] = field(default_factory=dict)

    def to_json(self) -> str:
        pairs = [(pair.path, pair.other, pair.kind.value, pair.score) for pair in self.pairs]
        return json.dumps(
            {"pairs": pairs, "facts": {path: astuple(each) for path, each in self.facts.items()}}
        )

    @classmethod
    def from_json(cls, text: str) -> SearchResult:
        value = json.loads(text)
        pairs = [
            Pair(path, other, Kind(kind), score) for path, other, kind, score in value["pairs"]
        ]
        return cls(pairs, {path: Facts(*each) for path, each in value["facts"].items()})


@dataclass(frozen=True)
class Published:
    """The newest finished search and all decisions.

    Attributes:
        index_version: the identity of the version that was searched; empty before the first search.
        not_same: pairs of paths that a person said are not the same.
        revision: counts searches and decisions.
    """

    index_version: str = ""
    threshold: float | None = None
    result: SearchResult = field(default_factory=SearchResult)
    not_same: frozenset[tuple[str, str]] = frozenset()
    revision: int = 0

    @property
    def version_name(self) -> str:
        return self.index_version.partition("/")[0]

    def groups(
        self,
        version: Version,
        product_of: Callable[[str], str],
        changed: Collection[str] = (),
    ) -> list[Group]:
        """Return the groups of images that a version has, unchanged since the search.

        Images of one product that are merely similar are no duplicates: it was photographed from
        several sides.

        Args:
            changed: paths that were added or removed since the version was built, where the version
                does not know it itself.
        """
        facts, rows, kept = self.result.facts, {}, version.kept
        for path in {path for pair in self.result.pairs for path in pair.key}:
            row = version.row_of_path(path)
            if row is not None and path not in changed and (kept is None or kept[row]):
                known = facts.get(path)
                same_search = version.published_identity == self.index_version
                if same_search or known is None or known.bytes == version.files[row, 0]:
                    rows[path] = row
        pairs = [
            pair
            for pair in self.result.pairs
            if pair.path in rows
            and pair.other in rows
            and (pair.kind != Kind.SIMILAR or product_of(pair.path) != product_of(pair.other))
        ]
        return group_pairs(pairs, facts, self.not_same)


def rows_by_group(groups: Sequence[Group], version: Version) -> NDArray[np.int64]:
    """Return the (n,) number of each row's group; -1 for a row without one."""
    numbers = np.full(len(version.paths), -1, np.int64)
    for number, group in enumerate(groups):
        for path in group.paths:
            numbers[version.row_of_path(path)] = number
    return numbers


def group_object(
    group: Group, facts: Mapping[str, Facts], product_of: Callable[[str], str]
) -> dict[str, Any]:
    """Return a group as JSON's types; the best image comes first and has no kind."""

    def image(path: str, pair: Pair | None) -> dict[str, Any]:
        known = facts.get(path)
        return {
            "filename": path,
            "product_id": product_of(path),
            "kind": pair.kind.value if pair else None,
            "score": pair.score if pair else None,
            **(asdict(known) if known else dict.fromkeys(Facts.__annotations__)),
        }

    others = [image(other_of(pair, group.best), pair) for pair in group.others]
    return {"best": group.best, "images": [image(group.best, None), *others]}
