"""Run a U2-Net in MNN on a CPU without bfloat16: the same masks in about half the time.

MNN computes a 3x3 convolution by Winograd's algorithm, with fewer multiplications than the other
runtimes, in float32. On two cores of an AMD EPYC with AVX2 alone, `u2net` took 1.7 to 2.0 times as
much CPU time in onnxruntime and 1.7 to 1.8 times in OpenVINO's float32, `u2netp` 1.5 and 1.4 times.

https://github.com/alibaba/MNN
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from pipeline.errors import SetupError
from pipeline.preprocess.u2net import Array, Network
from pipeline.settings import MIB

PACKAGE = "MNN"
# All of one shape of input. Larger networks were not tried.
MODELS = frozenset({"u2net", "u2netp", "u2net_human_seg", "silueta"})
# A session takes four times its weights, which it keeps transformed, and its activations: u2net
# 850 MB, u2netp 150. With less memory than for one each, threads wait for each other's session.
MEMORY_LIMIT = 2048 * MIB
TRANSFORMED, ACTIVATIONS = 4, 130 * MIB
# Not MNN.tools.mnnconvert: that reports each conversion to its makers.
CONVERT = "import _tools, sys; _tools.mnnconvert(sys.argv)"
CONVERT_TIMEOUT_S = 120.0  # u2net took 16 s on a busy machine


def can_run(model: str) -> bool:
    """Tell whether MNN is installed and serves the model."""
    return model in MODELS and find_spec(PACKAGE) is not None


def load(weights: Path, threads: int, at_once: int) -> Network:
    """Load a network.

    Args:
        threads: compute threads of one call.
        at_once: calls that compute at the same time; more wait for each other.

    Raises:
        SetupError: MNN cannot run the weights.
    """
    with _c_stdout_to_stderr():
        import MNN
    import onnx

    graph = onnx.load(weights).graph
    source, mask = graph.input[0].name, graph.output[0].name
    n_sessions = max(1, min(at_once, MEMORY_LIMIT // _session_bytes(weights)))
    options = {"backend": "CPU", "numThread": threads * (at_once // n_sessions)}
    sessions: SimpleQueue[Any] = SimpleQueue()
    try:
        with tempfile.TemporaryDirectory() as folder:
            interpreter = MNN.Interpreter(str(_convert(weights, Path(folder))))
            for _ in range(n_sessions):
                session = interpreter.createSession(options)
                interpreter.runSession(session)  # allocates its memory now
                sessions.put(session)
    except OSError as error:
        raise SetupError(f"MNN could not be prepared: {error}.") from error

    def tensor(values: Array) -> Any:
        layout = MNN.Tensor_DimensionType_Caffe
        return MNN.Tensor(values.shape, MNN.Halide_Type_Float, values, layout)

    def network(images: Array) -> Array:
        session = sessions.get()
        try:
            interpreter.getSessionInput(session, source).copyFrom(tensor(images))
            interpreter.runSession(session)
            output = interpreter.getSessionOutput(session, mask)
            masks = tensor(np.zeros(output.getShape(), np.float32))
            output.copyToHostTensor(masks)
            return np.array(masks.getNumpyData()).reshape(output.getShape())
        finally:
            sessions.put(session)

    return network


def _session_bytes(weights: Path) -> int:
    return TRANSFORMED * weights.stat().st_size + ACTIVATIONS


def _convert(weights: Path, folder: Path) -> Path:
    """Convert an ONNX file; on each load, which takes less than validating a cached one.

    Raises:
        SetupError: MNN cannot read the file, or not within the time limit.
    """
    converted = folder / "network.mnn"
    command = [sys.executable, "-c", CONVERT, "-f", "ONNX", "--modelFile", str(weights)]
    command += ["--MNNModel", str(converted), "--bizCode", "imgrec"]
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=CONVERT_TIMEOUT_S
        )
        reason = " ".join((process.stdout + process.stderr).strip().splitlines()[-1:])
    except subprocess.TimeoutExpired:
        reason = f"its converter did not end within {CONVERT_TIMEOUT_S:g} s"
    if not converted.exists():
        raise SetupError(
            f"MNN could not read {weights} ({reason[:200]}): set REMBG_BACKEND=onnxruntime to work "
            "without MNN."
        )
    return converted


@contextmanager
def _c_stdout_to_stderr() -> Iterator[None]:
    """Let C code print to standard error: MNN prints about the processor when it is imported.

    Swaps the C library's `stdout` variable, not a file descriptor: what Python prints meanwhile,
    from any thread, is not affected.
    """
    try:
        libc = ctypes.CDLL(None)
        names = ("__stdoutp", "__stderrp") if sys.platform == "darwin" else ("stdout", "stderr")
        stdout, stderr = (ctypes.c_void_p.in_dll(libc, name) for name in names)
    except (TypeError, ValueError):  # Windows; a C library without such variables
        yield
        return
    original = stdout.value
    stdout.value = stderr.value
    try:
        yield
    finally:
        stdout.value = original
