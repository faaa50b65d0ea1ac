"""A network in onnxruntime, on the CPU and as on a GPU: several images in a forward pass."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from live_stack import until
from rembg_settings import WEIGHTS, settings

from pipeline.errors import SetupError
from pipeline.measure_once import probe_images
from pipeline.micro_batcher import Batcher
from pipeline.preprocess import onnx_runtime, u2net
from pipeline.preprocess.background_removal import iou, load_remover

pytestmark = pytest.mark.usefixtures("u2netp")

FILE = WEIGHTS / "u2netp.onnx"


@pytest.fixture
def cpu_as_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU pass for a GPU."""
    monkeypatch.setattr(onnx_runtime, "CUDA", "CPUExecutionProvider")


def test_a_call_uses_the_threads_it_was_given() -> None:
    session = onnx_runtime._start(str(FILE), 3, ["CPUExecutionProvider"])
    assert session.get_session_options().intra_op_num_threads == 3


def test_images_of_several_threads_share_a_forward_pass_and_each_gets_its_own_mask(
    cpu_as_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, go, batchers = list[int](), threading.Event(), list[Any]()

    class Slow(Batcher[Any]):
        """Computes only when told, and remembers how many images each batch had."""

        def __init__(self, embed: Any, batch_size: int) -> None:
            def wait(items: Sequence[Any]) -> Any:
                sizes.append(len(items))
                go.wait(60)
                return embed(items)

            super().__init__(wait, batch_size)
            batchers.append(self)

    monkeypatch.setattr(onnx_runtime, "Batcher", Slow)
    shared = u2net.make_remover("u2netp", onnx_runtime.load_on_gpu(FILE, 1, 3))
    images = probe_images()[:3]
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(shared, images[0])
        until(lambda: sizes == [1], "the first one is being computed")
        rest = [pool.submit(shared, image) for image in images[1:]]
        until(lambda: batchers[0]._waiting.qsize() == 2, "the others wait")
        go.set()
        masks = [each.result(120) for each in (first, *rest)]
    assert sizes == [1, 2]
    alone = u2net.make_remover("u2netp", onnx_runtime.load(FILE, 1))
    for image, mask in zip(images, masks, strict=True):
        assert iou(alone(image), mask) > 0.999
    assert len({mask.tobytes() for mask in masks}) == len(masks)


def test_a_gpu_is_used_by_all_threads_that_read(
    cpu_as_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(weights: Path, threads: int, at_once: int) -> Any:
        calls.append(at_once)
        return onnx_runtime.load(weights, threads)

    monkeypatch.setattr(onnx_runtime, "load_on_gpu", counted)
    for device in ("auto", "cuda"):
        load_remover(settings(tmp_path, "auto", device=device), threads=1, at_once=3)
    assert calls == [3, 3]
    load_remover(settings(tmp_path, "onnxruntime", device="cpu"), threads=1, at_once=3)
    assert calls == [3, 3]


def test_cuda_that_does_not_start_is_refused_when_requested_and_else_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onnx_runtime, "sees_gpu", lambda: True)
    with pytest.raises(SetupError, match="could not start on CUDA"):
        load_remover(settings(tmp_path, "auto", device="cuda"), threads=1)
    with caplog.at_level(logging.WARNING):
        remove = load_remover(settings(tmp_path, "onnxruntime", device="auto"), threads=1)
    assert "Background removal runs on the CPU. onnxruntime could not start" in caplog.text
    assert np.asarray(remove(probe_images()[0])).any()


def write_fixed(file: Path) -> None:
    """Write a network that is made for one image."""
    helper = onnx.helper
    shape = onnx.numpy_helper.from_array(np.array([1, 1, 12, 4], np.int64), "shape")
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "fixed",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 1, 12, 4])],
        [shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    file.write_bytes(model.SerializeToString())


def test_a_network_that_takes_one_image_still_runs_and_says_so(
    cpu_as_gpu: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_fixed(tmp_path / "fixed.onnx")
    with caplog.at_level(logging.WARNING):
        network = onnx_runtime.load_on_gpu(tmp_path / "fixed.onnx", 1, 2)
    assert "fixed.onnx takes one image at a time" in caplog.text
    assert network(np.ones((1, 3, 4, 4), np.float32)).shape == (1, 1, 12, 4)
