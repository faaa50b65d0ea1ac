"""Background removal in OpenVINO: nearly rembg's own masks, and the fastest where it can run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
from rembg_settings import WEIGHTS, settings

from pipeline.errors import SetupError
from pipeline.measure_once import probe_images
from pipeline.preprocess import background_removal, onnx_runtime, openvino, u2net
from pipeline.preprocess.background_removal import iou, load_remover

FILE = WEIGHTS / "u2netp.onnx"
needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="OpenVINO is only for x86-64"
)

pytestmark = pytest.mark.usefixtures("u2netp")


@needs_openvino
def test_the_masks_are_nearly_onnxruntime_s_also_from_several_threads_at_once() -> None:
    """With u2netp, whose masks bfloat16 changes most, so that it needs no large weights."""
    exact = u2net.make_remover("u2netp", onnx_runtime.load(FILE, 1))
    other = u2net.make_remover("u2netp", openvino.load(FILE, 1, 2))
    images = probe_images()[:4]
    with ThreadPoolExecutor(3) as pool:
        masks = list(pool.map(other, images))
    for image, mask in zip(images, masks, strict=True):
        assert iou(exact(image), mask) > 0.95
    assert len({mask.tobytes() for mask in masks}) == len(masks)


@needs_openvino
def test_its_threads_are_pinned_to_no_core() -> None:
    """Each worker of a machine would pin its own to the same first cores.

    Asked of OpenVINO: it pins now and then only, so affinities show it in some runs.
    """
    assert openvino._compile(FILE, 1, 1).get_property("ENABLE_CPU_PINNING") is False


@needs_openvino
def test_weights_that_it_cannot_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "u2netp.onnx").write_bytes(b"no network")
    with pytest.raises(SetupError, match=r"run .*u2netp.onnx .*set REMBG_BACKEND=onnxruntime"):
        openvino.load(tmp_path / "u2netp.onnx", 1, 1)


def test_requested_by_name_it_is_never_left_out_silently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_removal, "find_spec", lambda name: True)
    for more in ({"rembg_model": "u2netp"}, {"rembg_model": "u2net", "device": "cuda"}):
        with pytest.raises(SetupError, match=r"REMBG_BACKEND=openvino is for u2net on a CPU"):
            load_remover(settings(tmp_path, "openvino", **more), threads=1)
    monkeypatch.setattr(openvino, "can_run", lambda model: False)
    with pytest.raises(SetupError, match="needs a CPU with bfloat16"):
        load_remover(settings(tmp_path, "openvino", rembg_model="u2net"), threads=1)
