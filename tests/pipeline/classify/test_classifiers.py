"""Zero-shot with the bundled model on the demo's catalogue, and the arithmetic behind it."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.classify.classifiers import Trained, ZeroShot, best, confidences, text_matrix
from pipeline.classify.head import CATEGORY, Head, HeadName
from pipeline.classify.head_store import HeadStore, save_head
from pipeline.classify.labels import load_labels
from pipeline.embed.clip import load_clip
from pipeline.embed.fingerprint import Fingerprint
from pipeline.errors import FingerprintMismatch, HeadBroken
from pipeline.settings import Settings

ROOT = Path(__file__).parents[3]
PRODUCTS = ROOT / "data" / "products"


class Kept(dict[str, np.ndarray]):
    def put(self, vectors: dict[str, np.ndarray]) -> None:
        self.update(vectors)


class Toy:
    """Texts become unit vectors of their own; counts what it is asked."""

    logit_scale = 10.0
    has_words = True

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.unread: dict[str, str] = {}  # text: what is said of it

    def text_warnings(self, texts: Sequence[str]) -> list[str]:
        return [self.unread[text] for text in texts if text in self.unread]

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        rows = np.array([[len(text), 1.0] for text in texts], np.float32).reshape(-1, 2)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_category_and_color_of_the_catalogue_are_right(
    demo_vectors: Mapping[str, np.ndarray],
) -> None:
    settings = Settings(
        _env_file=None, embedding_model=str(ROOT / "models" / "imgrec-mini"), use_bg_removal=False
    )
    zero_shot = ZeroShot(load_clip(settings), load_labels(), Kept(), settings.min_confidence)
    with (PRODUCTS / "products.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    right = {"category": 0, "color": 0}
    for row in rows:
        answer = zero_shot.classify(demo_vectors[row["product_id"]])
        color = next(a for a in answer["attributes"] if a["name"] == "color")
        assert color["source"] == "zero-shot"
        right["category"] += answer["category"]["label"] == row["category"]
        right["color"] += color["label"] == row["color"]
    assert right["category"] >= 0.97 * len(rows)
    assert right["color"] >= 0.92 * len(rows)


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
    shown = best(["blue", "red"], np.array([0.4, 0.6]), threshold).to_json()
    assert (shown["label"], shown["confidence"]) == (label, 0.6)
    assert shown.get("best_guess", "red") == "red"
    assert ("best_guess" in shown) == (label == "unknown")


MINE = Fingerprint(
    "f" * 16, {"model": "toy", "preprocessing": {"rembg_model": None, "size": [224, 224]}}
)
SHOE = np.array([1.0, 0.0], np.float32)


def head(*classes: str, made_by: str = MINE.id) -> Head:
    """Sure of its first class for SHOE."""
    weight = np.zeros((len(classes), 2), np.float32)
    weight[0, 0] = 20.0
    bias = np.zeros(len(classes), np.float32)
    return Head(weight, bias, 2.0, classes, made_by, "a model", 1.0, 9)


class Told(ZeroShot):
    """Zero-shot that is sure of one category."""

    def __init__(self, category: str, sure: bool = True) -> None:
        super().__init__(Toy(), load_labels(), Kept(), 0.0)
        self.told = best([category], np.array([1.0]), 0.0 if sure else 2.0)

    def category(self, vector: np.ndarray):  # type: ignore[no-untyped-def]
        return self.told


def trained(models: Path, zero_shot: ZeroShot, min_confidence: float = 0.4) -> Trained:
    return Trained(zero_shot, HeadStore(models), MINE, min_confidence)


def test_a_head_answers_its_attribute_and_zero_shot_the_others(tmp_path: Path) -> None:
    zero_shot = Told("shoe")
    save_head(tmp_path, HeadName.parse("shoe", "style"), head("brogue", "trainer"), b"")
    save_head(tmp_path, HeadName.parse("shoe", "heel"), head("flat", "high"), b"")
    save_head(tmp_path, HeadName.parse("bag", "color"), head("teal", "rust"), b"")
    before = zero_shot.classify(SHOE)
    answer = trained(tmp_path, zero_shot).classify(SHOE)
    assert answer["category"] == before["category"]  # and has no source
    names = [attribute["name"] for attribute in before["attributes"]]
    assert [attribute["name"] for attribute in answer["attributes"]] == [*names, "heel"]
    found = {attribute["name"]: attribute for attribute in answer["attributes"]}
    for attribute in before["attributes"]:
        if attribute["name"] != "style":
            assert found[attribute["name"]] == attribute
    # softmax of 20 / 2 against 0, in four digits
    sure = {"confidence": round(float(1 / (1 + np.exp(-10))), 4), "source": "trained"}
    assert found["style"] == {"name": "style", "label": "brogue", **sure}
    assert found["heel"] == {"name": "heel", "label": "flat", **sure}


def test_without_any_head_the_answer_is_zero_shot_s(tmp_path: Path) -> None:
    zero_shot = Told("shoe")
    assert trained(tmp_path, zero_shot).classify(SHOE) == zero_shot.classify(SHOE)


def test_a_doubtful_category_asks_no_head_of_it(tmp_path: Path) -> None:
    save_head(tmp_path, HeadName.parse("shoe", "style"), head("brogue", "trainer"), b"")
    answer = trained(tmp_path, Told("shoe", sure=False)).classify(SHOE)
    assert answer["category"]["best_guess"] == "shoe"
    assert {attribute["source"] for attribute in answer["attributes"]} == {"zero-shot"}


def test_the_category_head_decides_which_heads_are_asked(tmp_path: Path) -> None:
    save_head(tmp_path, CATEGORY, head("bag", "shoe"), b"")
    save_head(tmp_path, HeadName.parse("bag", "color"), head("teal", "rust"), b"")
    answer = trained(tmp_path, Told("shoe")).classify(SHOE)
    assert (answer["category"]["label"], answer["category"]["source"]) == ("bag", "trained")
    color = next(a for a in answer["attributes"] if a["name"] == "color")
    assert (color["label"], color["source"]) == ("teal", "trained")


def test_a_category_that_only_the_head_knows_is_asked_about_as_a_product(tmp_path: Path) -> None:
    save_head(tmp_path, CATEGORY, head("kite", "shoe"), b"")
    answer = trained(tmp_path, Told("shoe")).classify(SHOE)
    assert answer["category"]["label"] == "kite"
    assert [a["name"] for a in answer["attributes"]] == list(load_labels().attributes)


def test_a_head_that_doubts_says_unknown_and_its_best_guess(tmp_path: Path) -> None:
    save_head(tmp_path, HeadName.parse("shoe", "style"), head("brogue", "trainer"), b"")
    answer = trained(tmp_path, Told("shoe"), 0.4).classify(np.array([0.0, 1.0], np.float32))
    style = next(a for a in answer["attributes"] if a["name"] == "style")
    assert (style["label"], style["confidence"]) == ("brogue", 0.5)
    answer = trained(tmp_path, Told("shoe"), 0.6).classify(np.array([0.0, 1.0], np.float32))
    style = next(a for a in answer["attributes"] if a["name"] == "style")
    assert (style["label"], style["best_guess"], style["source"]) == (
        "unknown",
        "brogue",
        "trained",
    )


def test_a_head_that_cannot_be_used_is_an_error_and_never_zero_shot_in_silence(
    tmp_path: Path,
) -> None:
    name = HeadName.parse("shoe", "style")
    save_head(tmp_path, name, head("brogue", "trainer", made_by="another"), b"")
    classifier = trained(tmp_path, Told("shoe"))
    with pytest.raises(FingerprintMismatch, match="shoe/style was trained on a model"):
        classifier.classify(SHOE)
    save_head(tmp_path, name, head("brogue", "trainer"), b"")
    assert classifier.classify(SHOE)["category"]["label"] == "shoe"
    (tmp_path / "shoe/style/model.pt").write_bytes(b"")
    with pytest.raises(HeadBroken, match="shoe/style"):
        classifier.classify(SHOE)
