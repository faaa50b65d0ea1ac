"""Train on drawn pictures, then ask a running worker: it notices the head without a restart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from live_stack import ROOT, LiveStack
from sample_images import MINI

from tools.drawing import Product, draw
from tools.drawing.catalogue import write_training

pytestmark = pytest.mark.long


@pytest.fixture
def trained(stack: LiveStack) -> LiveStack:
    stack.environment |= {
        "EMBEDDING_MODEL": str(ROOT / "models" / "imgrec-mini"),
        "MODELS_DIR": str(stack.folder / "heads"),
    }
    training = stack.data / "training"
    write_training(training, 4, categories=("shoe", "mug"), size=128, attributes=("color",))
    return stack


def photo(stack: LiveStack, category: str, color: str) -> Path:
    file = stack.folder / f"{category}-{color}.jpg"
    draw(Product(category, color, "plain", "casual", 77_777), 160).save(file)
    return file


def test_a_head_is_trained_listed_and_used_by_workers_that_run(trained: LiveStack) -> None:
    stack = trained
    stack.worker("query")
    shoe, mug = photo(stack, "shoe", "green"), photo(stack, "mug", "blue")
    before = stack.imgrec("classify", str(shoe), "--use-trained", "--wait", "--json")
    assert "No trained models found for category: shoe\n" in before.stderr
    assert {a["source"] for a in json.loads(before.stdout)["attributes"]} == {"zero-shot"}
    assert "source" not in json.loads(before.stdout)["category"]

    done = stack.imgrec("train", "--category", "shoe", "--attribute", "color", "--json")
    assert done.returncode == 0, done.stderr
    first = json.loads(done.stdout)
    assert (first["images"], first["train"] + first["held_out"]) == (44, 44)
    assert (first["learning_rate"], first["epochs"], first["auto"]) == (1e-4, 10, False)
    assert np_sum(first["confusion"]["counts"]) == first["held_out"]
    # What is said about --auto was measured: training with it comes to that figure.
    auto = stack.answer("train", "--category", "shoe", "--attribute", "color", "--auto")
    assert auto["accuracy"] == first["auto_accuracy"]
    assert ("--auto reaches" in done.stderr) == (auto["accuracy"] - first["accuracy"] > 0.1)
    assert Path(auto["loss_curve"]).read_bytes().startswith(b"\x89PNG")
    (row,) = stack.answer("heads")["heads"]
    assert (row["category"], row["attribute"]) == ("shoe", "color")
    assert (row["accuracy"], row["images"]) == (auto["accuracy"], 44)

    answer = stack.answer("classify", str(shoe), "--use-trained", "--wait")
    color = next(a for a in answer["attributes"] if a["name"] == "color")
    assert (color["label"], color["source"]) == ("green", "trained")
    done = stack.imgrec("classify", str(mug), "--use-trained", "--wait")
    assert "No trained models found for category: mug\n" in done.stderr
    assert done.stdout.startswith("Category: mug")
    plain = stack.answer("classify", str(shoe), "--wait")
    assert {a["source"] for a in plain["attributes"]} == {"zero-shot"}

    both = stack.answer("train", "--category-head", "--auto")
    assert (both["category"], both["classes"]) == (None, ["mug", "shoe"])
    answer = stack.answer("classify", str(mug), "--use-trained", "--wait")
    assert answer["category"] | {"confidence": 0} == {
        "label": "mug",
        "confidence": 0,
        "source": "trained",
    }

    # A broken head is an error that names the file, never a silent zero-shot.
    Path(auto["model"]).write_bytes(b"rotten")
    done = stack.imgrec("classify", str(shoe), "--use-trained", "--wait")
    assert done.returncode == 1
    assert auto["model"] in done.stderr
    assert stack.imgrec("heads").returncode == 1


def np_sum(rows: list[list[int]]) -> int:
    return sum(map(sum, rows))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "Give --category and --attribute"),
        (["--category", "shoe"], "Give --category and --attribute"),
        (["--category", "../shoe", "--attribute", "color"], "'../shoe' cannot be used"),
        (["--category", "shoe", "--attribute", "/etc"], "'/etc' cannot be used"),
        (["--category", "shoe", "--category-head"], "cannot be combined"),
        (["--category-head", "--auto", "--lr", "0.1"], "omit --lr"),
        (["--category", "hat", "--attribute", "color"], "No such file or directory: '"),
        (["--category-head", "--val", "1"], "--val"),
    ],
)
def test_wrong_use_is_a_sentence_before_any_model_is_loaded(
    tmp_path: Path, args: list[str], words: str
) -> None:
    done = LiveStack(tmp_path, MINI).imgrec("train", *args)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
