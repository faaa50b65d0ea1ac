"""Training: what is learnt, what is judged, and what is refused."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.classify.head import CATEGORY, HeadName
from pipeline.embed.clip import load_clip
from pipeline.embed.embed_images import build_embedder
from pipeline.embed.fingerprint import Fingerprint, find_fingerprint
from pipeline.errors import WrongUse
from pipeline.evaluate.calibration import fit_temperature, log_loss
from pipeline.settings import Settings
from pipeline.train import train_head
from pipeline.train.train_head import (
    RATES,
    Recipe,
    choose,
    clearly_better,
    fit_head,
    out_of_fold,
    split,
    train,
)
from pipeline.train.training_set import TrainingSet, embed_training, list_training
from tools.drawing import Product, draw

ROOT = Path(__file__).parents[3]
PREPROCESSING = {"rembg_model": None, "size": [224, 224]}
MADE_BY = Fingerprint("f" * 16, {"model": "a model", "preprocessing": PREPROCESSING})
CLASSES = {
    "color": ("red", "green", "blue"),
    "style": ("casual", "sporty", "elegant", "vintage"),
}
PICTURES = 8  # of a class


class Kept(dict[str, np.ndarray]):
    def put(self, vectors: dict[str, np.ndarray]) -> None:
        self.update(vectors)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """training/shoe/<attribute>/<class>/N.jpg"""
    root = tmp_path_factory.mktemp("training")
    for attribute, classes in CLASSES.items():
        for label in classes:
            folder = root / "shoe" / attribute / label
            folder.mkdir(parents=True)
            for n in range(PICTURES):
                look = {"color": ("red", "blue", "black", "white")[n % 4], "style": "casual"}
                look[attribute] = label
                seed = 7_000 + 100 * classes.index(label) + n
                product = Product("shoe", look["color"], "plain", look["style"], seed)
                draw(product, 160).save(folder / f"{n}.jpg")
    return root


@pytest.fixture(scope="module")
def examples(drawn: Path) -> dict[str, TrainingSet]:
    """The drawn pictures as the bundled model sees them."""
    model = str(ROOT / "models" / "imgrec-mini")
    settings = Settings(_env_file=None, embedding_model=model, use_bg_removal=False)
    embedder = build_embedder(settings, load_clip(settings))
    assert find_fingerprint(settings) is not None
    return {
        attribute: embed_training(
            list_training(drawn, HeadName("shoe", attribute)), embedder, Kept(), lambda done: None
        )
        for attribute in CLASSES
    }


def blobs(counts: tuple[int, ...], spread: float, seed: int = 0) -> TrainingSet:
    """Unit vectors around one centre a class."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(len(counts), 16))
    truth = np.repeat(np.arange(len(counts)), counts)
    rows = centres[truth] + rng.normal(0, spread, (len(truth), 16))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    classes = tuple(f"class {n}" for n in range(len(counts)))
    return TrainingSet(classes, truth, rows.astype(np.float32), [], 0)


def test_colors_are_learnt_from_a_few_pictures(examples: dict[str, TrainingSet]) -> None:
    for auto in (False, True):
        training = train(examples["color"], Recipe(auto=auto), MADE_BY)
        assert training.head.accuracy == 1.0
        assert (training.trained, training.held_out) == (18, 6)
        assert training.head.fingerprint == MADE_BY.id


def test_auto_beats_the_defaults_where_they_under_train(examples: dict[str, TrainingSet]) -> None:
    """Styles lie closer together than colours; several splits, or eight pictures would decide."""

    def accuracy(auto: bool) -> float:
        recipes = [Recipe(auto=auto, seed=seed) for seed in range(4)]
        return float(np.mean([train(examples["style"], r, MADE_BY).head.accuracy for r in recipes]))

    assert accuracy(auto=True) >= accuracy(auto=False) + 0.05


def test_calibration_makes_the_defaults_sure_of_what_they_know(
    examples: dict[str, TrainingSet],
) -> None:
    training = train(examples["color"], Recipe(), MADE_BY)
    assert training.ece < training.ece_before - 0.3
    vector = examples["color"].vectors[0]
    assert training.head.confidences(vector).max() > 0.6
    assert replace(training.head, temperature=1.0).confidences(vector).max() < 0.4


