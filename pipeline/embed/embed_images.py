"""Turn the images of a shard into vectors: read ahead in threads, embed in batches, keep order."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.embed.shards import ShardVectors
from pipeline.errors import BadImage, ImgrecError
from pipeline.failpoints import failpoint
from pipeline.images.decode import OUT_OF_MEMORY, WORK_SIDE, Limits, decode, read_image, sha256
from pipeline.images.failure import Failure
from pipeline.images.find import ImageFile, confined
from pipeline.images.memory_budget import MemoryBudget
from pipeline.preprocess.background_removal import load_remover
from pipeline.preprocess.cutout_cache import PreparedCache
from pipeline.preprocess.prepare import PreparedImage, Preprocessing, prepare
from pipeline.settings import Settings

Vector = NDArray[np.float32]

NICE = 10  # of the threads that read ahead; 19 is the last in the queue


class Encoder(Protocol):
    """The model: CLIP in production, a toy in unit tests."""

    dim: int

    def embed_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]: ...


class VectorCache(Protocol):
    """What already knows a content hash: the published version, the shared cache."""

    def get(self, digest: str) -> Vector | None: ...

    def put(self, vectors: dict[str, Vector]) -> None: ...


@dataclass(frozen=True)
class Embedder:
    """What a worker process holds ready for every shard."""

    encoder: Encoder
    prepare: Callable[[Image.Image], PreparedImage]
    limits: Limits
    bg_color: tuple[int, int, int]
    batch_size: int
    threads: int
    decode_side: int = WORK_SIDE
    prepared: PreparedCache | None = None


def build_embedder(settings: Settings, encoder: Encoder) -> Embedder:
    """Put together what these settings ask for; load the model (`encoder`) before.

    Each of the look-ahead threads removes backgrounds on its own with one compute thread: that
    keeps more of a CPU busy than one picture at a time with many.

    Raises:
        SetupError: background removal is wanted and cannot be done here.
    """
    remover = None
    if settings.use_bg_removal:
        remover = load_remover(settings, threads=1, at_once=settings.threads)
    spec = Preprocessing.from_settings(settings)
    limits = Limits(settings.max_image_pixels, settings.max_image_bytes)
    prepared = None
    if settings.use_bg_removal and settings.cutout_cache_bytes:  # resizing alone costs no more
        folder = settings.data_dir / "prepared"
        prepared = PreparedCache(folder, spec, limits, settings.cutout_cache_bytes)
    return Embedder(
        encoder=encoder,
        prepare=lambda image: prepare(image, spec, remover),
        limits=limits,
        bg_color=settings.preprocess_bg_color,
        batch_size=settings.embed_batch_size,
        threads=settings.threads,
        # A cut-out may be a small part of the picture; without one, all of it becomes the square.
        decode_side=WORK_SIDE
        if settings.use_bg_removal
        else min(WORK_SIDE, 2 * max(settings.preprocess_size)),
        prepared=prepared,
    )


@dataclass
class ShardResult:
    """What came out of one shard; `embedded` and `reused` count the good images."""

    vectors: ShardVectors
    failures: list[Failure] = field(default_factory=list)
    embedded: int = 0
    reused: int = 0


@dataclass(frozen=True)
class ReadResult:
    """One image after its thread: a known vector, pixels for the model, or a failure."""

    digest: str = ""
    vector: Vector | None = None
    prepared: PreparedImage | None = None
    failure: Failure | None = None


def embed_shard(
    root: Path,
    images: Sequence[ImageFile],
    embedder: Embedder,
    cache: VectorCache,
    *,
    check: Callable[[int], None],
    save: Callable[[str, Image.Image], None] | None = None,
) -> ShardResult:
    """Embed the images of one shard; a bad image becomes a failure and the rest goes on.

    Threads read, hash, decode and preprocess at most two batches ahead of the model, so memory
    is bounded whatever the shard's size.

    Args:
        check: called with the number of images done, between images; raises to stop.
        save: gets each prepared picture, with its path (`--save-preprocessed`); pictures whose
            vector is known are then prepared too.
    """
    digests: dict[int, str] = {}
    vectors: dict[int, Vector] = {}
    failures: list[Failure] = []
    embedded = 0
    batch: list[tuple[int, ReadResult]] = []

    def flush() -> None:
        nonlocal embedded
        prepared = [read.prepared.image for _, read in batch if read.prepared]
        fresh = embedder.encoder.embed_images(prepared)
        for (position, read), vector in zip(batch, fresh, strict=True):
            vectors[position], digests[position] = vector, read.digest
        embedded += len(batch)
        cache.put({read.digest: vectors[position] for position, read in batch})
        batch.clear()

    def read_one(image: ImageFile) -> ReadResult:
        return _with_memory(
            image.path, embedder.limits.budget, lambda: _read(root, image, embedder, cache, save)
        )

    ahead = 2 * embedder.batch_size
    for position, read in enumerate(_look_ahead(read_one, images, embedder.threads, ahead)):
        check(position)
        if read.failure:
            failures.append(read.failure)
        if read.vector is not None:
            vectors[position], digests[position] = read.vector, read.digest
        elif read.prepared is not None:
            batch.append((position, read))
        if len(batch) == embedder.batch_size:
            flush()
    if batch:
        flush()
    check(len(images))
    positions = sorted(vectors)
    return ShardResult(
        vectors=ShardVectors(
            np.array(positions, np.int32),
            np.array([digests[position] for position in positions], "S64"),
            np.stack([vectors[position] for position in positions])
            if positions
            else np.zeros((0, embedder.encoder.dim), np.float32),
        ),
        failures=failures,
        embedded=embedded,
        reused=len(positions) - embedded,
    )


def embed_isolated(
    root: Path,
    images: Sequence[ImageFile],
    embedder: Embedder,
    cache: VectorCache,
    *,
    check: Callable[[int], None],
    save: Callable[[str, Image.Image], None] | None = None,
    on_start: Callable[[int], bool],
    on_done: Callable[[int], None],
) -> ShardResult:
    """Embed a shard that has crashed its worker: one image at a time, each announced before.

    Cheaper than halving the shard: the announcement names the image after one more crash, halving
    256 images needs eight.

    Args:
        on_start: called with a position before its image; False leaves the image out as a failure,
            because the worker died each time when it ran alone.
        on_done: called after an image that left the worker alive.
    """
    results: list[tuple[int, ShardResult]] = []
    failures: list[Failure] = []
    for position, image in enumerate(images):
        check(position)
        if not on_start(position):
            reason = "crashed the worker: its process died each time this image ran alone"
            failures.append(Failure(image.path, "crash", reason))
            continue
        try:
            result = embed_shard(root, [image], embedder, cache, check=lambda done: None, save=save)
        except (ImgrecError, OSError):
            on_done(position)
            raise  # a server or a disk, which no image is to blame for
        except Exception as error:
            if embedder.limits.budget.over_limit():
                raise  # nor for what the process lost before
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            failures.append(Failure(image.path, "embed", reason))
        else:
            results.append((position, result))
            failures += result.failures
        on_done(position)
    check(len(images))
    good = [(position, result) for position, result in results if len(result.vectors.positions)]
    empty = np.zeros((0, embedder.encoder.dim), np.float32)
    return ShardResult(
        vectors=ShardVectors(
            np.array([position for position, _ in good], np.int32),
            np.array([result.vectors.sha256[0] for _, result in good], "S64"),
            np.concatenate([empty, *(result.vectors.vectors for _, result in good)]),
        ),
        failures=failures,
        embedded=sum(result.embedded for _, result in good),
        reused=sum(result.reused for _, result in good),
    )


def _with_memory(path: str, budget: MemoryBudget, read: Callable[[], ReadResult]) -> ReadResult:
    """Read and prepare one image; alone, where memory did not suffice beside others.

    Raises:
        MemoryError: through no fault of this image; the next worker has more.
    """
    with suppress(MemoryError):
        return read()
    # It may have been a picture beside it, that takes more than its header says.
    with budget.exclusive(), suppress(MemoryError):
        return read()
    if budget.over_limit():  # asked once the errors are gone: their tracebacks hold what they met
        raise MemoryError
    return ReadResult(failure=Failure(path, "preprocess", OUT_OF_MEMORY))


def _read(
    root: Path,
    image: ImageFile,
    embedder: Embedder,
    cache: VectorCache,
    save: Callable[[str, Image.Image], None] | None,
) -> ReadResult:
    try:
        failpoint(f"image:{image.path}")
        data = read_image(confined(root, image.path), embedder.limits)
        digest = sha256(data)
        known = cache.get(digest)
        if known is not None and save is None:
            return ReadResult(digest, vector=known)
        prepared = _prepare(data, digest, embedder)
        if save is not None:
            save(image.path, prepared.image)
    except BadImage as error:
        if error.reason == OUT_OF_MEMORY:
            raise MemoryError from error
        return ReadResult(failure=Failure(image.path, error.stage, error.reason))
    warning = None
    if prepared.warning:
        warning = Failure(image.path, "preprocess", prepared.warning, warning=True)
    if known is not None:
        return ReadResult(digest, vector=known, failure=warning)
    return ReadResult(digest, prepared=prepared, failure=warning)


def _prepare(data: bytes, digest: str, embedder: Embedder) -> PreparedImage:
    kept = embedder.prepared.get(digest) if embedder.prepared else None
    if kept is not None:
        return kept
    made = embedder.prepare(decode(data, embedder.limits, embedder.bg_color, embedder.decode_side))
    if embedder.prepared:
        embedder.prepared.put(digest, made)
    return made


def _look_ahead(
    work: Callable[[ImageFile], ReadResult], images: Sequence[ImageFile], threads: int, ahead: int
) -> Iterator[ReadResult]:
    """Yield `work(image)` in order, computed by threads at most `ahead` images in front."""
    waiting: deque[Future[ReadResult]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read", initializer=_step_back)
    try:
        for image in images:
            waiting.append(pool.submit(work, image))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _step_back() -> None:
    """Let the model's threads go first on a full CPU.

    They wait for each other at every layer: one that stands aside for a decoder holds up the rest.
    Measured, ViT-B/32 on two cores: 4 % more images a second. Only Linux knows priorities of
    threads; elsewhere the number would be taken for a process.
    """
    if sys.platform == "linux":
        me = threading.get_native_id()
        with suppress(OSError):  # forbidden here: then they share
            os.setpriority(os.PRIO_PROCESS, me, max(NICE, os.getpriority(os.PRIO_PROCESS, me)))
