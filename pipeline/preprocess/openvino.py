"""Run the networks of rembg in OpenVINO with bfloat16: half the time on a CPU that multiplies it.

Those are servers' from 2020 and 2022 on (Intel Cooper Lake, AMD Zen 4): instructions AVX512_BF16
and AMX. On others OpenVINO has no gain over MNN.

https://docs.openvino.ai/2026/openvino-workflow/running-inference/optimize-inference/precision-control.html
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import SetupError
from pipeline.preprocess.rembg_backend import Array, SessionAdapter

log = logging.getLogger(__name__)

PACKAGE = "openvino"
# Not u2netp: of 24 photos of clothing, two masks fell below an IoU of 0.98. Others were not tried.
MODELS = frozenset({"u2net"})


def can_run(model: str) -> bool:
    """Tell whether OpenVINO is installed, this page knows the model and the CPU has bfloat16."""
    if model not in MODELS or find_spec(PACKAGE) is None:
        return False
    try:
        import openvino

        return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except (ImportError, RuntimeError) as error:
        log.warning("OpenVINO is installed, but does not start: %s", error)
        return False


class Network(SessionAdapter):
    """An ONNX network of one input in OpenVINO."""

    def _places(self, weights: Path, threads: int, at_once: int) -> list[Any]:
        import openvino

        options = {
            "INFERENCE_PRECISION_HINT": "bf16",
            "INFERENCE_NUM_THREADS": threads * at_once,
            "NUM_STREAMS": at_once,
            # Each process would bind its threads to the first cores, so all workers to the same.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            core = openvino.Core()
            network = core.compile_model(core.read_model(weights), "CPU", options)
            made = [network.create_infer_request() for _ in range(at_once)]
            for request in made:
                request.infer()  # what it allocates is a part of the model's memory
        except RuntimeError as error:
            first = str(error).strip().splitlines()[:1]
            raise SetupError(
                f"OpenVINO cannot run {weights} ({' '.join(first)[:200]}): set "
                "REMBG_BACKEND=onnxruntime to work without OpenVINO."
            ) from error
        return made

    def _compute(self, place: Any, values: Array) -> Array:
        place.infer([values], share_inputs=True)
        return np.array(place.get_output_tensor(0).data)
