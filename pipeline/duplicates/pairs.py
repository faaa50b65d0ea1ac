"""Pairs of images that show the same thing, and groups of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """How two images are the same."""

    IDENTICAL = "identical"  # the same bytes
    REENCODED = "re-encoded"  # or resized
    MIRRORED = "mirrored"
    CROPPED = "cropped"  # one is a part of the other
    SIMILAR = "similar"  # by their vectors alone: perhaps the same product photographed twice

    @property
    def strength(self) -> int:
        return -list(Kind).index(self)


@dataclass(frozen=True)
class Pair:
    """Two images, by their paths, and the cosine of their vectors."""

    path: str
    other: str
    kind: Kind
    score: float

    @property
    def key(self) -> tuple[str, str]:
        return pair_key(self.path, self.other)

    @property
    def rank(self) -> tuple[int, float]:
        return self.kind.strength, self.score


@dataclass(frozen=True)
class Facts:
    """What decides which image of a group is kept."""

    width: int
    height: int
    bytes: int
    sharpness: float

    @property
    def quality(self) -> tuple[int, float, int]:
        return self.width * self.height, self.sharpness, self.bytes


@dataclass(frozen=True)
class Group:
    """Images that show the same thing; `best` is the one to keep.

    Each of the others is paired with the best one directly: a group is no chain.
    """

    best: str
    others: tuple[Pair, ...]

    @property
    def paths(self) -> list[str]:
        return [self.best, *(other_of(pair, self.best) for pair in self.others)]


def pair_key(path: str, other: str) -> tuple[str, str]:
    """Return two paths in one order, whichever is named first."""
    return (path, other) if path < other else (other, path)


def other_of(pair: Pair, path: str) -> str:
    return pair.other if pair.path == path else pair.path


def group_pairs(
    pairs: Iterable[Pair],
    facts: Mapping[str, Facts],
    not_same: Iterable[tuple[str, str]] = (),
    look_again: Callable[[str, str], Pair | None] | None = None,
) -> list[Group]:
    """Group images around the best one of each group; the largest groups first.

    Images are taken from the best one down. Each joins the best image that it is most clearly the
    same as, or begins a group. So no image is in a group for a chain of others' sake: links by way
    of a third image count only if the two are the same themselves. Images that are merely similar
    join last, and only where they are in no group yet: they take none apart.

    Args:
        facts: of the images whose files could be read.
        not_same: pairs of paths that are never in one group.
        look_again: compares an image with the best one of a group that it is linked to by way of
            another; None: only `pairs` count.
    """
    grouping = _Grouping(not_same)
    for pair in pairs:
        grouping.add(pair)
    ordered = sorted(grouping.links, key=lambda path: (_lowest_first(facts.get(path)), path))
    for path in ordered:
        grouping.place(path, look_again)
    visited = set[str]()
    for path in ordered:
        if grouping.is_alone(path):
            grouping.place_similar(path, visited)
            visited.add(path)
    groups = [Group(best, tuple(others)) for best, others in grouping.members.items() if others]
    return sorted(groups, key=lambda group: (-len(group.others), group.best))


class _Grouping:
    """Groups that are being made; `members` has the pairs of each best image with its others."""

    def __init__(self, not_same: Iterable[tuple[str, str]]) -> None:
        self.links: dict[str, dict[str, Pair]] = {}
        self.members: dict[str, list[Pair]] = {}
        self._best_of: dict[str, str] = {}
        self._not_same: dict[str, set[str]] = {}
        for path, other in not_same:
            self._not_same.setdefault(path, set()).add(other)
            self._not_same.setdefault(other, set()).add(path)

    def add(self, pair: Pair) -> None:
        self.links.setdefault(pair.path, {})[pair.other] = pair
        self.links.setdefault(pair.other, {})[pair.path] = pair

    def is_alone(self, path: str) -> bool:
        return self._best_of[path] == path and not self.members[path]

    def place(self, path: str, look_again: Callable[[str, str], Pair | None] | None) -> None:
        """Let an image join a group, or begin one."""
        found = []
        for best in dict.fromkeys(
            self._best_of[other]
            for other, pair in self.links[path].items()
            if other in self._best_of and pair.kind != Kind.SIMILAR
        ):
            pair = self.links[path].get(best)
            if (pair is None or pair.kind == Kind.SIMILAR) and look_again is not None:
                pair = look_again(path, best)
            if pair is not None and pair.kind != Kind.SIMILAR:
                found.append((best, pair))
        self.members[path], self._best_of[path] = [], path
        self._join(path, found)

    def place_similar(self, path: str, visited: set[str]) -> None:
        """Let an image that is in no group join one, or one that was visited before."""
        self._join(
            path,
            [
                (best, pair)
                for best, pair in self.links[path].items()
                if pair.kind == Kind.SIMILAR
                and self._best_of[best] == best
                and (self.members[best] or best in visited)
            ],
        )

    def _join(self, path: str, found: list[tuple[str, Pair]]) -> None:
        allowed = [
            (pair.rank, best, pair)
            for best, pair in found
            if self._not_same.get(path, set()).isdisjoint(_paths(best, self.members[best]))
        ]
        if allowed:
            _, best, pair = max(allowed, key=lambda each: each[:2])
            self.members[best].append(pair)
            self._best_of[path] = best
            del self.members[path]


def _lowest_first(facts: Facts | None) -> tuple[float, ...]:
    """Sort better images first, and those that could not be read last."""
    return (1.0,) if facts is None else (0.0, *(-float(value) for value in facts.quality))


def _paths(best: str, pairs: list[Pair]) -> set[str]:
    return {best, *(other_of(pair, best) for pair in pairs)}
