"""The runtime of background removal is the fastest one that computes the same masks."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rembg_settings import settings

from pipeline.errors import SetupError
from pipeline.measure_once import Candidate, probe_images
from pipeline.preprocess import background_removal, mnn, onnx_runtime
from pipeline.preprocess.background_removal import MASK_BOUND, iou, load_remover

pytestmark = pytest.mark.usefixtures("u2netp")


class Marker:
    """A backend whose masks are the first rows of an image, so that one sees who computed them."""

    MODELS = frozenset({"u2netp"})

    def __init__(self, package: str, rows: int) -> None:
        self.PACKAGE, self.rows, self.loads = package, rows, 0

    def can_run(self, model: str) -> bool:
        return True

    def load(self, weights: Path, threads: int, at_once: int) -> Any:
        self.loads += 1

        def network(images: np.ndarray) -> np.ndarray:
            masks = np.zeros((len(images), 1, 320, 320), np.float32)
            masks[:, :, : self.rows] = 1
            return masks

        return network


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> dict[str, Marker]:
    backends = {"mnn": Marker("numpy", 10), "openvino": Marker("pillow", 20)}
    monkeypatch.setattr(background_removal, "BACKENDS", backends)
    return backends


def measured(monkeypatch: pytest.MonkeyPatch, **candidates: tuple[float, float]) -> list[str]:
    """Let measurements give these agreements and speed-ups; return the list of those made."""
    names: list[str] = []

    def compare(model: str, exact: Any, name: str, *_: Any) -> Candidate:
        names.append(name)
        return Candidate(name, *candidates[name])

    monkeypatch.setattr(background_removal, "_compare", compare)
    return names


@pytest.mark.parametrize(
    ("speedups", "agreements", "rows"),
    [
        ((1.5, 2.0), (1.0, 1.0), 20),
        ((2.5, 2.0), (1.0, 1.0), 10),
        ((1.5, 2.0), (1.0, 0.9), 10),  # the faster one computes other masks
        ((1.1, 1.0), (1.0, 1.0), None),  # neither gains
    ],
)
def test_the_fastest_of_those_that_compute_the_same_masks_is_used(
    speedups: tuple[float, float],
    agreements: tuple[float, float],
    rows: int | None,
    backends: dict[str, Marker],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs = zip(agreements, speedups, strict=True)
    measured(monkeypatch, **dict(zip(backends, pairs, strict=True)))
    image = probe_images()[0].resize((320, 320))
    mask = np.asarray(load_remover(settings(tmp_path, "auto"), threads=1)(image))
    if rows is None:
        plain = load_remover(settings(tmp_path, "onnxruntime"), threads=1)(image)
        assert np.array_equal(mask, plain)
    else:
        assert (mask.max(axis=1) > 127).sum() == rows


def test_a_measurement_is_remembered_in_a_file_of_its_own(
    backends: dict[str, Marker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = measured(monkeypatch, mnn=(1.0, 2.0), openvino=(1.0, 1.5))
    for _ in range(2):
        load_remover(settings(tmp_path, "auto"), threads=1)
    assert names == ["mnn", "openvino"]
    # The second time, only the one that is used is loaded, not even onnxruntime's.
    assert [each.loads for each in backends.values()] == [2, 1]
    monkeypatch.setattr(onnx_runtime, "load", None)
    load_remover(settings(tmp_path, "auto"), threads=1)
    assert len(json.loads((tmp_path / "rembg_backend.json").read_text())) == 2
    assert not (tmp_path / "precision.json").exists()


def test_a_measurement_belongs_to_weights_threads_and_versions(
    backends: dict[str, Marker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = measured(monkeypatch, mnn=(1.0, 2.0))
    backends.pop("openvino")
    load_remover(settings(tmp_path, "auto"), threads=1)
    load_remover(settings(tmp_path, "auto"), threads=2)
    load_remover(settings(tmp_path, "auto"), threads=1, at_once=2)
    backends["mnn"].PACKAGE = "pillow"
    load_remover(settings(tmp_path, "auto"), threads=1)
    load_remover(settings(tmp_path, "auto"), threads=1)
    assert len(names) == 4


def test_a_backend_without_a_gain_is_not_loaded_again(
    backends: dict[str, Marker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, mnn=(1.0, 1.05), openvino=(1.0, 1.0))
    for _ in range(2):
        load_remover(settings(tmp_path, "auto"), threads=1)
    assert [each.loads for each in backends.values()] == [1, 1]


def test_other_masks_are_never_used(
    backends: dict[str, Marker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_removal, "MASK_PROBES", 1)
    image = probe_images()[0]
    expected = load_remover(settings(tmp_path, "onnxruntime"), threads=1)(image)
    assert np.array_equal(load_remover(settings(tmp_path, "auto"), threads=1)(image), expected)
    with pytest.raises(SetupError, match=rf"different masks .*{MASK_BOUND}.*REMBG_BACKEND=auto"):
        load_remover(settings(tmp_path, "mnn"), threads=1)


def test_weights_that_a_backend_cannot_read_are_onnxruntime_s_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mnn, "CONVERT", "import sys; sys.exit('no such operator')")
    with caplog.at_level(logging.WARNING):
        remove = load_remover(settings(tmp_path, "auto"), threads=1)
    assert "continues without MNN" in caplog.text
    assert np.asarray(remove(probe_images()[0])).any()
    with pytest.raises(SetupError, match=r"no such operator\): set REMBG_BACKEND=onnxruntime"):
        load_remover(settings(tmp_path, "mnn"), threads=1)


def test_a_backend_that_no_longer_loads_is_replaced_by_onnxruntime(
    backends: dict[str, Marker],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: Any) -> None:
        raise SetupError("MNN has no memory.")

    measured(monkeypatch, mnn=(1.0, 2.0), openvino=(1.0, 1.0))
    load_remover(settings(tmp_path, "auto"), threads=1)
    monkeypatch.setattr(backends["mnn"], "load", fail)
    with caplog.at_level(logging.WARNING):
        remove = load_remover(settings(tmp_path, "auto"), threads=1)
    assert "continues in onnxruntime. MNN has no memory." in caplog.text
    assert np.asarray(remove(probe_images()[0])).any()


def test_the_iou_of_masks_is_that_of_their_foregrounds() -> None:
    left, top, empty = (Image.new("L", (4, 4)) for _ in range(3))
    left.paste(255, (0, 0, 2, 4))
    top.paste(255, (0, 0, 4, 2))
    assert iou(left, left) == iou(empty, empty) == 1
    assert iou(left, top) == pytest.approx(4 / 12)
    assert iou(left, empty) == 0
