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
    texts = clip.embed_texts(["a red shoe", "a photo of a bag", "blue mug"])
    shoe, bag, mug = ([found[row] for row in np.argsort(-(vectors @ text))[:5]] for text in texts)
    assert (shoe[0]["color"], shoe[0]["category"]) == ("red", "shoe")
    assert {each["category"] for each in bag} == {"bag"}
    assert (mug[0]["color"], mug[0]["category"]) == ("blue", "mug")
    assert {each["category"] for each in shoe} == {"shoe"}
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
