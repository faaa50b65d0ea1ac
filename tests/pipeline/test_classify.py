"""Zero-shot with the bundled model on the demo's catalogue, and the arithmetic behind it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.classify import ZeroShot, best, confidences, text_matrix
from pipeline.clip import load_clip
from pipeline.images import Limits, decode
from pipeline.labels import load_labels
from pipeline.preprocess import Preprocessing, prepare
from pipeline.settings import Settings

ROOT = Path(__file__).parents[2]
PRODUCTS = ROOT / "data" / "products"
EVERY = 4


class Kept(dict[str, np.ndarray]):
    def put(self, vectors: dict[str, np.ndarray]) -> None:
        self.update(vectors)


class Toy:
    """Texts become unit vectors of their own; counts what it is asked."""

    logit_scale = 10.0

    def __init__(self) -> None:
        self.asked: list[str] = []

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        rows = np.array([[len(text), 1.0] for text in texts], np.float32).reshape(-1, 2)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_category_and_color_of_the_catalogue_are_right() -> None:
    settings = Settings(
        _env_file=None, embedding_model=str(ROOT / "models" / "imgrec-mini"), use_bg_removal=False
    )
    clip, spec = load_clip(settings), Preprocessing.from_settings(settings)
    limits = Limits(settings.max_image_pixels, settings.max_image_bytes)
    zero_shot = ZeroShot(clip, load_labels(), Kept(), settings.min_confidence)
    with (PRODUCTS / "products.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[::EVERY]
    right = {"category": 0, "color": 0}
    for row in rows:
        data = (PRODUCTS / f"{row['product_id']}.jpg").read_bytes()
        image = prepare(decode(data, limits, spec.bg_color), spec, None).image
        answer = zero_shot.classify(clip.embed_images([image])[0])
        color = next(a for a in answer["attributes"] if a["name"] == "color")
        assert color["source"] == "zero-shot"
        right["category"] += answer["category"]["label"] == row["category"]
        right["color"] += color["label"] == row["color"]
    assert right["category"] >= 0.97 * len(rows)
    assert right["color"] >= 0.9 * len(rows)


def test_a_label_s_row_is_the_unit_mean_of_its_prompts() -> None:
    toy = Toy()
    matrix = text_matrix({"a": ("x", "xxx"), "b": ("xx",)}, toy, Kept())
    mean = Toy().embed_texts(["x", "xxx"]).mean(axis=0)
    np.testing.assert_allclose(matrix[0], mean / np.linalg.norm(mean), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1, rtol=1e-6)


def test_texts_that_are_kept_are_not_embedded_again_and_changed_ones_are() -> None:
    toy, kept = Toy(), Kept()
    first = text_matrix({"a": ("x",), "b": ("xx",)}, toy, kept)
    toy.asked.clear()
    np.testing.assert_array_equal(text_matrix({"a": ("x",), "b": ("xx",)}, toy, kept), first)
    assert toy.asked == []
    text_matrix({"a": ("x",), "b": ("xxxx",)}, toy, kept)
    assert toy.asked == ["xxxx"]


def test_one_process_asks_for_each_text_once() -> None:
    toy = Toy()
    zero_shot = ZeroShot(toy, load_labels(), Kept(), 0.0)
    vector = np.array([1.0, 0.0], np.float32)
    answer = zero_shot.classify(vector)
    count = len(toy.asked)
    assert zero_shot.classify(vector) == answer
    assert len(toy.asked) == count > 0


def test_confidences_are_the_softmax_at_the_model_s_own_temperature() -> None:
    vector, matrix = np.array([1.0, 0.0], np.float32), np.eye(2, dtype=np.float32)
    np.testing.assert_allclose(confidences(vector, matrix, np.log(3.0)), [0.75, 0.25])
    assert confidences(vector, matrix, 1e6).tolist() == [1.0, 0.0]  # no overflow


@pytest.mark.parametrize(("threshold", "label"), [(0.6, "red"), (0.61, "unknown")])
def test_below_the_threshold_the_label_is_unknown_and_the_guess_stands_beside(
    threshold: float, label: str
) -> None:
    shown = best(["blue", "red"], np.array([0.4, 0.6]), threshold).shown()
    assert (shown["label"], shown["confidence"]) == (label, 0.6)
    assert shown.get("best_guess", "red") == "red"
    assert ("best_guess" in shown) == (label == "unknown")
