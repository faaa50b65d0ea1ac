"""`imgrec train` and `imgrec heads`, and what `imgrec classify --use-trained` says."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inline_worker import InlineWorker
from PIL import Image

from cli import query_client
from pipeline.train import train_head

Run = Callable[..., Any]

COLORS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (30, 40, 200)}
KEYS = {
    *("category", "attribute", "classes", "images", "skipped", "train", "held_out", "accuracy"),
    *("per_class", "confusion", "ece", "ece_before", "temperature", "learning_rate", "epochs"),
    *("auto", "model", "loss_curve", "fingerprint"),
}


@pytest.fixture
def training(inline_worker: InlineWorker) -> Path:
    """data/training with plain, noisy colours, which the toy encoder can tell apart."""
    root = inline_worker.toy.settings.training_dir
    rng = np.random.default_rng(0)
    for category, names in {"shoe": COLORS, "bag": ("red", "blue")}.items():
        for color in names:
            folder = root / category / "color" / color
            folder.mkdir(parents=True)
            for n in range(8):
                pixels = np.array(COLORS[color]) + rng.integers(-30, 30, (16, 16, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{n}.png")
    return root


@pytest.fixture
def few_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that are not about how good a head is: --auto looks at fewer epochs."""
    monkeypatch.setattr(train_head, "MAX_EPOCHS", 20)


def test_the_object_has_the_contract_s_keys_and_its_files_exist(
    imgrec: Run, training: Path, tmp_path: Path
) -> None:
    done = imgrec("train", "--category", "shoe", "--attribute", "color", "--json")
    assert done.code == 0
    assert done.err == ""
    answer = done.object
    assert set(answer) == KEYS | {"auto_accuracy"}
    assert (answer["category"], answer["attribute"]) == ("shoe", "color")
    assert answer["classes"] == ["blue", "green", "red"]
    assert (answer["images"], answer["train"], answer["held_out"]) == (24, 18, 6)
    assert (answer["learning_rate"], answer["epochs"], answer["auto"]) == (1e-4, 10, False)
    assert answer["auto_accuracy"] == 1.0
    assert set(answer["per_class"]["red"]) == {"precision", "recall", "images"}
    folder = tmp_path / "models" / "shoe" / "color"
    assert answer["model"] == str(folder / "model.pt")
    assert answer["loss_curve"] == str(folder / "loss.png")
    assert {file.name for file in folder.glob("[!.]*")} == {"model.pt", "classes.json", "loss.png"}


def test_auto_says_what_it_chose_and_compares_with_nothing(imgrec: Run, training: Path) -> None:
    answer = imgrec(
        *("train", "--category", "shoe", "--attribute", "color", "--auto", "--json")
    ).object
    assert set(answer) == KEYS
    assert answer["auto"] is True
    assert (answer["learning_rate"], answer["epochs"]) != (1e-4, 10)
    assert answer["accuracy"] == 1.0


