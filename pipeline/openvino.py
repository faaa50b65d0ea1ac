"""Run the networks of rembg in OpenVINO with bfloat16: half the time on a CPU that multiplies it.

Those are servers' from 2020 and 2022 on (Intel Cooper Lake, AMD Zen 4): instructions AVX512_BF16
and AMX. On others OpenVINO has no gain over MNN. `Network` takes the place of the onnxruntime
session inside rembg's, as MNN's does.

https://docs.openvino.ai/2026/openvino-workflow/running-inference/optimize-inference/precision-control.html
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SetupError

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


class Network:
    """An ONNX network of one input in OpenVINO; what rembg calls on an onnxruntime session."""

    def __init__(self, weights: Path, onnx_session: Any, threads: int, at_once: int) -> None:
        """Compile the network and make ready for calls from several threads.

        Args:
            weights: the ONNX file.
            onnx_session: the session that this one takes the place of.
            threads: compute threads of one call.
            at_once: calls that compute at the same time; others wait.

        Raises:
            SetupError: OpenVINO cannot read the weights.
        """
        import openvino

        self._input: str = onnx_session.get_inputs()[0].name
        options = {
            "INFERENCE_PRECISION_HINT": "bf16",
            "INFERENCE_NUM_THREADS": threads * at_once,
            "NUM_STREAMS": at_once,
            # Each process would bind its threads to the first cores, so all workers to the same.
            "ENABLE_CPU_PINNING": False,
        }
        self._free: SimpleQueue[Any] = SimpleQueue()
        try:
            core = openvino.Core()
            network = core.compile_model(core.read_model(weights), "CPU", options)
            for _ in range(at_once):
                request = network.create_infer_request()
                request.infer()  # what it allocates is a part of the model's memory
                self._free.put(request)
        except RuntimeError as error:
            first = str(error).strip().splitlines()[:1]
            raise SetupError(
                f"OpenVINO cannot run {weights} ({' '.join(first)[:200]}): set "
                "REMBG_BACKEND=onnxruntime to work without OpenVINO."
            ) from error

    def get_inputs(self) -> list[Any]:
        """Name the input."""
        return [SimpleNamespace(name=self._input)]

    def run(self, _: None, feed: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Compute the first output, the only one that rembg looks at."""
        request = self._free.get()
        try:
            values = np.ascontiguousarray(feed[self._input], np.float32)
            request.infer([values], share_inputs=True)
            return [np.array(request.get_output_tensor(0).data)]
        finally:
            self._free.put(request)
