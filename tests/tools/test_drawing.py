from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.drawing import (
    CATEGORIES,
    COLORS,
    PATTERNS,
    STYLES,
    Product,
    caption,
    captions,
    draw,
    price,
    sample_product,
    title,
    write_catalogue,
    write_training,
)
from tools.drawing.palette import NAMED
from tools.drawing.picture import figure_of
from tools.drawing.product import styles_of
from tools.drawing.scene import compose


def test_equal_products_give_equal_pictures_and_another_seed_another_one() -> None:
    product = Product("shoe", "red", "striped", "sporty", 7)
    again = Product("shoe", "red", "striped", "sporty", 7)
    other = Product("shoe", "red", "striped", "sporty", 8)
    assert draw(product, 96).tobytes() == draw(again, 96).tobytes()
    assert draw(product, 96).tobytes() != draw(other, 96).tobytes()


def test_a_picture_is_rgb_and_as_large_as_asked() -> None:
    picture = draw(Product("mug", "blue", "plain", "casual", 0), 97)
    assert (picture.mode, picture.size) == ("RGB", (97, 97))


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_median_colour_of_every_product_is_nearest_to_its_name(category: str) -> None:
    wrong = []
    for n, color in enumerate(COLORS):
        styles = styles_of(category)
        product = Product(category, color, "plain", styles[n % len(styles)], n)
        pixels = _main_pixels(product)
        nearest = _nearest(np.median(pixels, axis=0))
        if nearest != color:
            wrong.append((product, nearest))
    assert wrong == []


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_leaves_the_named_colour_in_the_majority(pattern: str) -> None:
    wrong = []
    for n, color in enumerate(COLORS):
        product = Product("dress", color, pattern, STYLES[n % len(STYLES)], n)
        pixels = _main_pixels(product)
        votes = Counter(_nearest(pixel) for pixel in pixels[::5])
        if votes.most_common(1)[0][0] != color:
            wrong.append((product, votes))
    assert wrong == []


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_product_fills_the_frame_and_is_never_cut_off(category: str) -> None:
    for seed in range(4):
        styles = styles_of(category)
        product = Product(category, "red", "plain", styles[seed % len(styles)], seed)
        figure = figure_of(product, 64)
        rows, columns = np.nonzero(figure.alpha > 0.5)
        extent = max(np.ptp(rows), np.ptp(columns)) / 64
        assert 0.6 < extent < 0.9
        border = np.concatenate([figure.alpha[[0, -1]].ravel(), figure.alpha[:, [0, -1]].ravel()])
        assert border.max() == 0
        # The coloured part is what one sees first; of glasses it is only the frame.
        least = 0.2 if category in ("sunglasses", "watch", "lamp", "chair") else 0.45
        assert figure.main.sum() > least * figure.alpha.sum()


def test_a_product_differs_from_its_background() -> None:
    for n, color in enumerate(COLORS):
        product = Product(CATEGORIES[n % len(CATEGORIES)], color, "plain", "casual", n)
        figure = figure_of(product, 64)
        picture = np.asarray(compose(product, figure, 64), float)
        behind = np.median(picture[figure.alpha == 0], axis=0)
        main = np.median(picture[figure.main > 0.9], axis=0)
        assert np.linalg.norm(behind - main) > 40, product


def test_every_caption_names_category_and_colour() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        product = sample_product(rng)
        texts = captions(product)
        assert len(texts) == len(set(texts)) >= 8
        assert all(product.category in text and product.color in text for text in texts)
        assert caption(product, rng) in texts


def test_captions_are_english() -> None:
    assert "a photo of a red striped sporty shoe" in captions(
        Product("shoe", "red", "striped", "sporty", 0)
    )
    assert "an orange mug" in captions(Product("mug", "orange", "plain", "casual", 0))
    assert "a pair of blue trousers" in captions(Product("trousers", "blue", "plain", "casual", 0))


def test_sampled_products_are_of_known_kinds() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        product = sample_product(rng)
        assert product.category in CATEGORIES
        assert product.color in COLORS
        assert product.pattern in PATTERNS
        assert product.style in styles_of(product.category)
        assert price(product) > 5
        assert product.category in title(product).lower()


def test_a_catalogue_is_balanced_small_and_told_by_its_csv(tmp_path: Path) -> None:
    products = write_catalogue(tmp_path, count=36, seed=3, size=96)
    for attribute in ("category", "color"):
        numbers = Counter(getattr(product, attribute) for product in products)
        assert max(numbers.values()) - min(numbers.values()) <= 1
    with (tmp_path / "products.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["product_id", "title", "category", "color", "style", "price"]
    files = sorted(tmp_path.rglob("*.jpg"))
    told = {row["product_id"] for row in rows}
    assert told == {file.relative_to(tmp_path).with_suffix("").as_posix() for file in files}
    assert all(row["product_id"].startswith(f"{row['category']}/{row['color']}-") for row in rows)
    assert len({file.read_bytes() for file in files}) == 36


def test_two_hundred_pictures_stay_below_six_megabytes(tmp_path: Path) -> None:
    write_catalogue(tmp_path, count=9)
    total = sum(file.stat().st_size for file in tmp_path.rglob("*.jpg"))
    assert total / 9 * 200 < 6e6


def test_training_folders_hold_so_many_pictures_of_each_class(tmp_path: Path) -> None:
    written = write_training(tmp_path, per_class=2, categories=("mug",), size=48)
    assert written == 2 * (len(COLORS) + len(PATTERNS) + len(styles_of("mug")))
    assert sorted(file.name for file in (tmp_path / "mug/pattern/dotted").iterdir()) == [
        "01.jpg",
        "02.jpg",
    ]
    with Image.open(tmp_path / "mug/color/red/01.jpg") as picture:
        assert picture.size == (48, 48)


def _main_pixels(product: Product) -> np.ndarray:
    """Return what the picture shows where the product has its main colour."""
    figure = figure_of(product, 80)
    return np.asarray(compose(product, figure, 80), float)[figure.main > 0.9]


def _nearest(rgb: np.ndarray) -> str:
    return min(COLORS, key=lambda name: float(np.linalg.norm(np.subtract(rgb, NAMED[name]))))
