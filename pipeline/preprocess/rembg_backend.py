"""What takes the place of the onnxruntime session inside rembg's; the rest is rembg's own code."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


class SessionAdapter:
    """An ONNX network of one input; has what rembg calls on an onnxruntime session.

    May be called from several threads: each call takes a place to compute, or waits for one.
    """

    def __init__(self, weights: Path, onnx_session: Any, threads: int, at_once: int) -> None:
        """Make ready for calls.

        Args:
            weights: the ONNX file.
            onnx_session: the session that this one takes the place of.
            threads: compute threads of one call.
            at_once: calls that compute at the same time.

        Raises:
            SetupError: the runtime cannot run the weights.
        """
        # By name, not by onnxruntime's own objects, which would keep its session alive.
        self._input = str(onnx_session.get_inputs()[0].name)
        self._output = str(onnx_session.get_outputs()[0].name)
        self._free: SimpleQueue[Any] = SimpleQueue()
        for place in self._places(weights, threads, at_once):
            self._free.put(place)

    def get_inputs(self) -> list[Any]:
        """Name the input."""
        return [SimpleNamespace(name=self._input)]

    def run(self, _: None, feed: dict[str, Array]) -> list[Array]:
        """Compute the first output, the only one that rembg looks at."""
        values = np.ascontiguousarray(feed[self._input], np.float32)
        place = self._free.get()
        try:
            return [self._compute(place, values)]
        finally:
            self._free.put(place)

    def _places(self, weights: Path, threads: int, at_once: int) -> Iterable[Any]:
        """Return what computes, one for each call at a time."""
        raise NotImplementedError

    def _compute(self, place: Any, values: Array) -> Array:
        """Return an array of its own: the place serves the next call at once."""
        raise NotImplementedError
