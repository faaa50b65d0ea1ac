"""Fetch the images of a store ahead of the threads that decode them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from pipeline.images.find import ImageFile
from pipeline.images.source import Read

# Fetched at the same time; of one image more, where it is larger than that.
FETCH_THREADS = 16
FETCH_BYTES = 64 * 1024**2


@contextmanager
def fetch_ahead(read: Read, images: Iterable[ImageFile]) -> Iterator[Read]:
    """Yield a function that returns what `read` does, of images that it has begun to read before.

    Args:
        images: in about the order in which they are asked for.
    """
    pool = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch")
    try:
        yield _Fetcher(read, images, pool).read
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class _Fetcher:
    """Fetches the images of one shard ahead of the threads that decode them."""

    def __init__(self, read: Read, images: Iterable[ImageFile], pool: ThreadPoolExecutor) -> None:
        self._read, self._pool = read, pool
        self._waiting = {image.path: image for image in images}
        self._fetching: dict[str, Future[bytes]] = {}
        self._bytes = 0
        self._turn = threading.Lock()

    def read(self, image: ImageFile) -> bytes:
        """Return an image's bytes, fetched ahead or now; raises what fetching it raised."""
        with self._turn:
            self._waiting.pop(image.path, None)
            future = self._fetching.pop(image.path, None)
            self._start()
        if future is None:
            return self._read(image)
        try:
            return future.result()
        finally:
            with self._turn:
                self._bytes -= image.size
                self._start()

    def _start(self) -> None:
        while self._waiting and len(self._fetching) < FETCH_THREADS:
            image = next(iter(self._waiting.values()))
            if self._bytes and self._bytes + image.size > FETCH_BYTES:
                return
            del self._waiting[image.path]
            self._bytes += image.size
            self._fetching[image.path] = self._pool.submit(self._read, image)
