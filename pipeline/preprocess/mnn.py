"""Run the networks of rembg in MNN on a CPU: the same masks in about half the time.

MNN computes a 3x3 convolution by Winograd's algorithm, with fewer multiplications than
onnxruntime's, in float32.

https://github.com/alibaba/MNN
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import SetupError
from pipeline.preprocess.rembg_backend import Array, SessionAdapter
from pipeline.settings import MIB

PACKAGE = "MNN"
# All of one shape of input. Larger networks were not tried.
MODELS = frozenset({"u2net", "u2netp", "u2net_human_seg", "silueta"})
# A session takes four times its weights, which it keeps transformed, and its activations: u2net
# 850 MB, u2netp 150. Where they do not fit into this, threads wait for each other's session.
ROOM = 2048 * MIB
TRANSFORMED, ACTIVATIONS = 4, 130 * MIB
# Not MNN.tools.mnnconvert: that reports each conversion to its makers.
CONVERT = "import _tools, sys; _tools.mnnconvert(sys.argv)"


def can_run(model: str) -> bool:
    """Tell whether MNN is installed and this page knows the rembg model."""
    return model in MODELS and find_spec(PACKAGE) is not None


class Network(SessionAdapter):
    """An ONNX network of one input in MNN."""

    def _places(self, weights: Path, threads: int, at_once: int) -> list[Any]:
        with _stdout_to_stderr():
            import MNN

        size = TRANSFORMED * weights.stat().st_size + ACTIVATIONS
        sessions = max(1, min(at_once, ROOM // size))
        options = {"backend": "CPU", "numThread": threads * (at_once // sessions)}
        try:
            with tempfile.TemporaryDirectory() as folder:
                self._net = MNN.Interpreter(str(_convert(weights, Path(folder))))
                made = [self._net.createSession(options) for _ in range(sessions)]
        except OSError as error:
            raise SetupError(f"MNN could not be made ready: {error}.") from error
        for session in made:
            self._net.runSession(session)  # what it allocates is a part of the model's memory
        return made

    def _compute(self, place: Any, values: Array) -> Array:
        import MNN

        self._net.getSessionInput(place, self._input).copyFrom(_tensor(MNN, values))
        self._net.runSession(place)
        output = self._net.getSessionOutput(place, self._output)
        found = np.zeros(output.getShape(), np.float32)
        held = _tensor(MNN, found)
        output.copyToHostTensor(held)
        return np.array(held.getNumpyData()).reshape(found.shape)


def _tensor(mnn: Any, values: Array) -> Any:
    return mnn.Tensor(values.shape, mnn.Halide_Type_Float, values, mnn.Tensor_DimensionType_Caffe)


def _convert(weights: Path, folder: Path) -> Path:
    """Convert an ONNX file; at each load anew, which takes less than checking a kept one."""
    made = folder / "network.mnn"
    command = [sys.executable, "-c", CONVERT, "-f", "ONNX", "--modelFile", str(weights)]
    command += ["--MNNModel", str(made), "--bizCode", "imgrec"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode or not made.exists():
        last = (done.stdout + done.stderr).strip().splitlines()[-1:]
        raise SetupError(
            f"MNN could not read {weights} ({' '.join(last)[:200]}): set "
            "REMBG_BACKEND=onnxruntime to work without MNN."
        )
    return made


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """MNN prints about the processor when imported; standard output is for the answer."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        with suppress(OSError, AttributeError, TypeError):  # no C library by that name
            ctypes.CDLL(None).fflush(None)  # into a pipe, C writes late
        os.dup2(kept, 1)
        os.close(kept)
