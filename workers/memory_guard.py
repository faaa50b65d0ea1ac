"""Keep a worker below WORKER_MAX_MEMORY: a ceiling for one image, an end for a leak.

Three bounds, from the inside out. Images share a `MemoryBudget`, each takes what its
header says that it may cost. What costs more than it says meets the kernel's ceiling, and fails
alone, with a MemoryError. And a worker that stays close to the limit although no image is to
blame gives its work back and ends; who watches over it, `imgrec up` or Compose, starts it anew.

Not bounded: mapped files, which the kernel may drop; the memory of a GPU. Without the ceiling are
workers on CUDA, which asks for far more address space than it uses, and workers of queue `index`
alone, as FAISS does not survive a failed allocation: a merge is measured before it begins.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.cgroup import memory_limit
from pipeline.errors import JobFailed, SetupError
from pipeline.images.decode_cost import BYTES_PER_PIXEL
from pipeline.images.memory_budget import (
    SHARE_OF_CONTAINER,
    MemoryBudget,
    data_segment_bytes,
    default_limit,
    format_bytes,
    trim_heap,
    used_bytes,
)
from pipeline.settings import MIB, Settings
from workers.watchdog import Watchdog

log = logging.getLogger(__name__)

HIGH_WATERMARK = 0.9  # of the limit: above it, a worker that rests has leaked
POLL_S = 0.5
LEAK_S = 10.0  # above the line for so long; images come and go in less
GRACE_S = 60.0  # for tasks to end by themselves
MIN_HEADROOM = 256 * MIB  # beside the models: a batch of small images
IMAGES_SHARE = 0.5  # of what the models leave; the rest is for their own work on a batch
BUILD_FACTOR = 2.0  # an index while it is built, by its vectors: lists grow by doubling


class MemoryGuard:
    """The memory limit of this process; without effect until `start`, which only a worker calls."""

    def __init__(self, settings: Settings, stopping: threading.Event, watchdog: Watchdog) -> None:
        self.budget = MemoryBudget()  # shared by all images that this process decodes
        self.shutting_down = threading.Event()  # set when this worker ends because of its memory
        self._settings = settings
        self._stopping = stopping
        self._watchdog = watchdog
        self._is_worker = threading.Event()
        self._busy = threading.Lock()  # held by work whose memory is no leak
        self._lock = threading.Lock()  # for what follows
        self._loaded: set[str] = set()  # queues whose models are loaded
        self._queues: set[str] = set()  # those whose models are within the limit
        # The limit and the high watermark in bytes, once the models are loaded.
        self._limits: tuple[int, int] | None = None

    def start(self) -> None:
        """Watch over this process from here on: it is a worker."""
        with self._lock:
            self._is_worker.set()
            loaded = sorted(self._loaded)
        for queue in loaded:  # before the worker was ready
            try:
                self.apply_limit(queue)
            except SetupError as error:
                log.error("%s", error)  # its first task will say it, too
        if self._settings.worker_max_memory == 0 or used_bytes() is None:
            return
        thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        thread.start()
        self._watchdog.register_thread(thread)

    @property
    def is_worker(self) -> bool:
        return self._is_worker.is_set()

    def apply_limit(self, queue: str) -> None:
        """Set the ceiling and the images' budget, once the models of a queue are loaded.

        Raises:
            SetupError: WORKER_MAX_MEMORY is less than the models take.
        """
        if queue in self._queues:
            return
        with self._lock:
            self._loaded.add(queue)
            if self.is_worker and queue not in self._queues:
                self._apply_limit(queue)

    def _apply_limit(self, queue: str) -> None:
        settings, base = self._settings, data_segment_bytes()
        if base is None or settings.worker_max_memory == 0:
            return
        limit: int | None = settings.worker_max_memory
        if limit is None:
            # Nobody asked for a limit: it is never less than any allowed image needs.
            largest = BYTES_PER_PIXEL * settings.max_image_pixels
            limit = max(default_limit(settings.memory_shares), base + int(largest / IMAGES_SHARE))
            if (container := memory_limit()) is not None:
                # Above it, the kernel would end the worker in place of one image.
                room = int(SHARE_OF_CONTAINER * container)
                limit = min(limit, max(room, base + MIN_HEADROOM))
        elif limit < base + MIN_HEADROOM:
            raise SetupError(
                f"This worker needs {format_bytes(base)} for its models alone, so "
                f"WORKER_MAX_MEMORY cannot be {format_bytes(limit)}: set it to "
                f"{format_bytes(base + 2 * MIN_HEADROOM)} or more."
            )
        watermark = int(HIGH_WATERMARK * limit)
        if not _on_cuda():
            # The ceiling counts what was asked for and never touched, too, like the ends of
            # stacks: a leak meets it when less than the limit is used.
            watermark -= base - (used_bytes() or base)
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
        self._limits = limit, watermark
        self.budget.set_limit(int((limit - base) * IMAGES_SHARE), watermark)
        self._queues.add(queue)

    def require_fit(self, vector_bytes: int) -> None:
        """Check that an index of so many bytes of vectors can be built within WORKER_MAX_MEMORY.

        Raises:
            JobFailed: it cannot. Where the limit was left to us, everything is tried.
        """
        limit, base = self._settings.worker_max_memory, data_segment_bytes()
        if not limit or base is None or not self.is_worker:
            return
        needed = base + int(BUILD_FACTOR * vector_bytes)
        if needed > limit:
            raise JobFailed(
                f"The index needs about {format_bytes(needed)} of memory to be built, "
                f"WORKER_MAX_MEMORY is {format_bytes(limit)}: raise it for the worker on queue "
                "'index' and run the rebuild again."
            )

    def end_worker(self) -> None:
        """End this worker because it lacks memory that it once had; once is enough."""
        if self.shutting_down.is_set():
            return
        n_bytes, limit = used_bytes() or 0, self._limits[0] if self._limits else 0
        threading.Thread(
            target=self._end, args=(n_bytes, limit), name="memory-end", daemon=True
        ).start()

    @contextmanager
    def expect_high_usage(self) -> Iterator[None]:
        """Do work that may come close to the limit, like a merge: that is no leak."""
        with self._busy:
            yield

    def _watch(self) -> None:
        """Look at this process's memory until it ends; end it when it has leaked."""
        since: float | None = None
        default = self._settings.worker_max_memory or default_limit(self._settings.memory_shares)
        while not self._stopping.wait(POLL_S):
            try:
                since = self._look(since, default)
            except Exception:
                # This thread ends a worker that has leaked: it must outlive its own bugs.
                log.exception("The memory watch failed; it continues.")

    def _look(self, since: float | None, default: int) -> float | None:
        """End this worker when it has leaked; else return since when its usage is high."""
        limit, watermark = self._limits or (default, int(HIGH_WATERMARK * default))
        if _used(limit) <= watermark or self._busy.locked():
            return None
        trim_heap()
        since, n_bytes = since or time.monotonic(), _used(limit)
        if n_bytes > limit or (n_bytes > watermark and time.monotonic() - since > LEAK_S):
            self._end(n_bytes, limit)
        return since

    def _end(self, n_bytes: int, limit: int) -> None:
        """Give running work back and end this worker, gently at first."""
        self.shutting_down.set()
        log.error(
            "This worker uses %s of memory, its limit WORKER_MAX_MEMORY is %s: it returns its work "
            "and exits to be restarted. Raise the limit if this happens often.",
            format_bytes(n_bytes),
            format_bytes(limit),
        )
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        log.error("A task has not ended within %.0f s; it ends with this process.", GRACE_S)
        os._exit(os.EX_SOFTWARE)


def _used(limit: int) -> int:
    """Return the used memory; the limit where not even the bytes to read it are left."""
    try:
        return used_bytes() or 0
    except MemoryError:
        return limit


def _on_cuda() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())
