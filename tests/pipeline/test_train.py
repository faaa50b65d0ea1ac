"""Training a head: what is held out decides nothing, the arithmetic is right, --auto is better."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.clip import load_clip
from pipeline.drawing.catalogue import write_training
from pipeline.embed import Tools, make_tools
from pipeline.errors import WrongUse
from pipeline.fingerprint import Fingerprint
from pipeline.head import THE_CATEGORY, HeadName
from pipeline.metrics import calibration_error, fit_temperature, log_loss, per_class, softmax
from pipeline.settings import Settings
from pipeline.train import Recipe, choose, fit_head, out_of_fold, split, train
from pipeline.training_set import TrainingSet, embed_training, list_training

ROOT = Path(__file__).parents[2]
MADE_BY = Fingerprint(
    "kind", {"model": "toy", "preprocessing": {"rembg_model": None, "size": (8, 8)}}
)
COLOR = HeadName("shoe", "color")


class Nothing:
    def get(self, digest: str) -> None:
        return None

    def put(self, vectors: dict[str, np.ndarray]) -> None:
        pass


def clouds(per: int, classes: int = 4, spread: float = 0.35, dim: int = 24) -> TrainingSet:
    """Unit vectors around one centre a class."""
    rng = np.random.default_rng(7)
    centres = rng.normal(size=(classes, dim))
    truth = np.repeat(np.arange(classes), per)
    rows = centres[truth] + spread * dim**0.5 * rng.normal(size=(len(truth), dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    names = tuple(f"class {n}" for n in range(classes))
    return TrainingSet(names, truth, rows.astype(np.float32), [], 0)


def test_the_split_is_stratified_and_leaves_something_on_both_sides() -> None:
    truth = np.array([0] * 10 + [1] * 2 + [2] * 3 + [3])
    for seed in range(5):
        kept, held = split(truth, 0.2, np.random.default_rng(seed))
        assert sorted([*kept, *held]) == list(range(len(truth)))
        assert np.bincount(truth[held], minlength=4).tolist() == [2, 1, 1, 0]
    _, most = split(truth, 0.99, np.random.default_rng(0))
    assert np.bincount(truth[most], minlength=4).tolist() == [9, 1, 2, 0]


def test_what_is_held_out_changes_nothing_about_the_head() -> None:
    """Other vectors in the place of the held-out ones: the same head, the same temperature."""
    examples = clouds(10, spread=0.1)
    for recipe in (Recipe(), Recipe(auto=True)):
        first = train(examples, recipe, MADE_BY)
        _, held = split(examples.truth, recipe.held_out, np.random.default_rng(recipe.seed))
        changed = examples.vectors.copy()
        changed[held] = -changed[held]
        second = train(replace(examples, vectors=changed), recipe, MADE_BY)
        np.testing.assert_array_equal(first.head.weight, second.head.weight)
        assert first.head.temperature == second.head.temperature
        assert first.recipe == second.recipe
        assert first.head.accuracy > second.head.accuracy  # only the judgement differs


def test_the_same_seed_gives_the_same_head_and_another_one_another_split() -> None:
    examples = clouds(10)
    one, two = (train(examples, Recipe(seed=3), MADE_BY) for _ in range(2))
    np.testing.assert_array_equal(one.head.weight, two.head.weight)
    assert one.report() == two.report()
    other = train(examples, Recipe(seed=4), MADE_BY)
    assert not np.array_equal(one.head.weight, other.head.weight)


def test_auto_is_better_than_the_defaults_where_they_under_train() -> None:
    # Most of the length of these vectors says nothing about the class.
    rng = np.random.default_rng(9)
    quiet = clouds(25, classes=8, spread=0.1)
    loud = rng.normal(size=(len(quiet.truth), 24)) * 1.0
    rows = np.hstack([0.3 * quiet.vectors, loud])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    examples = replace(quiet, vectors=rows.astype(np.float32))
    plain, auto = train(examples, Recipe(), MADE_BY), train(examples, Recipe(auto=True), MADE_BY)
    assert auto.head.accuracy > plain.head.accuracy + 0.2
    held_loss = [each.curves["held out"][-1] for each in (plain, auto)]
    assert held_loss[1] < 0.7 * held_loss[0]
    assert auto.recipe.learning_rate != Recipe().learning_rate


def test_standardisation_is_folded_into_the_weights() -> None:
    examples = clouds(12)
    shifted = replace(examples, vectors=(examples.vectors * 3 + 5).astype(np.float32))
    recipe = Recipe(auto=True, epochs=30, learning_rate=0.01)
    heads = [
        fit_head(each.vectors, each.truth, 4, recipe).logits(each.vectors)
        for each in (examples, shifted)
    ]
    np.testing.assert_allclose(heads[0], heads[1], atol=1e-2)


def test_rare_classes_weigh_as_much_as_common_ones_with_auto() -> None:
    rng = np.random.default_rng(1)
    rows = np.vstack([rng.normal(0, 1, (200, 5)), rng.normal(1.0, 1, (10, 5))]).astype(np.float32)
    truth = np.array([0] * 200 + [1] * 10)
    recipe = Recipe(epochs=60, learning_rate=0.01, batch_size=32)
    plain = fit_head(rows, truth, 2, recipe).logits(rows).argmax(axis=1)
    auto = fit_head(rows, truth, 2, replace(recipe, auto=True)).logits(rows).argmax(axis=1)
    assert auto[200:].mean() > plain[200:].mean()


def test_out_of_fold_logits_come_from_heads_that_did_not_see_the_row() -> None:
    """A row whose label is a lie is predicted as what it looks like, not as the lie."""
    examples = clouds(10, spread=0.05)
    truth = examples.truth.copy()
    truth[3] = 2
    recipe = Recipe(epochs=300, learning_rate=0.05, batch_size=40)
    rng = np.random.default_rng(0)
    logits, rows = out_of_fold(examples.vectors, truth, 4, recipe, rng)
    assert logits[rows.tolist().index(3)].argmax() == 0
    assert len(rows) == len(truth)


def test_auto_needs_a_picture_to_choose_by() -> None:
    two = clouds(1)
    with pytest.raises(WrongUse, match="--auto needs a class with three pictures"):
        choose(two.vectors, two.truth, 4, Recipe(auto=True), np.random.default_rng(0))


def test_a_perfectly_calibrated_set_has_no_error_and_another_one_the_one_by_hand() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 200_000)
    shares = np.stack([confidence, 1 - confidence], axis=1)
    truth = (rng.uniform(size=len(confidence)) > confidence).astype(int)
    assert calibration_error(shares, truth) < 0.01
    # Four sure answers (1.0) of which two are right; two of 0.6, both right.
    shares = np.array([[1.0, 0.0]] * 4 + [[0.6, 0.4]] * 2)
    by_hand = (4 * abs(0.5 - 1.0) + 2 * abs(1.0 - 0.6)) / 6
    assert calibration_error(shares, np.array([0, 0, 1, 1, 0, 0])) == pytest.approx(by_hand)


def test_a_fitted_temperature_lowers_the_loss_of_overconfident_logits() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(2000, 5))
    truth = np.array([rng.choice(5, p=row) for row in softmax(logits)])
    assert fit_temperature(4 * logits, truth) == pytest.approx(4, rel=0.15)
    assert log_loss(4 * logits, truth, fit_temperature(4 * logits, truth)) < log_loss(
        4 * logits, truth
    )
    certain = np.eye(5)[truth] * 10
    assert fit_temperature(certain, truth) > 0.05  # all right: still not infinitely sure


def test_precision_and_recall_by_hand() -> None:
    counts = np.array([[3, 1, 0], [0, 2, 0], [2, 0, 0]])
    found = per_class(("a", "b", "c"), counts)
    assert found["a"] == {"precision": 0.6, "recall": 0.75, "images": 4}
    assert found["b"] == {"precision": 0.6667, "recall": 1.0, "images": 2}
    assert found["c"] == {"precision": None, "recall": 0.0, "images": 2}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("training")
    write_training(root, per_class=6, categories=("shoe",), size=128)
    return root


@pytest.fixture(scope="module")
def tools() -> Tools:
    settings = Settings(
        _env_file=None,
        embedding_model=str(ROOT / "models" / "imgrec-mini"),
        use_bg_removal=False,
        cpu_threads=1,
    )
    return make_tools(settings, load_clip(settings))


def test_drawn_colours_are_learnt_and_auto_is_surer_of_them(drawn: Path, tools: Tools) -> None:
    listing = list_training(drawn, COLOR)
    examples = embed_training(listing, tools, Nothing(), lambda done: None)
    assert (len(examples.classes), len(examples.truth)) == (11, 66)
    plain = train(examples, Recipe(), MADE_BY)
    auto = train(examples, Recipe(auto=True), MADE_BY)
    assert auto.head.accuracy >= max(0.9, plain.head.accuracy)
    assert auto.curves["held out"][-1] < plain.curves["held out"][-1]
    assert plain.ece < plain.ece_before  # the defaults leave every class about equally likely
    assert plain.loss_curve().startswith(b"\x89PNG")


def copy(drawn: Path, tmp_path: Path) -> Path:
    root = tmp_path / "training"
    for name in ("red", "blue", "green"):
        shutil.copytree(drawn / "shoe" / "color" / name, root / "shoe" / "color" / name)
    return root


def test_copies_count_once_and_contradictions_are_refused(
    drawn: Path, tmp_path: Path, tools: Tools
) -> None:
    root = copy(drawn, tmp_path)
    folder = root / "shoe" / "color"
    shutil.copy(folder / "red" / "01.jpg", folder / "red" / "again.jpg")
    (folder / "red" / "broken.jpg").write_bytes(b"no picture")
    examples = embed_training(list_training(root, COLOR), tools, Nothing(), lambda done: None)
    assert (len(examples.truth), examples.copies, examples.skipped) == (18, 1, 1)
    assert examples.failures[0].path == "red/broken.jpg"
    shutil.copy(folder / "red" / "01.jpg", folder / "blue" / "red.jpg")
    with pytest.raises(WrongUse, match="are the same picture in two classes"):
        embed_training(list_training(root, COLOR), tools, Nothing(), lambda done: None)


def test_pictures_that_cannot_be_used_do_not_count_for_the_least(
    drawn: Path, tmp_path: Path, tools: Tools
) -> None:
    root = copy(drawn, tmp_path)
    for picture in sorted((root / "shoe" / "color" / "red").iterdir())[1:]:
        picture.write_bytes(b"no picture")
    with pytest.raises(WrongUse, match="'red' has 1 different picture that can be used"):
        embed_training(list_training(root, COLOR), tools, Nothing(), lambda done: None)


def test_wrong_layouts_are_sentences(drawn: Path, tmp_path: Path) -> None:
    root = copy(drawn, tmp_path)
    folder = root / "shoe" / "color"
    with pytest.raises(WrongUse, match=r"No such file or directory.*<class>/<picture>\.jpg"):
        list_training(root, HeadName("shoe", "material"))
    with pytest.raises(WrongUse, match="one class only, 'shoe'"):
        list_training(root, THE_CATEGORY)
    shutil.copy(folder / "red" / "01.jpg", folder / "loose.jpg")
    with pytest.raises(WrongUse, match="lies in no class folder"):
        list_training(root, COLOR)
    (folder / "loose.jpg").unlink()
    (folder / "teal").mkdir()
    with pytest.raises(WrongUse, match="'teal' has 0 different pictures"):
        list_training(root, COLOR)
    (folder / "teal").rmdir()
    (folder / "a+b").mkdir()
    with pytest.raises(WrongUse, match=r"class 'a\+b' cannot be used"):
        list_training(root, COLOR)


@pytest.mark.parametrize(
    "name", ["..", "../x", "/etc", "a/b", "", "x" * 65, "a\0b", ".hidden", "🦊"]
)
def test_names_with_a_path_in_them_are_refused(name: str) -> None:
    for arguments in ((name, "color"), ("shoe", name)):
        with pytest.raises(WrongUse, match="cannot be used: a name has up to 64"):
            HeadName.of(*arguments)
    with pytest.raises(WrongUse, match="category_head"):
        HeadName.of("category_head", "color")
