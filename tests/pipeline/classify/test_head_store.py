"""Heads on disk: whole or not at all, never believed blindly, noticed when they change."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from live_stack import FAILPOINTS

from pipeline.classify.head import CATEGORY, Head, HeadName, require_features
from pipeline.classify.head_store import HeadStore, list_heads, load_head, save_head
from pipeline.embed.fingerprint import Fingerprint
from pipeline.errors import FingerprintMismatch, HeadBroken, SetupError, WrongUse

ROOT = Path(__file__).parents[3]
NAME = HeadName.parse("shoe", "color")
HEAD = Head(
    weight=np.array([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]], np.float32),
    bias=np.array([0.5, 0.0], np.float32),
    temperature=0.5,
    classes=("red", "blue"),
    fingerprint="f" * 16,
    made_with="a model on original 224x224 images",
    accuracy=0.9,
    images=20,
)
PNG = b"\x89PNG a picture"
WAY_OUT = "train it again with 'imgrec train --category shoe --attribute color'"


def saved(models: Path, **changes: Any) -> Path:
    save_head(models, NAME, replace(HEAD, **changes), PNG)
    return models / "shoe" / "color"


def test_a_head_comes_back_as_it_was_written_and_its_classes_can_be_read_by_anybody(
    tmp_path: Path,
) -> None:
    written = save_head(tmp_path, NAME, HEAD, PNG)
    read = load_head(tmp_path, NAME)
    np.testing.assert_array_equal(read.weight, HEAD.weight)
    np.testing.assert_array_equal(read.bias, HEAD.bias)
    assert replace(read, weight=HEAD.weight, bias=HEAD.bias) == replace(
        written, weight=HEAD.weight, bias=HEAD.bias
    )
    said = json.loads((tmp_path / "shoe/color/classes.json").read_text())
    assert said["classes"] == ["red", "blue"]
    assert (said["accuracy"], said["images"], said["fingerprint"]) == (0.9, 20, "f" * 16)
    assert (tmp_path / "shoe/color/loss.png").read_bytes() == PNG


def test_confidence_is_the_softmax_at_the_head_s_temperature() -> None:
    shares = HEAD.confidences(np.array([1.0, 0.0, 0.0], np.float32))
    assert shares[0] == pytest.approx(1 / (1 + np.exp(-(2.0 + 0.5) / 0.5)))
    assert shares.sum() == pytest.approx(1)


def test_a_head_that_was_trained_again_is_noticed_at_the_next_call(tmp_path: Path) -> None:
    saved(tmp_path)
    store = HeadStore(tmp_path)
    assert store.of_category("shoe")["color"].classes == ("red", "blue")
    assert store.of_category("shoe")["color"] is store.of_category("shoe")["color"]  # read once
    saved(tmp_path, classes=("blue", "red"))
    assert store.of_category("shoe")["color"].classes == ("blue", "red")
    save_head(tmp_path, HeadName.parse("shoe", "style"), HEAD, PNG)
    assert list(store.of_category("shoe")) == ["color", "style"]
    (tmp_path / "shoe/color/model.pt").unlink()
    assert list(store.of_category("shoe")) == ["style"]


def test_without_a_folder_there_are_no_heads(tmp_path: Path) -> None:
    store = HeadStore(tmp_path / "nowhere")
    assert store.of_category("shoe") == {}
    assert store.category_head() is None
    assert list_heads(tmp_path / "nowhere") == []


def test_the_list_names_every_head_and_nothing_else_of_the_models_folder(tmp_path: Path) -> None:
    saved(tmp_path)
    save_head(tmp_path, CATEGORY, HEAD, PNG)
    save_head(tmp_path, HeadName.parse("bag", "style"), HEAD, PNG)
    (tmp_path / "imgrec-mini").mkdir()
    (tmp_path / "imgrec-mini" / "config.json").write_text("{}")
    (tmp_path / "shoe" / "notes").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert list_heads(tmp_path) == [CATEGORY, HeadName("bag", "style"), NAME]


TRICKS = ["../shoe", "a/b", "..", ".", "", ".hidden", "a\\b", "a\nb", "a" * 65, "a" * 300]
TRICKS += ["/etc", "a\0b", "\0", "shoe/../../x", "~", "C:x", "a\u202eb"]


@pytest.mark.parametrize("name", TRICKS)
def test_a_name_with_a_path_in_it_names_no_head(tmp_path: Path, name: str) -> None:
    for category, attribute in ((name, "color"), ("shoe", name)):
        with pytest.raises(WrongUse, match="cannot be used: "):
            HeadName.parse(category, attribute)
    saved(tmp_path / "inside")
    saved(tmp_path)
    assert HeadStore(tmp_path / "inside").of_category(name) == {}


def test_names_that_mean_something_else_are_refused() -> None:
    with pytest.raises(WrongUse, match="reserved for uncertain answers"):
        HeadName.parse("unknown", "color")
    with pytest.raises(WrongUse, match="has that folder"):
        HeadName.parse("category_head", "color")
    assert "'t shirt'" in HeadName.parse("t shirt", "color").command


def test_a_kill_between_the_two_files_leaves_a_head_that_works_and_the_next_training_mends(
    tmp_path: Path,
) -> None:
    folder = saved(tmp_path, classes=("old", "older"))
    script = (
        "import numpy as np; from pathlib import Path; from pipeline.classify.head import *\n"
        "from pipeline.classify.head_store import save_head\n"
        "head = Head(np.eye(2, 3, dtype=np.float32), np.zeros(2, np.float32), 1.0, "
        "('new', 'newer'), 'f', 'a model', 1.0, 4)\n"
        f"save_head(Path({str(tmp_path)!r}), HeadName.parse('shoe', 'color'), head, b'')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(FAILPOINTS), "IMGREC_FAILPOINT": "head.between"}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment)
    assert done.returncode == -9
    assert json.loads((folder / "classes.json").read_text())["classes"] == ["old", "older"]
    assert load_head(tmp_path, NAME).classes == ("new", "newer")
    saved(tmp_path)  # the lock died with its owner
    assert json.loads((folder / "classes.json").read_text())["classes"] == ["red", "blue"]
    assert load_head(tmp_path, NAME).classes == ("red", "blue")


def test_a_first_head_without_its_classes_json_works(tmp_path: Path) -> None:
    (saved(tmp_path) / "classes.json").unlink()
    assert load_head(tmp_path, NAME).classes == ("red", "blue")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"classes": "red"}', b"null"])
def test_a_classes_json_that_says_nothing_is_a_sentence(tmp_path: Path, content: bytes) -> None:
    file = saved(tmp_path) / "classes.json"
    file.write_bytes(content)
    with pytest.raises(HeadBroken, match="not a JSON object with 'classes'") as caught:
        load_head(tmp_path, NAME)
    assert str(file) in str(caught.value)
    assert WAY_OUT in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"classes": ["blue", "red"]}, {"trained_at": "2999-01-01T00:00:00.000000Z"}]
)
def test_a_classes_json_that_contradicts_its_model_is_a_sentence(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    file = saved(tmp_path) / "classes.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(HeadBroken, match=r"was not written with the model\.pt beside it"):
        load_head(tmp_path, NAME)


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


def test_code_in_a_model_file_is_never_run(tmp_path: Path) -> None:
    folder, trace = saved(tmp_path), tmp_path / "trace"
    state = torch.load(folder / "model.pt", weights_only=True)
    torch.save({**state, "made_with": Attack(trace)}, folder / "zipped.pt")
    (folder / "bare.pt").write_bytes(pickle.dumps(Attack(trace), protocol=2))
    for name in ("zipped.pt", "bare.pt"):
        os.replace(folder / name, folder / "model.pt")
        with pytest.raises(HeadBroken, match="not a file of tensors and plain values"):
            load_head(tmp_path, NAME)
        assert not trace.exists()
    pickle.loads(pickle.dumps(Attack(trace)))  # the attack itself works
    assert trace.exists()


def zip_of(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"x")
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"no model", zip_of("data.pkl"), zip_of("readme")])
def test_a_model_file_that_is_none_is_a_sentence_with_the_way_out(
    tmp_path: Path, content: bytes
) -> None:
    file = saved(tmp_path) / "model.pt"
    file.write_bytes(content)
    store = HeadStore(tmp_path)
    for _ in range(2):  # it is not forgotten, either
        with pytest.raises(HeadBroken, match=r"shoe/color/model\.pt' cannot be used") as caught:
            store.of_category("shoe")
    assert WAY_OUT in str(caught.value)


def test_a_model_file_that_was_cut_short_is_a_sentence(tmp_path: Path) -> None:
    file = saved(tmp_path) / "model.pt"
    whole = file.read_bytes()
    for size in (10, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(HeadBroken, match=r"model\.pt"):
            load_head(tmp_path, NAME)


@pytest.mark.parametrize(
    "change",
    [
        {"weight": torch.zeros(3, 3)},
        {"weight": torch.zeros(3)},
        {"weight": "none"},
        {"weight": torch.full((2, 3), float("nan"))},
        {"bias": torch.zeros(3)},
        {"temperature": 0.0},
        {"temperature": float("inf")},
        {"classes": ["red", "red"]},
        {"classes": ["red", "../blue"]},
        {"classes": ["red", 1]},
        {"fingerprint": 1},
        {"trained_at": None},
        {"accuracy": None},
    ],
)
def test_a_model_file_of_another_shape_is_a_sentence(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    file = saved(tmp_path) / "model.pt"
    torch.save(torch.load(file, weights_only=True) | change, file)
    with pytest.raises(HeadBroken, match="its content is not a head"):
        load_head(tmp_path, NAME)


@pytest.mark.parametrize("content", [[1, 2], {"weight": torch.zeros(2, 3)}])
def test_tensors_without_the_rest_are_no_head(tmp_path: Path, content: Any) -> None:
    torch.save(content, saved(tmp_path) / "model.pt")
    with pytest.raises(HeadBroken, match="its content is not a head"):
        load_head(tmp_path, NAME)


def test_a_head_of_another_model_s_features_is_refused_with_both_named() -> None:
    preprocessing = {"rembg_model": None, "size": [224, 224]}
    mine = Fingerprint("e" * 16, {"model": "another model", "preprocessing": preprocessing})
    with pytest.raises(FingerprintMismatch) as caught:
        require_features(HEAD, NAME, mine, 3)
    for words in (HEAD.made_with, "another model on original", "imgrec train --category shoe"):
        assert words in str(caught.value)
    with pytest.raises(HeadBroken, match="takes vectors of 3 dimensions, but the model's have 4"):
        require_features(HEAD, NAME, replace(mine, id=HEAD.fingerprint), 4)


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "shoe").write_text("a file where a folder should be")
    with pytest.raises(SetupError, match="The head cannot be written to"):
        save_head(tmp_path, NAME, HEAD, PNG)
