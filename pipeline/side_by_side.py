"""Run rembg's network for several pictures at once, where that pays: on a GPU.

The exported files take one picture a call. Their graphs follow the input's size, so the first
dimension is set free when the file is loaded, and the threads that read ahead share one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.batcher import Batcher
from pipeline.errors import SetupError

Array = NDArray[np.float32]

TIMEOUT_S = 120.0


class Network:
    """An ONNX network of one input and any number of pictures; rembg calls `run` with one."""

    def __init__(self, weights: Path, onnx_session: Any, at_once: int) -> None:
        """Load the weights again, on the session's own device.

        Args:
            weights: the ONNX file.
            onnx_session: the session that this one takes the place of.
            at_once: pictures in one call, at most: the threads that call.

        Raises:
            SetupError: the network takes no more than one picture.
        """
        import onnx
        import onnxruntime

        asked, given = onnx_session.get_inputs()[0], onnx_session.get_outputs()[0]
        self._input, self._output = str(asked.name), str(given.name)
        model = onnx.load(weights)
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "pictures"
        del model.graph.value_info[:]  # shapes of what lies between, worked out for one picture
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(),
                onnx_session.get_session_options(),
                providers=onnx_session.get_providers(),
            )
            two = self._compute([np.zeros(asked.shape[1:], np.float32)] * 2)
        except Exception as error:  # onnxruntime's own kinds share no base
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise SetupError(
                f"{weights.name} takes one picture at a time ({first[:200]})."
            ) from error
        if len(two) != 2:
            raise SetupError(f"{weights.name} takes one picture at a time.")
        self._batcher: Batcher[Array] = Batcher(self._compute, at_once)

    def get_inputs(self) -> list[Any]:
        """Name the input."""
        return [SimpleNamespace(name=self._input)]

    def run(self, _: None, feed: dict[str, Array]) -> list[Array]:
        """Compute the first output, the only one that rembg looks at."""
        (values,) = feed[self._input]
        return [self._batcher.embed(np.asarray(values, np.float32), TIMEOUT_S)[None]]

    def _compute(self, pictures: Sequence[Array]) -> Array:
        found: Array = self._session.run([self._output], {self._input: np.stack(pictures)})[0]
        return found
