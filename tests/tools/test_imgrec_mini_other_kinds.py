"""How the model is measured on kinds that training has not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.imgrec_mini.other_kinds import SIDE, found, ranks, read_cutouts, scene


def cut_out(color: tuple[int, int, int], side: int = 100) -> Image.Image:
    image = Image.new("RGBA", (side + 40, side + 40), (0, 0, 0, 0))
    image.paste((*color, 255), (20, 20, 20 + side, 20 + side))
    return image


def test_cutouts_are_cropped_and_drawings_mirrored_and_tiny_ones_left_out(tmp_path: Path) -> None:
    for name, side in (("a/apple", 100), ("a/cartoon/pear", 100), ("fig_mirror", 100), ("dot", 20)):
        file = tmp_path / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        cut_out((200, 0, 0), side).save(file)
    (apple,) = read_cutouts(tmp_path)
    assert apple.size == (100, 100)


def test_a_scene_shows_the_product_and_follows_from_its_seed() -> None:
    cutouts = [cut_out((250, 0, 250)), cut_out((0, 60, 0))]
    photos = [Image.new("RGB", (300, 300), (90, 90, 90))]
    pictures = [scene(cutouts, 0, photos, np.random.default_rng(5)) for _ in range(2)]
    assert pictures[0].size == (SIDE, SIDE)
    assert pictures[0].tobytes() == pictures[1].tobytes()
    red, green, _ = np.asarray(pictures[0])[SIDE // 2, SIDE // 2].tolist()
    assert red > 2 * green, "the product is in the middle, above its neighbours"


def test_recall_counts_products_that_are_nearer_than_the_right_one() -> None:
    catalogue = np.eye(6, dtype=np.float32)
    first_round = np.eye(6, dtype=np.float32)
    second_round = np.roll(catalogue, 1, axis=0)  # each query lies at another product
    places = ranks(np.concatenate([first_round, second_round]), catalogue)
    assert places.tolist() == [0] * 6 + [1] * 6
    report = found(places, 6)
    assert report["recall@1"] == [0.5, 0.5, 0.5]
    assert report["recall@5"] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("place", [0, 5])
def test_the_interval_widens_with_products_that_differ(place: int) -> None:
    places = np.array([0, 0, 5, place])
    share, low, high = found(places, 4)["recall@1"]
    assert low <= share <= high
    assert low < high
