"""Run a U2-Net in OpenVINO with bfloat16: half the time on a CPU that multiplies it.

Those are servers from 2020 and 2022 on (Intel Cooper Lake, AMD Zen 4): instructions AVX512_BF16 and
AMX. On others OpenVINO takes as long as onnxruntime.

https://docs.openvino.ai/2026/openvino-workflow/running-inference/optimize-inference/precision-control.html
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from pipeline.errors import SetupError, one_line
from pipeline.preprocess.u2net import Array, Network

log = logging.getLogger(__name__)

PACKAGE = "openvino"
# Not u2netp: of 24 photos of clothing, two masks fell below an IoU of 0.98. Others were not tried.
MODELS = frozenset({"u2net"})


def can_run(model: str) -> bool:
    """Tell whether OpenVINO is installed and starts, serves the model and the CPU has bfloat16."""
    if model not in MODELS or find_spec(PACKAGE) is None:
        return False
    try:
        import openvino

        return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except (ImportError, RuntimeError) as error:
        log.warning("OpenVINO is installed, but does not start: %s", error)
        return False


def load(weights: Path, threads: int, at_once: int) -> Network:
    """Load a network.

    Args:
        threads: compute threads of one call.
        at_once: calls that compute at the same time; more wait for each other.

    Raises:
        SetupError: OpenVINO cannot run the weights.
    """
    requests: SimpleQueue[Any] = SimpleQueue()
    try:
        compiled = _compile(weights, threads, at_once)
        for _ in range(at_once):
            request = compiled.create_infer_request()
            request.infer()  # allocates its memory now, with the rest of the model's
            requests.put(request)
    except RuntimeError as error:
        raise SetupError(
            f"OpenVINO cannot run {weights} ({one_line(error)}): set "
            "REMBG_BACKEND=onnxruntime to work without OpenVINO."
        ) from error

    def network(images: Array) -> Array:
        request = requests.get()
        try:
            request.infer([images], share_inputs=True)
            return np.array(request.get_output_tensor(0).data)
        finally:
            requests.put(request)

    return network


def _compile(weights: Path, threads: int, at_once: int) -> Any:
    import openvino

    options = {
        "INFERENCE_PRECISION_HINT": "bf16",
        "INFERENCE_NUM_THREADS": threads * at_once,
        "NUM_STREAMS": at_once,
        # Each process would pin its threads to the first cores, so all workers to the same ones.
        "ENABLE_CPU_PINNING": False,
    }
    core = openvino.Core()
    return core.compile_model(core.read_model(weights), "CPU", options)
