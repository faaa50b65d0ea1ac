"""Product recall on known vectors: ranks of products, intervals, and which variant to take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import WrongUse
from pipeline.evaluate.product_recall import (
    NOT_FOUND,
    Photo,
    Ranks,
    Variant,
    advise,
    interval,
    rank_products,
    read_photos,
    require_products,
)

NONE = np.array([], np.int64)


def ranks(values: list[int], products: list[str] | None = None) -> Ranks:
    names = products or [f"p{n}" for n in range(len(values))]
    return Ranks(np.array(values), np.array(names))


def test_a_product_ranks_by_its_best_image_and_counts_once() -> None:
    catalogue = np.array([[1, 0], [0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0, 1]], np.float32)
    products = ["a", "a", "b", "c", "c"]
    queries = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    found = rank_products(queries, ["b", "c", "c"], catalogue, products, [NONE] * 3)
    assert found.ranks.tolist() == [2, 3, 1]


def test_to_find_the_very_file_again_is_no_feat() -> None:
    catalogue = np.array([[1, 0], [0, 1], [0.5, 0.5]], np.float32)
    queries = np.array([[1, 0], [1, 0]], np.float32)
    same = [np.array([0]), np.array([0])]
    found = rank_products(queries, ["a", "c"], catalogue, ["a", "b", "c"], same)
    assert found.ranks.tolist() == [NOT_FOUND, 1]  # the first has no other image to be found by
    assert found.hits(10).tolist() == [0, 1]  # of a catalogue of three, too


def test_a_product_none_of_whose_images_could_be_read_comes_last() -> None:
    catalogue, queries = np.eye(2, dtype=np.float32), np.ones((3, 2), np.float32)
    found = rank_products(queries, ["b", "d", "0"], catalogue, ["a", "c"], [NONE] * 3)
    assert found.ranks.tolist() == [NOT_FOUND] * 3


def test_products_of_equal_score_favor_nobody() -> None:
    catalogue = np.ones((5, 2), np.float32)
    found = rank_products(
        np.ones((1, 2), np.float32), ["c"], catalogue, ["a", "b", "c", "d", "e"], [NONE]
    )
    assert found.ranks.tolist() == [3]


def test_photos_of_one_product_are_resampled_together() -> None:
    """Ten photos each of four products say as much as four, not as forty."""
    scores = np.repeat([1.0, 0.0, 1.0, 0.0], 10)
    low, high = interval(scores, np.repeat(["a", "b", "c", "d"], 10))
    alone_low, alone_high = interval(scores, np.arange(40).astype(str))
    assert high - low > 2 * (alone_high - alone_low)
    assert low <= 0.5 <= high


def test_the_better_variant_is_named_and_whether_the_difference_is_chance() -> None:
    good = Variant("m", True, ranks([1] * 40 + [9] * 10))
    bad = Variant("m", False, ranks([1] * 10 + [9] * 40))
    advice = advise([bad, good])
    assert advice.best is good
    assert advice.is_clear
    assert advice.difference == pytest.approx(0.6)
    sentence = "Take m with background removal on: recall@1 of the next best, m with"
    assert advice.sentence().startswith(sentence)
    one, other = (Variant("m", True, ranks(each)) for each in ([1, 1, 1, 2], [1, 1, 2, 1]))
    near = advise([one, other])
    assert not near.is_clear
    assert "may be chance" in near.sentence()
    twin = Variant("m", False, good.ranks)
    assert advise([good, twin]).best is twin  # it is faster
    assert advise([good]).sentence() == "Only m with background removal on was measured."


def test_a_report_has_recall_and_intervals_by_k() -> None:
    report = Variant("m", True, ranks([1, 4, 8, 20]), skipped=2).report((1, 5, 10))
    assert report["recall"] == {"1": 0.25, "5": 0.5, "10": 0.75}
    assert (report["photos"], report["products"], report["skipped"]) == (4, 4, 2)
    for k, (low, high) in report["intervals"].items():
        assert low <= report["recall"][k] <= high


def test_a_table_is_read_relative_to_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "a b.jpg").touch()
    table = tmp_path / "pairs.csv"
    table.write_bytes("\ufeffproduct_id, photo ,note\nShoe é,a b.jpg,x\n\n,,\n".encode())
    assert read_photos(table) == [Photo(tmp_path / "a b.jpg", "Shoe é", 2)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("image,product_id\na.jpg,1\n", "no column 'photo'"),
        ("photo,product_id\na.jpg,\n", "line 2 needs a photo and a product_id"),
        ("photo,product_id\na.jpg,1\ngone.jpg,2\n", "line 3 names '.*gone.jpg', which is no file"),
        ("photo,product_id\n", "names no photo"),
        ("", "no column 'photo'"),
        (f"photo,product_id\n{'x' * 5000},1\n", "is no file"),
        (f'photo,product_id\n"{"x" * 200_000},1\n', "cannot be read as CSV: field larger"),
    ],
)
def test_a_table_that_cannot_be_used_is_told_with_its_line(
    tmp_path: Path, text: str, sentence: str
) -> None:
    (tmp_path / "a.jpg").touch()
    table = tmp_path / "pairs.csv"
    table.write_text(text)
    with pytest.raises(WrongUse, match=sentence):
        read_photos(table)


def test_a_table_in_utf16_that_is_cut_off_is_one_sentence(tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    table.write_bytes("photo,product_id\na.jpg,1\n".encode("utf-16")[:-1])
    with pytest.raises(WrongUse, match="it is not valid UTF-16"):
        read_photos(table)


def test_a_product_without_an_image_in_the_catalogue_is_named(tmp_path: Path) -> None:
    photos = [Photo(tmp_path / "a.jpg", "shoe/1", 2), Photo(tmp_path / "b.jpg", "gone", 3)]
    require_products(photos[:1], ["shoe/1"], tmp_path)
    with pytest.raises(WrongUse, match=r"line 3: no image of the catalogue .* 'gone'"):
        require_products(photos, ["shoe/1"], tmp_path)