def test_the_temperature_lowers_the_loss_of_pictures_that_the_heads_did_not_see() -> None:
    data = blobs((30, 30, 30), 2.0)
    for auto in (False, True):
        recipe = Recipe(auto=auto, learning_rate=0.03 if auto else 1e-4, epochs=100)
        logits, rows = out_of_fold(data.vectors, data.truth, 3, recipe, np.random.default_rng(0))
        assert rows.tolist() == list(range(90))
        temperature = fit_temperature(logits, data.truth)
        loss = log_loss(logits, data.truth, temperature)
        assert loss < log_loss(logits, data.truth) - 0.01


def test_logits_out_of_fold_come_from_a_head_that_never_saw_the_picture() -> None:
    """One picture with a lying label: the head that saw it would repeat the lie."""
    data = blobs((20, 20), 0.1)
    truth = data.truth.copy()
    truth[0] = 1
    recipe = Recipe(auto=True, learning_rate=0.03, epochs=300)
    seen = fit_head(data.vectors, truth, 2, recipe).logits(data.vectors)
    unseen, _ = out_of_fold(data.vectors, truth, 2, recipe, np.random.default_rng(0))
    assert seen[0].argmax() == 1
    assert unseen[0].argmax() == 0


def test_standardisation_is_folded_into_the_weights() -> None:
    data = blobs((10, 10), 0.3)
    recipe = Recipe(auto=True, learning_rate=0.01, epochs=5, batch_size=20, seed=3)
    fit = fit_head(data.vectors, data.truth, 2, recipe)
    mean, scale = data.vectors.mean(axis=0), data.vectors.std(axis=0)
    scale = np.maximum(scale, 0.1 * scale.mean())
    plain = fit_head((data.vectors - mean) / scale, data.truth, 2, replace(recipe, auto=False))
    np.testing.assert_allclose(
        fit.logits(data.vectors), plain.logits((data.vectors - mean) / scale), atol=1e-3
    )


def test_a_rare_class_counts_as_much_as_a_common_one_under_auto() -> None:
    data = blobs((200, 6), 1.5)
    test = blobs((200, 200), 1.5, seed=1)
    recalls = []
    for auto in (False, True):
        recipe = Recipe(auto=auto, learning_rate=0.003, epochs=20)
        fit = fit_head(data.vectors, data.truth, 2, recipe)
        recalls.append((fit.logits(test.vectors).argmax(axis=1)[200:] == 1).mean())
    assert recalls[1] > recalls[0] + 0.1


def test_a_feature_that_never_varies_breaks_nothing() -> None:
    data = blobs((6, 6), 0.2)
    vectors = np.concatenate([data.vectors, np.full((12, 1), 0.1, np.float32)], axis=1)
    fit = fit_head(vectors, data.truth, 2, Recipe(auto=True, learning_rate=0.01, epochs=50))
    assert np.isfinite(fit.weight).all()
    assert (fit.logits(vectors).argmax(axis=1) == data.truth).all()


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.99])
def test_each_class_has_pictures_on_both_sides_of_the_split(share: float) -> None:
    truth = np.repeat([0, 1, 2], [2, 3, 40])
    trained, held = split(truth, share, np.random.default_rng(0))
    assert sorted([*trained, *held]) == list(range(45))
    for label in range(3):
        assert (truth[trained] == label).any()
        assert (truth[held] == label).any()
    common = (truth[held] == 2).sum()
    assert common == min(max(1, round(share * 40)), 39)


