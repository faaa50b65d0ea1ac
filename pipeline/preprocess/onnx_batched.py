"""Run rembg's network for several pictures at once, where that pays: on a GPU.

The exported files take one picture a call. Their graphs follow the input's size, so the first
dimension is set free when the file is loaded, and the threads that read ahead share one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import SetupError
from pipeline.micro_batcher import Batcher
from pipeline.preprocess.rembg_backend import Array, SessionAdapter

TIMEOUT_S = 120.0


class Network(SessionAdapter):
    """An ONNX network of one input and any number of pictures; rembg calls `run` with one."""

    def __init__(self, weights: Path, onnx_session: Any, threads: int, at_once: int) -> None:
        """Load the weights again, on the session's own device."""
        self._theirs: Any = onnx_session
        super().__init__(weights, onnx_session, threads, at_once)
        self._theirs = None  # its weights need not lie on the device twice

    def _places(self, weights: Path, threads: int, at_once: int) -> list[Any]:
        import onnx
        import onnxruntime

        model = onnx.load(weights)
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "pictures"
        del model.graph.value_info[:]  # shapes of what lies between, worked out for one picture
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(),
                self._theirs.get_session_options(),
                providers=self._theirs.get_providers(),
            )
            one = np.zeros(self._theirs.get_inputs()[0].shape[1:], np.float32)
            together = len(self._together([one, one])) == 2
        except Exception as error:  # onnxruntime's own kinds share no base
            first = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise SetupError(f"{weights.name} takes one picture at a time ({first}).") from error
        if not together:
            raise SetupError(f"{weights.name} takes one picture at a time.")
        return [Batcher(self._together, at_once)] * at_once

    def _compute(self, place: Batcher[Array], values: Array) -> Array:
        (picture,) = values
        return place.embed(picture, TIMEOUT_S)[None]

    def _together(self, pictures: Sequence[Array]) -> Array:
        found: Array = self._session.run([self._output], {self._input: np.stack(pictures)})[0]
        return found
