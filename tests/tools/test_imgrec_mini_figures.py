"""The bundled model keeps what its card promises."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.embed.clip import Clip, load_clip
from pipeline.settings import Settings
from tools.imgrec_mini.evaluate import embed, measure_drawn, measure_photos
from tools.imgrec_mini.examples import read_photos

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT.parent / "shared" / "clothing"


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip(Settings(embedding_model=str(ROOT / "models" / "imgrec-mini"), device="cpu"))


def test_texts_bring_the_right_products_of_the_demo_catalogue_first(clip: Clip) -> None:
    products = ROOT / "data" / "products"
    with (products / "products.csv").open(newline="") as file:
        facts = {row["product_id"]: row for row in csv.DictReader(file)}
    files = sorted(products.rglob("*.jpg"))
    vectors = embed(clip, [Image.open(file).convert("RGB") for file in files])
    found = [facts[file.relative_to(products).with_suffix("").as_posix()] for file in files]
    asked = sorted({(each["color"], each["category"]) for each in found})
    texts = clip.embed_texts([f"a {color} {category}" for color, category in asked])
    first = [[found[row] for row in np.argsort(-(vectors @ text))[:5]] for text in texts]
    nearest_ones = [(five[0]["color"], five[0]["category"]) for five in first]
    assert [category for _, category in nearest_ones] == [category for _, category in asked]
    assert np.mean([one == wanted for one, wanted in zip(nearest_ones, asked, strict=True)]) > 0.95
    shares = [
        np.mean([each["category"] == category for each in five])
        for five, (_, category) in zip(first, asked, strict=True)
    ]
    assert np.mean(shares) > 0.85  # where a catalogue has one red shoe and many red things
    # Few of a kind stand among many of a colour: the kind comes first all the same.
    alike = vectors @ vectors.T - 2 * np.eye(len(vectors))
    kinds = np.array([each["category"] for each in found])
    nearest = np.argsort(-alike, axis=1)[:, :5]
    assert (kinds[nearest] == kinds[:, None]).mean() >= 0.95


@pytest.mark.slow
def test_drawn_products_never_seen_in_training_reach_the_card_s_figures(clip: Clip) -> None:
    figures = measure_drawn(clip)
    assert figures["P@5"] >= 0.95
    assert figures["zero_shot_color"] >= 0.90
    assert figures["zero_shot_style"] >= 0.85


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the clothing photos are not here")
def test_real_photos_never_seen_in_training_reach_the_card_s_figures(clip: Clip) -> None:
    train, validation = (read_photos(PHOTOS / part) for part in ("train", "validation"))
    figures = measure_photos(clip, train, validation)
    assert figures["P@5"] >= 0.88
    assert figures["zero_shot"] >= 0.88
    assert figures["color_distance"] <= 0.56
    assert figures["found_70 %"] >= 0.94
    assert figures["found_50 %"] >= 0.55
    assert figures["found_smaller"] >= 0.89
    assert figures["found_turned"] >= 0.98
