"""Run a U2-Net in onnxruntime: on a CPU, the reference of all others, or on a GPU.

On a GPU, images that several threads read share a forward pass. The exported files take one image
per call, but their graphs follow the input's shape: the first dimension is made variable on load.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import SetupError, one_line
from pipeline.micro_batcher import Batcher
from pipeline.preprocess.u2net import Array, Network

log = logging.getLogger(__name__)

CUDA = "CUDAExecutionProvider"
TIMEOUT_S = 120.0


def sees_gpu() -> bool:
    """Tell whether onnxruntime could run on a GPU here."""
    import onnxruntime

    return CUDA in onnxruntime.get_available_providers()


def load(weights: Path, threads: int) -> Network:
    """Load a network on the CPU; each call uses as many threads."""
    return _network(_start(str(weights), threads, ["CPUExecutionProvider"]))


def load_on_gpu(weights: Path, threads: int, at_once: int) -> Network:
    """Load a network on the GPU; the images of up to `at_once` calls share a forward pass.

    Raises:
        SetupError: onnxruntime does not start on CUDA.
    """
    providers = [CUDA, "CPUExecutionProvider"]
    session = _start(str(weights), threads, providers)
    require_cuda(session)
    if at_once == 1:
        return _network(session)
    try:
        return _batched(_start(_with_variable_batch(weights), threads, providers), at_once)
    except Exception as error:  # onnxruntime's own kinds share no base
        log.warning("%s takes one image at a time (%s).", weights.name, one_line(error))
        return _network(session)


def require_cuda(session: Any) -> None:
    """Check that a session runs on CUDA: onnxruntime falls back to the CPU silently.

    Raises:
        SetupError: it does not.
    """
    if CUDA not in session.get_providers():
        raise SetupError(
            "onnxruntime could not start on CUDA: its CUDA and cuDNN libraries are missing or of "
            "another version. Install the right ones, or set DEVICE=cpu."
        )


def _start(model: str | bytes, threads: int, providers: Sequence[str]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=list(providers))


def _network(session: Any) -> Network:
    """Return the function that computes the first output: the finest of a U2-Net's masks."""
    (source,), mask = session.get_inputs(), session.get_outputs()[0]

    def network(images: Array) -> Array:
        masks: Array = session.run([mask.name], {source.name: images})[0]
        return masks

    return network


def _batched(session: Any, at_once: int) -> Network:
    """Return a function for single images that computes those of several threads together.

    Raises:
        SetupError: the network takes one image at a time.
    """
    network = _network(session)
    shape = session.get_inputs()[0].shape
    if len(network(np.zeros((2, *shape[1:]), np.float32))) != 2:
        raise SetupError("its outputs are those of one image")
    batcher: Batcher[Array] = Batcher(lambda images: network(np.stack(images)), at_once)
    return lambda images: np.stack([batcher.embed(image, TIMEOUT_S) for image in images])


def _with_variable_batch(weights: Path) -> bytes:
    """Return an ONNX file with the first dimension of inputs and outputs set free."""
    import onnx

    model = onnx.load(weights)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "images"
    del model.graph.value_info[:]  # shapes of intermediate results, inferred for one image
    return bytes(model.SerializeToString())
