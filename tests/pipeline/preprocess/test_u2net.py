"""Our way from an image to a mask is rembg's, to the last bit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rembg_settings import WEIGHTS

from pipeline.measure_once import probe_images
from pipeline.preprocess import onnx_runtime, rembg_models, u2net


def images() -> list[Image.Image]:
    rng = np.random.default_rng(3)
    noise = Image.fromarray(rng.integers(0, 256, (90, 401, 3), dtype=np.uint8))
    dark = Image.fromarray(rng.integers(0, 40, (333, 50, 3), dtype=np.uint8))
    black = Image.new("RGB", (30, 40))
    return [probe_images()[0], noise, dark, black, noise.convert("L"), noise.resize((1, 1))]


def network(tensor: np.ndarray) -> np.ndarray:
    """Compute something that depends on every value, and on its place."""
    ramp = np.linspace(0, 1, tensor.shape[-1], dtype=np.float32)
    return np.sin(tensor[:, :1] + 2 * tensor[:, 1:2] - tensor[:, 2:] + ramp)


@pytest.mark.parametrize("model", sorted(u2net.MODELS))
def test_masks_are_those_of_rembg_s_own_predict(model: str) -> None:
    cls = rembg_models.session_class(model)
    session = cls.__new__(cls)
    session.inner_session = SimpleNamespace(
        get_inputs=lambda: [SimpleNamespace(name="x")], run=lambda _, feed: [network(feed["x"])]
    )
    remove = u2net.make_remover(model, network)
    for image in images():
        (expected,) = session.predict(image)
        mask = remove(image)
        assert (mask.mode, mask.size) == ("L", image.size)
        assert np.array_equal(mask, expected)


@pytest.mark.usefixtures("u2netp")
def test_masks_of_the_real_u2netp_are_rembg_s() -> None:
    theirs = rembg_models.load_remover("u2netp", 1, "cpu")
    ours = u2net.make_remover("u2netp", onnx_runtime.load(WEIGHTS / "u2netp.onnx", 1))
    for image in images()[:3]:
        assert np.array_equal(ours(image), theirs(image))


def test_a_network_that_finds_nothing_gives_an_empty_mask() -> None:
    def blank(tensor: np.ndarray) -> Any:
        return np.full((len(tensor), 1, 320, 320), 0.5, np.float32)

    mask = u2net.make_remover("u2net", blank)(Image.new("RGB", (8, 9)))
    assert mask.size == (8, 9)
    assert mask.getextrema() == (0, 0)