def test_defaults_that_leave_accuracy_on_the_table_are_told_so_with_the_measured_figure(
    imgrec: Run, training: Path
) -> None:
    """One class is much more frequent: a step or two of Adam learn only that."""
    rng = np.random.default_rng(1)
    for n in range(60):
        pixels = np.array(COLORS["blue"]) + rng.integers(-30, 30, (16, 16, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(training / f"shoe/color/blue/more{n}.png")
    done = imgrec(
        *("train", "--category", "shoe", "--attribute", "color", "--json"),
        *("--epochs", "1", "--batch-size", "100"),
    )
    answer = done.object
    assert answer["accuracy"] < answer["auto_accuracy"] == 1.0
    assert "--auto reaches an accuracy of 1.00 on the same held-out images" in done.err
    assert f"{answer['accuracy']:.2f}: train again with --auto." in done.err


@pytest.mark.usefixtures("few_epochs")
def test_people_see_tables_of_the_figures(imgrec: Run, training: Path) -> None:
    done = imgrec("train", "--category", "shoe", "--attribute", "color")
    assert done.code == 0
    for words in ("Head shoe/color", "accuracy", "precision", "recall", "Confusion", "ECE"):
        assert words in done.out


@pytest.mark.usefixtures("few_epochs")
def test_the_category_head_has_no_category_of_its_own(
    imgrec: Run, training: Path, tmp_path: Path
) -> None:
    answer = imgrec("train", "--category-head", "--json").object
    assert (answer["category"], answer["attribute"]) == (None, "category")
    assert answer["classes"] == ["bag", "shoe"]
    assert answer["images"] == 40
    assert answer["model"] == str(tmp_path / "models" / "category_head" / "model.pt")


@pytest.mark.usefixtures("few_epochs")
def test_a_picture_is_embedded_once_for_all_trainings(
    inline_worker: InlineWorker, imgrec: Run, training: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imgrec("train", "--category", "shoe", "--attribute", "color", "--json")
    assert len(inline_worker.memory.vectors) == 24

    def refuse(images: object) -> np.ndarray:
        raise AssertionError("a known picture was embedded again")

    monkeypatch.setattr(inline_worker.toy, "embed_images", refuse)
    assert imgrec("train", "--category", "shoe", "--attribute", "color", "--json").code == 0


@pytest.mark.usefixtures("few_epochs")
def test_pictures_that_were_left_out_are_named_and_counted(imgrec: Run, training: Path) -> None:
    broken = training / "shoe" / "color" / "red" / "0.png"
    broken.write_bytes(b"no picture")
    shutil.copy(broken.with_name("1.png"), broken.with_name("copy.png"))
    done = imgrec("train", "--category", "shoe", "--attribute", "color", "--json")
    assert (done.object["images"], done.object["skipped"]) == (23, 1)
    assert f"{broken}: the file is not an image of a supported format" in done.err
    assert "Duplicate images within a class, ignored: 1." in done.err


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([], "Give --category and --attribute"),
        (["--category", "shoe"], "Give --category and --attribute"),
        (["--category-head", "--category", "shoe"], "cannot be combined"),
        (["--category", "../shoe", "--attribute", "color"], "'../shoe' cannot be used"),
        (["--category", "shoe", "--attribute", "/etc"], "'/etc' cannot be used"),
        (["--category", "shoe", "--attribute", "size"], "No such file or directory: '"),
        (["--category-head", "--auto", "--lr", "0.1"], "omit --lr"),
        (["--category-head", "--auto", "--epochs", "10"], "omit --epochs"),
        (["--category-head", "--val", "0"], "0<x<1"),
        (["--category-head", "--val", "1"], "0<x<1"),
        (["--category-head", "--lr", "0"], "--lr"),
        (["--category-head", "--batch-size", "0"], "--batch-size"),
    ],
)
def test_wrong_use_is_a_sentence_and_writes_nothing(
    imgrec: Run, training: Path, tmp_path: Path, args: list[str], sentence: str
) -> None:
    done = imgrec("train", *args)
    assert done.code == 2
    assert sentence in done.err
    assert not (tmp_path / "models").exists()


@pytest.mark.usefixtures("few_epochs")
def test_a_contradiction_leaves_the_head_that_was_there(
    imgrec: Run, training: Path, tmp_path: Path
) -> None:
    imgrec("train", "--category", "shoe", "--attribute", "color", "--json")
    model = tmp_path / "models" / "shoe" / "color" / "model.pt"
    before = model.read_bytes()
    shutil.copy(training / "shoe/color/red/0.png", training / "shoe/color/blue/x.png")
    done = imgrec("train", "--category", "shoe", "--attribute", "color")
    assert done.code == 2
    assert "are the same image in two classes" in done.err
    assert model.read_bytes() == before


@pytest.mark.usefixtures("few_epochs")
def test_heads_are_listed_and_a_broken_one_is_a_sentence_beside_the_others(
    imgrec: Run, training: Path, tmp_path: Path
) -> None:
    done = imgrec("heads")
    assert (done.code, done.out) == (0, "")
    assert "No trained heads" in done.err
    assert imgrec("heads", "--json").object == {"heads": []}
    trained = imgrec("train", "--category", "shoe", "--attribute", "color", "--json").object
    imgrec("train", "--category-head", "--json")
    found = imgrec("heads", "--json").object["heads"]
    assert [(row["category"], row["attribute"]) for row in found] == [
        (None, "category"),
        ("shoe", "color"),
    ]
    keys = ("category", "attribute", "classes", "accuracy", "images", "fingerprint")
    assert {key: found[1][key] for key in keys} == {key: trained[key] for key in keys}
    assert set(found[1]) == {*keys, "trained_at", "path"}
    assert found[1]["path"] == trained["model"]
    assert "blue, green, red" in imgrec("heads").out
    Path(trained["model"]).write_bytes(b"broken")
    done = imgrec("heads", "--json")
    assert done.code == 1
    assert [row["attribute"] for row in done.object["heads"]] == ["category"]
    assert "imgrec train --category shoe --attribute color" in done.err


ZERO_SHOT = {"name": "color", "label": "red", "confidence": 0.9, "source": "zero-shot"}


@pytest.mark.parametrize(
    ("options", "source", "sentence"),
    [
        (["--use-trained"], "zero-shot", "Error: No trained models found for category: shoe\n"),
        (["--use-trained"], "trained", ""),
        ([], "zero-shot", ""),
    ],
)
def test_that_no_head_answered_is_said_where_heads_were_asked_for(
    inline_worker: InlineWorker,
    imgrec: Run,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    source: str,
    sentence: str,
) -> None:
    answer = {
        "category": {"label": "shoe", "confidence": 0.9},
        "attributes": [ZERO_SHOT | {"source": source}],
    }
    sent: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        query_client.celery_protocol,
        "send",
        lambda task, query_id, args, timeout, **options: sent.append(args) or [],
    )
    monkeypatch.setattr(query_client, "wait_for", lambda *args, **options: answer)
    photo = inline_worker.toy.root / "kind0/00.png"
    done = imgrec("classify", photo, "--wait", *options)
    assert done.code == 0
    assert done.err == sentence
    assert done.out.startswith("Category: shoe (confidence 0.90)")
    assert imgrec("classify", photo, "--wait", "--json", *options).object == answer
    # Workers of an earlier release still answer those who do not ask for heads.
    assert [len(args) for args in sent] == [1 + bool(options)] * 2
