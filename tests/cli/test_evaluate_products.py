"""`imgrec evaluate --products` measures a shop's own photos against its catalogue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inline_worker import InlineWorker
from PIL import Image

Run = Callable[..., Any]


def photo(file: Path, seed: int, noise: int = 0) -> None:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((64, 64), Image.Resampling.BICUBIC), int)
    pixels = pixels + np.random.default_rng(seed + 1).integers(-noise, noise + 1, pixels.shape)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)


@pytest.fixture
def table(inline_worker: InlineWorker, tmp_path: Path) -> Path:
    """Four photos of products, and a catalogue of twelve."""
    for number in range(12):
        photo(tmp_path / "shop" / f"{number}.png", number)
    rows = ["photo,product_id"]
    for number in range(4):
        photo(tmp_path / "own" / f"{number}.jpg", number, noise=9)
        rows.append(f"own/{number}.jpg,{number}")
    file = tmp_path / "pairs.csv"
    file.write_text("\n".join(rows) + "\n")
    return file


def test_recall_is_measured_by_product_and_one_setting_is_advised(
    table: Path, imgrec: Run, tmp_path: Path
) -> None:
    args = ("evaluate", tmp_path / "shop", "--products", table, "--bg-removal", "off")
    answer = imgrec(*args, "--json").object
    (report,) = answer["reports"]
    assert (report["photos"], report["products"], report["bg_removal"]) == (4, 4, False)
    assert set(report["recall"]) == set(report["intervals"]) == {"1", "5", "10"}
    assert report["recall"]["10"] >= report["recall"]["1"]
    assert answer["advice"]["bg_removal"] is False
    done = imgrec(*args)
    assert "recall@1" in done.out
    assert "Only" in done.err
    assert "was measured" in done.err


def test_models_are_compared_on_the_same_photos(
    table: Path, imgrec: Run, tmp_path: Path, inline_worker: InlineWorker
) -> None:
    model = inline_worker.resources.settings.embedding_model
    args = ("evaluate", tmp_path / "shop", "--products", table, "--bg-removal", "off")
    answer = imgrec(*args, "--model", model, "--model", model, "--json").object
    assert len(answer["reports"]) == 2
    advice = answer["advice"]
    assert advice["difference"] == 0
    assert not advice["clear"]
    assert "may be chance" in imgrec(*args, "--model", model, "--model", model).err


def test_without_a_folder_the_published_index_s_is_the_catalogue(
    table: Path, imgrec: Run, inline_worker: InlineWorker
) -> None:
    done = imgrec("evaluate", "--products", table, "--bg-removal", "off")
    assert done.code == 3
    assert "name the folder" in done.err
    inline_worker.rebuild()
    done = imgrec("evaluate", "--products", table, "--bg-removal", "off")
    assert done.code == 2
    assert "line 2: no image of the catalogue belongs to product '0'" in done.err
    table.write_text("photo,product_id\nown/0.jpg,kind0/00\n")
    done = imgrec("evaluate", "--products", table, "--bg-removal", "off", "--json")
    assert done.object["catalogue"] == str(inline_worker.toy.root)


def test_options_that_do_not_apply_are_refused(table: Path, imgrec: Run, tmp_path: Path) -> None:
    done = imgrec("evaluate", tmp_path / "shop", "--products", table, "--prompt", "a {}")
    assert done.code == 2
    assert "--products cannot be combined" in done.err
