"""A shop for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from rembg_settings import WEIGHTS
from toy_pipeline import ToyPipeline

from pipeline.settings import Settings


@pytest.fixture
def toy(settings: Settings, tmp_path: Path) -> ToyPipeline:
    toy = ToyPipeline(settings, tmp_path)
    for number in range(30):
        toy.draw(f"kind{number % 2}/{number:02d}.png", seed=number)
    return toy


@pytest.fixture
def u2netp(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (WEIGHTS / "u2netp.onnx").is_file(), "`make weights` fetches models/u2net/u2netp.onnx"
    monkeypatch.setenv("U2NET_HOME", str(WEIGHTS))
