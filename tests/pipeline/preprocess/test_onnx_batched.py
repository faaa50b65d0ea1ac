"""Several pictures in one call of rembg's network; tried on a CPU, meant for a GPU."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from live_stack import until
from rembg_settings import WEIGHTS, settings

from pipeline.errors import SetupError
from pipeline.measure_once import probe_images
from pipeline.preprocess import background_removal, onnx_batched
from pipeline.preprocess.background_removal import _remover, iou, load_remover

pytestmark = pytest.mark.usefixtures("u2netp")


class Slow(onnx_batched.Network):
    """Computes only when told, and remembers how many pictures each call had."""

    def __init__(self, *args: Any) -> None:
        self.go, self.sizes = threading.Event(), list[int]()
        self.go.set()
        super().__init__(*args)

    def _places(self, *args: Any) -> Any:
        places = super()._places(*args)
        self.waiting = places[0]._waiting
        return places

    def _together(self, pictures: Sequence[Any]) -> Any:
        self.sizes.append(len(pictures))
        self.go.wait(30)
        return super()._together(pictures)


def test_pictures_that_come_together_share_a_call_and_each_gets_its_own_mask() -> None:
    alone = background_removal._load_session("u2netp", 1, "cpu")
    shared = background_removal._load_session("u2netp", 1, "cpu")
    network = shared.inner_session = Slow(WEIGHTS / "u2netp.onnx", alone.inner_session, 1, 5)
    network.sizes.clear()
    network.go.clear()
    pictures = probe_images()[:5]
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(_remover(shared), pictures[0])
        until(lambda: network.sizes == [1], "the first one is being computed")
        rest = [pool.submit(_remover(shared), each) for each in pictures[1:]]
        until(lambda: network.waiting.qsize() == 4, "the others wait")
        network.go.set()
        masks = [each.result(60) for each in (first, *rest)]
    assert network.sizes == [1, 4]
    for picture, mask in zip(pictures, masks, strict=True):
        assert iou(_remover(alone)(picture), mask) > 0.999
    assert len({mask.tobytes() for mask in masks}) == len(masks)


def test_on_a_gpu_the_threads_that_read_share_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    class Counted(onnx_batched.Network):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(args[-1])

    monkeypatch.setattr(onnx_batched, "Network", Counted)
    monkeypatch.setattr(background_removal, "_on_gpu", lambda session: True)
    picture = probe_images()[0]
    one_by_one = load_remover(settings(tmp_path, "auto"), threads=1)(picture)
    assert made == []
    assert (
        iou(one_by_one, load_remover(settings(tmp_path, "auto"), threads=1, at_once=3)(picture))
        > 0.999
    )
    assert made == [3]


def fixed(file: Path) -> onnxruntime.InferenceSession:
    """Write a network that is made for one picture."""
    helper = onnx.helper
    shape = onnx.numpy_helper.from_array(np.array([1, 48], np.int64), "shape")
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "fixed",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 48])],
        [shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    file.write_bytes(model.SerializeToString())
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def test_a_network_that_takes_one_picture_goes_on_so_and_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    session = fixed(tmp_path / "fixed.onnx")
    with pytest.raises(SetupError, match=r"fixed\.onnx takes one picture at a time"):
        onnx_batched.Network(tmp_path / "fixed.onnx", session, 1, 2)

    def no(*_: Any) -> None:
        raise SetupError("u2netp.onnx takes one picture at a time.")

    monkeypatch.setattr(onnx_batched, "Network", no)
    monkeypatch.setattr(background_removal, "_on_gpu", lambda session: True)
    with caplog.at_level(logging.WARNING):
        mask = load_remover(settings(tmp_path, "auto"), threads=1, at_once=2)(probe_images()[0])
    assert "goes on one by one" in caplog.text
    assert np.asarray(mask).any()