def test_what_is_held_out_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other pictures in the hold-out: another accuracy, and the same head to the last bit."""
    monkeypatch.setattr(train_head, "MAX_EPOCHS", 40)
    data = blobs((20, 20, 20), 0.5)
    recipe = Recipe(auto=True)
    _, held = split(data.truth, recipe.held_out, np.random.default_rng(recipe.seed))
    vectors = data.vectors.copy()
    vectors[held] = -vectors[held]
    first, second = (
        train(each, recipe, MADE_BY) for each in (data, replace(data, vectors=vectors))
    )
    np.testing.assert_array_equal(first.head.weight, second.head.weight)
    np.testing.assert_array_equal(first.head.bias, second.head.bias)
    assert first.head.temperature == second.head.temperature
    assert first.recipe == second.recipe
    assert first.head.accuracy > second.head.accuracy + 0.3


def test_the_same_seed_is_the_same_head_and_another_is_another_split() -> None:
    data = blobs((12, 12), 0.5)
    first, again = (train(data, Recipe(seed=5), MADE_BY) for _ in range(2))
    np.testing.assert_array_equal(first.head.weight, again.head.weight)
    other = train(data, Recipe(seed=6), MADE_BY)
    assert not np.array_equal(first.head.weight, other.head.weight)


def test_auto_stops_early_and_takes_a_rate_that_it_has_tried() -> None:
    data = blobs((40, 40), 3.0)  # hopeless: more epochs only learn by heart
    recipe = choose(data.vectors, data.truth, 2, Recipe(auto=True), np.random.default_rng(0))
    assert recipe.learning_rate in RATES
    assert recipe.epochs < 100
    easy = blobs((40, 40), 0.1)
    tried = choose(easy.vectors, easy.truth, 2, Recipe(auto=True), np.random.default_rng(0))
    fit = fit_head(easy.vectors, easy.truth, 2, tried)
    assert fit.losses[-1] < 0.05


def test_two_pictures_a_class_are_the_least_that_can_be_trained_and_judged() -> None:
    data = blobs((2, 2, 2), 0.05)
    training = train(data, Recipe(), MADE_BY)
    assert (training.trained, training.held_out) == (3, 3)
    assert not training.temperature_fitted
    assert training.head.temperature == 1.0
    with pytest.raises(WrongUse, match="--auto needs a class with at least three images"):
        train(data, Recipe(auto=True), MADE_BY)
    training = train(blobs((2, 5), 0.05), Recipe(auto=True), MADE_BY)
    assert training.temperature_fitted


def test_the_report_s_figures_agree_with_each_other(examples: dict[str, TrainingSet]) -> None:
    training = train(examples["style"], Recipe(), MADE_BY)
    report = training.report()
    counts = np.array(report["confusion"]["counts"])
    assert counts.sum() == report["held_out"] == report["images"] - report["train"]
    assert report["accuracy"] == pytest.approx(counts.trace() / counts.sum(), abs=1e-4)
    for at, name in enumerate(report["classes"]):
        own = report["per_class"][name]
        assert own["images"] == counts[at].sum() > 0
        assert own["recall"] == pytest.approx(counts[at, at] / counts[at].sum(), abs=1e-4)


def test_the_loss_curve_is_a_picture_of_every_epoch() -> None:
    training = train(blobs((8, 8), 0.3), Recipe(epochs=7), MADE_BY)
    assert [len(curve) for curve in training.curves.values()] == [7, 7]
    with Image.open(io.BytesIO(training.loss_curve())) as image:
        assert image.format == "PNG"
    assert training.curves["training"][-1] < training.curves["training"][0]


def test_one_picture_more_is_not_clearly_better() -> None:
    assert not clearly_better(0.9, 0.8, 10)
    assert clearly_better(1.0, 0.8, 10)
    assert not clearly_better(0.905, 0.9, 10_000)
    assert clearly_better(0.92, 0.9, 10_000)


def test_training_leaves_the_random_numbers_of_others_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1).item()
    torch.manual_seed(0)
    train(blobs((4, 4), 0.3), Recipe(), MADE_BY)
    assert torch.rand(1).item() == expected


def copied(drawn: Path, tmp_path: Path) -> Path:
    shutil.copytree(drawn / "shoe" / "color", tmp_path / "shoe" / "color")
    return tmp_path / "shoe" / "color"


def listed(training: Path) -> tuple[str, ...]:
    return list_training(training, HeadName("shoe", "color")).classes


def embedded(training: Path, settings: Settings) -> TrainingSet:
    embedder = build_embedder(settings, load_clip(settings))
    listing = list_training(training, HeadName("shoe", "color"))
    return embed_training(listing, embedder, Kept(), lambda done: None)


def test_a_missing_folder_is_named_with_the_layout_that_it_needs(tmp_path: Path) -> None:
    with pytest.raises(WrongUse) as caught:
        listed(tmp_path)
    assert str(caught.value).startswith(f"No such file or directory: '{tmp_path}/shoe/color'")
    assert "<class>/<image>.jpg" in str(caught.value)
    with pytest.raises(WrongUse, match=r"<category>/<image>\.jpg"):
        list_training(tmp_path / "nowhere", CATEGORY)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ([], "has no class, but at least two are required"),
        (["red/1.jpg", "red/2.jpg"], "has only one class, 'red'"),
        (["red/1.jpg", "red/2.jpg", "blue/1.jpg"], "The class 'blue' has 1 different image that"),
        (["red/1.jpg", "red/2.jpg", "blue/notes.txt"], "The class 'blue' has 0 different images"),
        (["red/1.jpg", "red/2.jpg", "3.jpg"], "'.*/shoe/color/3.jpg' is not in a class folder"),
        ([" red/1.jpg", "blue/1.jpg"], "The class ' red' cannot be used"),
        (["unknown/1.jpg", "blue/1.jpg"], "cannot be called 'unknown'"),
    ],
)
def test_a_folder_that_cannot_be_trained_on_is_a_sentence_before_any_model_is_loaded(
    tmp_path: Path, files: list[str], sentence: str
) -> None:
    root = tmp_path / "shoe" / "color"
    root.mkdir(parents=True)
    for name in files:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(name.encode())
    with pytest.raises(WrongUse, match=sentence):
        listed(tmp_path)


def test_a_class_that_is_a_link_is_not_dropped_in_silence(drawn: Path, tmp_path: Path) -> None:
    root = copied(drawn, tmp_path)
    shutil.move(root / "red", tmp_path / "elsewhere")
    (root / "red").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WrongUse, match="The class 'red' has 0 different images"):
        listed(tmp_path)


def test_pictures_that_cannot_be_read_are_left_out_and_the_classes_counted_again(
    drawn: Path, tmp_path: Path, settings: Settings
) -> None:
    root = copied(drawn, tmp_path)
    (root / "red" / "0.jpg").write_bytes(b"no picture")
    found = embedded(tmp_path, settings)
    assert [failure.path for failure in found.failures] == ["red/0.jpg"]
    assert (found.skipped, len(found.truth)) == (1, 3 * PICTURES - 1)
    for n in range(1, PICTURES - 1):
        (root / "red" / f"{n}.jpg").write_bytes(b"no picture either")
    with pytest.raises(WrongUse, match="The class 'red' has 1 different image"):
        embedded(tmp_path, settings)


def test_a_copy_within_its_class_counts_once_so_that_no_split_can_part_the_two(
    drawn: Path, tmp_path: Path, settings: Settings
) -> None:
    root = copied(drawn, tmp_path)
    shutil.copy(root / "red" / "0.jpg", root / "red" / "again.jpg")
    found = embedded(tmp_path, settings)
    assert (found.copies, len(found.truth)) == (1, 3 * PICTURES)
    for n in range(1, PICTURES):
        shutil.copy(root / "red" / "0.jpg", root / "red" / f"{n}.jpg")
    with pytest.raises(WrongUse, match="The class 'red' has 1 different image"):
        embedded(tmp_path, settings)


def test_a_picture_in_two_classes_is_refused_with_both_files_named(
    drawn: Path, tmp_path: Path, settings: Settings
) -> None:
    root = copied(drawn, tmp_path)
    shutil.copy(root / "red" / "0.jpg", root / "blue" / "x.jpg")
    with pytest.raises(WrongUse, match="are the same image in two classes") as caught:
        embedded(tmp_path, settings)
    for file in (root / "red" / "0.jpg", root / "blue" / "x.jpg"):
        assert str(file) in str(caught.value)


def test_the_category_head_takes_every_picture_below_a_category_once(
    drawn: Path, tmp_path: Path, settings: Settings
) -> None:
    root = copied(drawn, tmp_path)
    shutil.copytree(root / "red", tmp_path / "shoe" / "style" / "casual")  # the same pictures
    for n in range(3):
        (tmp_path / "mug").mkdir(exist_ok=True)
        draw(Product("mug", "red", "plain", "casual", n), 64).save(tmp_path / "mug" / f"{n}.jpg")
    listing = list_training(tmp_path, CATEGORY)
    assert listing.classes == ("mug", "shoe")
    embedder = build_embedder(settings, load_clip(settings))
    found = embed_training(listing, embedder, Kept(), lambda done: None)
    assert np.bincount(found.truth).tolist() == [3, 3 * PICTURES]
    assert found.copies == PICTURES
