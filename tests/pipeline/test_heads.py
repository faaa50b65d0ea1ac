"""Heads on disk: swapped in one step, read with suspicion, noticed when they are new."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import FingerprintMismatch, HeadBroken
from pipeline.fingerprint import Fingerprint
from pipeline.head import THE_CATEGORY, Head, HeadName, require_features
from pipeline.heads import CLASSES, MODEL, HeadStore, list_heads, load_head, save_head

COLOR = HeadName("shoe", "color")
HEAD = Head(
    weight=np.arange(12, dtype=np.float32).reshape(3, 4) / 10,
    bias=np.array([0.1, 0.2, 0.3], np.float32),
    temperature=0.5,
    classes=("red", "blue", "green"),
    fingerprint="kind",
    made_with="a model",
    accuracy=0.9,
    images=30,
)


def test_a_head_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    saved = save_head(tmp_path, COLOR, HEAD, b"png")
    read = load_head(tmp_path, COLOR)
    np.testing.assert_array_equal(read.weight, HEAD.weight)
    assert replace(read, weight=HEAD.weight, bias=HEAD.bias) == replace(
        saved, weight=HEAD.weight, bias=HEAD.bias
    )
    said = json.loads((tmp_path / "shoe" / "color" / CLASSES).read_text())
    assert (said["classes"], said["fingerprint"]) == (["red", "blue", "green"], "kind")
    vector = np.array([1, 0, 0, 0], np.float32)
    logits = (HEAD.weight @ vector + HEAD.bias) / 0.5
    shares = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(read.confidences(vector), shares, rtol=1e-6)


def test_heads_are_listed_and_strangers_are_not(tmp_path: Path) -> None:
    assert list_heads(tmp_path / "nowhere") == []
    for name in (HeadName("shoe", "style"), COLOR, THE_CATEGORY):
        save_head(tmp_path, name, HEAD, b"png")
    (tmp_path / "imgrec-mini").mkdir()
    (tmp_path / "imgrec-mini" / "config.json").touch()
    assert list_heads(tmp_path) == [THE_CATEGORY, COLOR, HeadName("shoe", "style")]


def test_a_retrained_head_is_noticed_at_the_next_call(tmp_path: Path) -> None:
    store = HeadStore(tmp_path)
    assert store.of_category("shoe") == {}
    assert store.category_head() is None
    save_head(tmp_path, COLOR, HEAD, b"png")
    first = store.of_category("shoe")["color"]
    assert store.of_category("shoe")["color"] is first  # read once
    save_head(tmp_path, COLOR, replace(HEAD, accuracy=0.95), b"png")
    assert store.of_category("shoe")["color"].accuracy == 0.95
    (tmp_path / "shoe" / "color" / MODEL).unlink()
    assert store.of_category("shoe") == {}
    for name in ("..", "../x", "/etc", ""):
        assert store.of_category(name) == {}


def test_a_kill_between_the_two_files_leaves_the_new_head(tmp_path: Path) -> None:
    save_head(tmp_path, COLOR, HEAD, b"png")
    script = (
        "import sys; from dataclasses import replace; from pathlib import Path\n"
        "from pipeline.heads import load_head, save_head; from pipeline.head import HeadName\n"
        "root, name = Path(sys.argv[1]), HeadName('shoe', 'color')\n"
        "head = replace(load_head(root, name), classes=('one', 'two', 'three'))\n"
        "save_head(root, name, head, b'png')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "IMGREC_FAILPOINT": "head.between"},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == -signal.SIGKILL
    assert load_head(tmp_path, COLOR).classes == ("one", "two", "three")
    said = json.loads((tmp_path / "shoe" / "color" / CLASSES).read_text())
    assert said["classes"] == ["red", "blue", "green"]  # the older one, until the next training
    save_head(tmp_path, COLOR, HEAD, b"png")
    assert load_head(tmp_path, COLOR).classes == HEAD.classes


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (os.environ["BOMB"],)


def test_code_in_a_model_file_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    save_head(tmp_path, COLOR, HEAD, b"png")
    file = tmp_path / "shoe" / "color" / MODEL
    for write in (lambda: torch.save(Bomb(), file), lambda: file.write_bytes(pickle.dumps(Bomb()))):
        write()
        with pytest.raises(HeadBroken, match="train it again with 'imgrec train --category shoe"):
            load_head(tmp_path, COLOR)
        assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"weight": torch.zeros(2, 4)},
        {"weight": torch.full((3, 4), float("nan"))},
        {"bias": torch.zeros(5)},
        {"temperature": 0.0},
        {"classes": ["red", "red", "blue"]},
        {"classes": ["red", "../x", "blue"]},
        {"classes": 5},
        {"fingerprint": 5},
        {"weight": "text"},
    ],
)
def test_a_model_file_that_holds_no_head_is_a_sentence(
    tmp_path: Path, change: dict[str, object]
) -> None:
    save_head(tmp_path, COLOR, HEAD, b"png")
    file = tmp_path / "shoe" / "color" / MODEL
    torch.save({**torch.load(file, weights_only=True), **change}, file)
    with pytest.raises(HeadBroken, match=r"model\.pt' cannot be used: what it holds is no head"):
        load_head(tmp_path, COLOR)


def test_a_cut_off_or_foreign_file_is_a_sentence(tmp_path: Path) -> None:
    saved = save_head(tmp_path, COLOR, HEAD, b"png")
    folder = tmp_path / "shoe" / "color"
    whole = (folder / MODEL).read_bytes()
    for data in (b"", b"no file of torch", whole[: len(whole) // 2]):
        (folder / MODEL).write_bytes(data)
        with pytest.raises(HeadBroken, match=r"model\.pt' cannot be used"):
            load_head(tmp_path, COLOR)
    (folder / MODEL).write_bytes(whole)
    for text in ("", "[]", '{"classes": 5, "trained_at": "x"}'):
        (folder / CLASSES).write_text(text)
        with pytest.raises(HeadBroken, match=r"classes\.json' cannot be used"):
            load_head(tmp_path, COLOR)
    edited = {"classes": ["green", "blue", "red"], "trained_at": saved.trained_at}
    (folder / CLASSES).write_text(json.dumps(edited))
    with pytest.raises(HeadBroken, match=r"not written with the model\.pt beside it"):
        load_head(tmp_path, COLOR)


def test_features_of_another_model_are_refused() -> None:
    mine = Fingerprint(
        "other", {"model": "mine", "preprocessing": {"rembg_model": None, "size": (8, 8)}}
    )
    with pytest.raises(
        FingerprintMismatch, match="was trained on a model, but this process uses mine"
    ):
        require_features(HEAD, COLOR, mine, 4)
    same = replace(mine, id="kind")
    require_features(HEAD, COLOR, same, 4)
    with pytest.raises(HeadBroken, match="takes vectors of 4 numbers, the model gives 5"):
        require_features(HEAD, COLOR, same, 5)
