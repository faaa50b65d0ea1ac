"""The whole recipe of the bundled model, with few images and two steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.embed.clip import load_clip
from pipeline.settings import Settings
from tools.drawing import draw, sample_product
from tools.imgrec_mini import finish, pretrain_text, train
from tools.imgrec_mini.backbone import build_model

SMALL = {
    finish: {"PHOTOS": 8, "DRAWN": 8},
    pretrain_text: {"STEPS": 2},
    train: {
        "DRAWN": 24,
        "DRAWN_HELD_OUT": 8,
        "PHOTOS_IN_BATCH": 4,
        "DRAWN_IN_BATCH": 4,
        "LOG_EVERY": 1,
        "SAVE_EVERY": 1,
    },
}


@pytest.mark.slow
def test_training_writes_a_folder_that_loads_and_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, constants in SMALL.items():
        for name, value in constants.items():
            monkeypatch.setattr(module, name, value)
    for number in range(20):
        product = sample_product(np.random.default_rng(number))
        folder = tmp_path / "photos" / ("shoes", "pants")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        draw(product, 96).save(folder / f"{number}.png")
    torch.manual_seed(0)
    backbone = tmp_path / "backbone.pt"
    vision = build_model(10, train.SIDE).vision_model
    for layer in vision.modules():
        if isinstance(layer, torch.nn.Conv2d):  # as initialised by transformers, all would be zero
            torch.nn.init.kaiming_normal_(layer.weight)
    torch.save(vision.state_dict(), backbone)

    places = (tmp_path / "photos", backbone, tmp_path / "out", tmp_path / "work")
    train.train(*places, steps=1)
    first = torch.load(tmp_path / "work" / "checkpoint.pt", weights_only=True)
    train.train(*places, steps=2)
    second = torch.load(tmp_path / "work" / "checkpoint.pt", weights_only=True)
    assert (first["step"], second["step"]) == (1, 2)
    assert second["curves"]["text"][0] == first["curves"]["text"][0]  # goes on, starts not anew

    clip = load_clip(Settings(_env_file=None, embedding_model=str(tmp_path / "out"), device="cpu"))
    vectors = clip.embed_texts(["a red shoe", "a shoe"])
    assert vectors.shape == (2, finish.DIM)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
