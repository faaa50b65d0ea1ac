"""`imgrec models` says what is known of common models, and which one is in use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from inline_worker import InlineWorker

from pipeline.embed.architecture import ARCHITECTURES
from pipeline.embed.known_models import KNOWN_MODELS

Run = Callable[..., Any]


def test_each_model_is_of_a_kind_that_is_loaded_and_its_words_are_those_of_the_kind() -> None:
    kinds = {each.name: each.has_words for each in ARCHITECTURES.values()}
    for model in KNOWN_MODELS:
        assert kinds[model.kind] is model.has_words, model.name
        assert model.dimension > 0
    assert len({model.name for model in KNOWN_MODELS}) == len(KNOWN_MODELS)


def test_no_figure_stands_without_its_source() -> None:
    for model in KNOWN_MODELS:
        assert (model.figure is None) == (model.source == "") == (model.figure_of == "")
        assert model.source.startswith("https://") or not model.source


def test_the_model_in_use_is_described_without_loading_it(
    inline_worker: InlineWorker, imgrec: Run, tmp_path: Path
) -> None:
    answer = imgrec("models", "--json").object
    assert answer["current"]["kind"] == "CLIP"
    assert answer["current"]["has_words"] is True
    assert answer["current"]["revision"].startswith("sha256:")
    assert {"DINOv2", "SigLIP"} <= set(answer["kinds"])
    tiny_models.make("dinov2", tmp_path / "dino")
    inline_worker.start_again(embedding_model=str(tmp_path / "dino"))
    done = imgrec("models")
    assert done.code == 0
    assert "(DINOv2, images only)" in done.err


@pytest.mark.parametrize(
    ("name", "kind"), [("openai/clip-vit-base-patch32", None), ("no hub name", None)]
)
def test_a_model_that_was_not_downloaded_is_not_guessed_at(
    inline_worker: InlineWorker, imgrec: Run, name: str, kind: str | None
) -> None:
    inline_worker.start_again(embedding_model=name)
    current = imgrec("models", "--json").object["current"]
    assert (current["name"], current["kind"], current["has_words"]) == (name, kind, None)
    assert "not downloaded" in imgrec("models").err


def test_the_one_in_use_is_marked(inline_worker: InlineWorker, imgrec: Run) -> None:
    inline_worker.start_again(embedding_model="facebook/dinov2-small")
    (row,) = [line for line in imgrec("models").out.splitlines() if "dinov2-small" in line]
    assert "*" in row
