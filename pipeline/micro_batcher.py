"""Let concurrent queries share one forward pass, without making a lone one wait."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import Overloaded

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Vector = NDArray[np.float32]
BUG_EXIT = 70  # sysexits.h: internal software error


class Batcher(Generic[Item]):
    """One thread that embeds whatever has gathered while the previous batch was computed."""

    def __init__(
        self, embed: Callable[[Sequence[Item]], NDArray[np.float32]], batch_size: int
    ) -> None:
        self._embed = embed
        self._batch_size = batch_size
        self._waiting: queue.Queue[tuple[Item, Future[Vector]]] = queue.Queue()
        self.thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self.thread.start()

    def embed(self, item: Item, timeout_s: float) -> Vector:
        """Return what `embed` gives for one item: of an image, the (d,) float32 unit vector.

        Raises:
            Overloaded: not within `timeout_s`.
        """
        future: Future[Vector] = Future()
        self._waiting.put((item, future))
        try:
            return future.result(timeout_s)
        except TimeoutError as error:
            if future.done():  # raised by `embed` itself
                raise
            raise Overloaded(
                f"The worker has more queries than it can answer: this one waited {timeout_s:g} s "
                "for the model. Ask again later, or start more workers with 'celery worker -Q "
                "query'."
            ) from error

    def _run(self) -> None:
        try:
            while True:
                batch = [self._waiting.get()]
                while len(batch) < self._batch_size:
                    try:
                        batch.append(self._waiting.get_nowait())
                    except queue.Empty:
                        break
                self._answer(batch)
        except BaseException:
            # Without this thread each query would time out in a process that looks healthy.
            log.critical("The embedding thread died; ending the process.", exc_info=True)
            os._exit(BUG_EXIT)

    def _answer(self, batch: list[tuple[Item, Future[Vector]]]) -> None:
        try:
            vectors = self._embed([item for item, _ in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            log.warning("A batch of %d failed (%s); trying each alone.", len(batch), error)
            for item in batch:
                self._answer([item])
            return
        for (_, future), vector in zip(batch, vectors, strict=True):
            future.set_result(vector)
