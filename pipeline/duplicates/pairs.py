"""Pairs of images that show the same thing, and groups of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


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

    def object(self) -> dict[str, Any]:
        return {
            "image": self.path,
            "other": self.other,
            "kind": self.kind.value,
            "score": self.score,
        }


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

    @property
    def kinds(self) -> list[Kind]:
        return sorted({pair.kind for pair in self.others}, key=lambda kind: -kind.strength)


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
    of a third image count only if the two are the same themselves.

    Args:
        facts: of the images whose files could be read.
        not_same: pairs of paths that are never in one group.
        look_again: compares an image with the best one of a group that it is linked to by way of
            another; None: only `pairs` count.
    """
    links: dict[str, dict[str, Pair]] = {}
    for pair in pairs:
        links.setdefault(pair.path, {})[pair.other] = pair
        links.setdefault(pair.other, {})[pair.path] = pair
    forbidden: dict[str, set[str]] = {}
    for path, other in not_same:
        forbidden.setdefault(path, set()).add(other)
        forbidden.setdefault(other, set()).add(path)

    members: dict[str, list[Pair]] = {}
    best_of: dict[str, str] = {}
    for path in sorted(links, key=lambda path: (_lowest_first(facts.get(path)), path)):
        joined = None
        candidates = dict.fromkeys(best_of[each] for each in links[path] if each in best_of)
        found = []
        for best in candidates:
            if not forbidden.get(path, set()).isdisjoint(_paths(best, members[best])):
                continue
            pair = links[path].get(best)
            if pair is None and look_again is not None:
                pair = look_again(path, best)
            if pair is not None:
                found.append((pair.rank, best, pair))
        if found:
            _, joined, pair = max(found, key=lambda each: (each[0], each[1]))
            members[joined].append(pair)
            best_of[path] = joined
        else:
            members[path], best_of[path] = [], path
    groups = [Group(best, tuple(others)) for best, others in members.items() if others]
    return sorted(groups, key=lambda group: (-len(group.others), group.best))


def _lowest_first(facts: Facts | None) -> tuple[float, ...]:
    """Sort better images first, and those that could not be read last."""
    return (1.0,) if facts is None else (0.0, *(-float(value) for value in facts.quality))


def _paths(best: str, pairs: list[Pair]) -> set[str]:
    return {best, *(other_of(pair, best) for pair in pairs)}
