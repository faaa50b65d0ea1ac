"""Work that takes long shows a bar: on a terminal, and there only."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inline_worker import InlineWorker
from PIL import Image

from pipeline.errors import SetupError
from pipeline.store.cache import Cache

Run = Callable[..., Any]


@pytest.fixture
def shop(
    answers_here: InlineWorker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> InlineWorker:
    """A published shop, a table of it and a photo; its cache and query worker are this process."""

    monkeypatch.setattr(
        answers_here.toy,
        "embed_texts",
        lambda texts: np.ones((len(texts), 8), np.float32),
        raising=False,
    )
    monkeypatch.setattr(Cache, "describe", lambda self: (None, []))
    monkeypatch.chdir(tmp_path)
    answers_here.rebuild()
    Path("products.csv").write_text("product_id,price\nkind0/04,3\n")
    pixels = np.random.default_rng(9).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")
    return answers_here


@pytest.mark.parametrize(
    ("command", "bars"),
    [
        ("import-catalogue products.csv", ("reading", "importing")),
        ("add photo.png --product lamp", ("embedding", "adding")),
        ("cache warm", ("vectors", "texts")),
        ("index info", ("comparing digests",)),
        ("check --no-model", ("checking",)),
        ("prune", ("deleting",)),
        ("evaluate-index", ("searching",)),
    ],
)
def test_long_work_shows_a_bar_on_a_terminal(
    shop: InlineWorker,
    imgrec: Run,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    bars: tuple[str, ...],
) -> None:
    drawn = "━"
    assert drawn not in imgrec(*command.split()).err
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    done = imgrec(*command.split())
    assert "Error" not in done.err
    for bar in bars:
        assert re.search(rf"{bar} (\x1b\[\d+m)?{drawn}", done.err), bar
    quiet = imgrec(*command.split(), "--json")
    assert drawn not in quiet.err


def test_a_model_without_words_warms_the_vectors(
    shop: InlineWorker, imgrec: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(texts: Any) -> None:
        raise SetupError("The model has no words.")

    monkeypatch.setattr(shop.resources.clip, "embed_texts", fail)
    shop.memory.vectors.clear()
    done = imgrec("cache", "warm", "--json")
    assert done.code == 0
    assert done.object == {"vectors": 20, "texts": 0}
    assert len(shop.memory.vectors) == 20
    assert "No texts were cached: The model has no words." in done.err


def test_vectors_of_an_older_decoding_are_not_cached(
    shop: InlineWorker, imgrec: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.memory.vectors.clear()
    monkeypatch.setattr("cli.cache.DECODING", 1_000)
    done = imgrec("cache", "warm", "--json")
    assert done.object["vectors"] == 0
    assert not shop.memory.vectors
    assert "--full' makes new ones." in done.err


def test_a_broken_index_is_no_success_of_warming(shop: InlineWorker, imgrec: Run) -> None:
    (shop.toy.settings.index_dir / "CURRENT").write_text("nonsense")
    done = imgrec("cache", "warm")
    assert done.code == 1
    assert "imgrec index rollback VERSION" in done.err
