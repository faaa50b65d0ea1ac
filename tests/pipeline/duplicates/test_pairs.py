"""Groups of images that are the same: around the best one, never along a chain."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pipeline.duplicates.pairs import Facts, Group, Kind, Pair, group_pairs
from pipeline.duplicates.result import Published, SearchResult, rows_by_group
from pipeline.index.versions import Version


def facts(**pixels: int) -> dict[str, Facts]:
    return {name: Facts(width, 10, 1000, 5.0) for name, width in pixels.items()}


def pair(path: str, other: str, kind: Kind = Kind.REENCODED, score: float = 0.99) -> Pair:
    return Pair(path, other, kind, score)


def shown(groups: list[Group]) -> list[list[str]]:
    return [group.paths for group in groups]


def test_the_image_with_the_most_pixels_is_the_best_then_the_sharpest() -> None:
    known = {
        "small": Facts(100, 100, 9, 90.0),
        "blurred": Facts(200, 200, 9, 10.0),
        "sharp": Facts(200, 200, 9, 20.0),
    }
    pairs = [pair("blurred", "small"), pair("sharp", "small"), pair("blurred", "sharp")]
    (group,) = group_pairs(pairs, known)
    assert group.paths == ["sharp", "blurred", "small"]


def test_a_chain_of_pairs_is_not_one_group() -> None:
    """a is like b, b like c, ... but a is not like c: one giant group would hold everything."""
    names = [f"{number:03d}" for number in range(100)]
    pairs = [pair(one, other, Kind.SIMILAR) for one, other in pairwise(names)]
    groups = group_pairs(pairs, {})
    assert groups
    linked = {each.key for each in pairs}
    for group in groups:
        assert len(group.paths) <= 3
        for each in group.others:
            assert each.key in linked
            assert group.best in each.key
    assert len([path for group in groups for path in group.paths]) == len(set(names))


def test_images_that_a_third_one_links_are_compared_themselves() -> None:
    asked = []

    def look_again(path: str, best: str) -> Pair:
        asked.append((path, best))
        return pair(path, best)

    pairs, known = [pair("a", "b"), pair("b", "c")], facts(a=30, b=20, c=10)
    assert shown(group_pairs(pairs, known)) == [["a", "b"]]
    assert shown(group_pairs(pairs, known, look_again=look_again)) == [["a", "b", "c"]]
    assert asked == [("c", "a")]
    assert shown(group_pairs(pairs, known, look_again=lambda path, best: None)) == [["a", "b"]]


def test_an_image_joins_the_group_that_it_is_most_clearly_the_same_as() -> None:
    pairs = [pair("c", "a", Kind.SIMILAR, 0.999), pair("c", "b", Kind.CROPPED, 0.9)]
    assert shown(group_pairs(pairs, facts(a=30, b=20, c=10))) == [["b", "c"]]


def test_an_image_that_is_merely_similar_takes_no_copy_from_its_original() -> None:
    """The similar one is the best of the three, and the copy is like its original alone."""
    pairs = [pair("a", "b", Kind.SIMILAR), pair("b", "copy")]
    (group,) = group_pairs(pairs, facts(a=30, b=20, copy=10))
    assert group.paths == ["b", "copy", "a"]
    assert [each.kind for each in group.others] == [Kind.REENCODED, Kind.SIMILAR]


def test_images_that_are_not_the_same_are_never_in_one_group() -> None:
    names = ["a", "b", "c"]
    pairs = [pair("a", "b"), pair("a", "c"), pair("b", "c")]
    known = facts(a=30, b=20, c=10)
    assert shown(group_pairs(pairs, known)) == [names]
    assert shown(group_pairs(pairs, known, [("a", "c")])) == [["a", "b"]]
    # Not within one group by way of its best image, either.
    assert shown(group_pairs(pairs, known, [("b", "c")])) == [["a", "b"]]
    assert shown(group_pairs(pairs, known, [("a", "b"), ("a", "c")])) == [["b", "c"]]
    assert group_pairs(pairs, known, [("a", "b"), ("a", "c"), ("b", "c")]) == []


def test_a_result_survives_the_database() -> None:
    result = SearchResult([pair("a", "b", Kind.MIRRORED, 0.9876)], facts(a=3, b=4))
    assert SearchResult.from_json(result.to_json()) == result


@pytest.mark.parametrize("count", [2, 50])
def test_copies_of_one_image_are_one_group(count: int) -> None:
    names = [f"{number:03d}" for number in range(count)]
    pairs = [pair(names[0], name, Kind.IDENTICAL, 1.0) for name in names[1:]]
    (group,) = group_pairs(pairs, {})
    assert sorted(group.paths) == names


def version(identity: str, **sizes: int) -> Version:
    paths = sorted(sizes)
    files = np.array([[sizes[path], 1] for path in paths])
    name, _, job_id = identity.partition("/")
    made = Version(Path(name), {"job_id": job_id, "images": len(paths)}, 0)
    vars(made).update(paths=paths, files=files)
    return made


def test_photos_of_one_product_that_are_similar_are_no_duplicates() -> None:
    pairs = [pair("a", "b", Kind.SIMILAR), pair("c", "d", Kind.SIMILAR), pair("e", "f")]
    published = Published("v0001/job", None, SearchResult(pairs, facts(a=2, c=2, e=2)))
    own = version("v0001/job", **dict.fromkeys("abcdef", 1000))
    product = {"a": "lamp", "b": "lamp", "e": "mug", "f": "mug"}
    groups = published.groups(own, lambda path: product.get(path, path))
    assert shown(groups) == [["c", "d"], ["e", "f"]]
    assert rows_by_group(groups, own).tolist() == [-1, -1, 0, 0, 1, 1]


def test_of_a_later_version_only_unchanged_images_count() -> None:
    published = Published(
        "v0001/job", None, SearchResult([pair("a", "b"), pair("c", "d")], facts(a=3, b=2, c=3, d=2))
    )
    later = version("v0002/job", a=1000, b=1000, c=1000, d=999, new=5)
    assert shown(published.groups(later, str)) == [["a", "b"]]
    assert shown(published.groups(version("v0003/job", a=1000), str)) == []
