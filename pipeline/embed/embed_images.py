"""Turn the images of a shard into vectors: read -> embed -> collect, one generator a step.

`Reader.read` reads and preprocesses in threads, a bounded number of images ahead; `embed` runs the
model on batches; `collect` makes the arrays of the shard. Bad images pass through as failures.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.embed.shards import ShardVectors
from pipeline.embed.stage_times import STAGES, Observe, StageTimes
from pipeline.errors import BadImage, ImageOutOfMemory, ImgrecError, SetupError
from pipeline.failpoints import failpoint
from pipeline.images.decode import WORK_SIDE, Limits, decode_with_warnings, sha256
from pipeline.images.failure import Failure
from pipeline.images.find import ImageFile
from pipeline.images.source import ImageReader, Read
from pipeline.preprocess.background_removal import load_remover
from pipeline.preprocess.cutout_cache import PreparedCache
from pipeline.preprocess.prepare import PreparedImage, Preprocessing, prepare
from pipeline.settings import Settings

Vector = NDArray[np.float32]
T = TypeVar("T")

NO_VECTOR = (
    "the model gives no usable vector for this image, as its numbers are not finite or all zero: "
    "save the image anew, or try MODEL_PRECISION=fp32"
)
PROBE_SIDE = 64  # pixels, of the gray square that any model embeds
NICE = 10  # of the threads that read ahead; 19 is the last in the queue


class Encoder(Protocol):
    """The model: CLIP in production, a toy in unit tests."""

    dim: int

    def embed_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]: ...


class VectorCache(Protocol):
    """Vectors by the digest of an image or of prompts; may always be empty."""

    def get(self, digest: str) -> Vector | None: ...

    def put(self, vectors: dict[str, Vector]) -> None: ...


@dataclass(frozen=True)
class Embedder:
    """The model, the preprocessing and their limits: loaded once, used for every shard."""

    encoder: Encoder
    prepare: Callable[[Image.Image], PreparedImage]
    limits: Limits
    bg_color: tuple[int, int, int]
    batch_size: int
    threads: int
    decode_side: int = WORK_SIDE
    prepared: PreparedCache | None = None
    observe: Observe = lambda stage, seconds: None


def build_embedder(settings: Settings, encoder: Encoder) -> Embedder:
    """Build the embedder that the settings describe; load the model (`encoder`) before.

    Each of the look-ahead threads removes backgrounds on its own with one compute thread: that
    keeps more of a CPU busy than one image at a time with many threads.

    Raises:
        SetupError: background removal is switched on and cannot be loaded.
    """
    remover = None
    if settings.use_bg_removal:
        remover = load_remover(settings, threads=1, at_once=settings.threads)
    spec = Preprocessing.from_settings(settings)
    limits = Limits.of(settings)
    prepared = None
    if settings.use_bg_removal and settings.cutout_cache_bytes:  # resizing alone costs no more
        prepared = PreparedCache(settings.cutout_dir, spec, limits, settings.cutout_cache_bytes)
    return Embedder(
        encoder=encoder,
        prepare=lambda image: prepare(image, spec, remover),
        limits=limits,
        bg_color=settings.preprocess_bg_color,
        batch_size=settings.embed_batch_size,
        threads=settings.threads,
        # A cut-out may be a small part of the image; without one, all of it becomes the square.
        decode_side=WORK_SIDE
        if settings.use_bg_removal
        else min(WORK_SIDE, 2 * max(settings.preprocess_size)),
        prepared=prepared,
    )


@dataclass(frozen=True)
class ReadImage:
    """An image that was read and preprocessed: what the model will see.

    The vector of one with a warning goes into no cache: the next rebuild has to warn again.
    """

    position: int
    path: str
    digest: str
    image: Image.Image
    warned: bool = False


@dataclass(frozen=True)
class Embedded:
    """The (d,) vector of an image; `reused` if it was known before."""

    position: int
    digest: str
    vector: Vector
    reused: bool = False


@dataclass
class ShardResult:
    """The vectors of one shard; `embedded` and `reused` count the good images."""

    vectors: ShardVectors
    failures: list[Failure] = field(default_factory=list)
    embedded: int = 0
    reused: int = 0
    stage_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))


def embed_shard(
    source: ImageReader,
    images: Sequence[ImageFile],
    embedder: Embedder,
    cache: VectorCache,
    *,
    check: Callable[[int], None],
    save: Callable[[str, Image.Image], None] | None = None,
) -> ShardResult:
    """Embed the images of one shard; a bad image becomes a failure and the rest goes on.

    Args:
        check: called with the number of images done, between images; raises to stop.
        save: gets each preprocessed image, with its path (`--save-preprocessed`); images whose
            vector is known are then preprocessed too.
    """
    reader = Reader(source, embedder, cache, save)
    with closing(reader.read(enumerate(images), check)) as reads:
        result = collect(embed(reads, embedder, cache, reader.times), embedder, reader.times)
    check(len(images))
    return result


def embed_isolated(
    source: ImageReader,
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
    reader = Reader(source, embedder, cache, save)
    items = _embed_one_by_one(reader, images, check, on_start, on_done)
    result = collect(items, embedder, reader.times)
    check(len(images))
    return result


@dataclass(frozen=True)
class Reader:
    """Reads and preprocesses images of one source."""

    source: ImageReader
    embedder: Embedder
    cache: VectorCache
    save: Callable[[str, Image.Image], None] | None = None

    @cached_property
    def times(self) -> StageTimes:
        return StageTimes(self.embedder.observe)

    def read(
        self,
        images: Iterable[tuple[int, ImageFile]],
        check: Callable[[int], None] = lambda advance: None,
    ) -> Generator[ReadImage | Embedded | Failure, None, None]:
        """Read images by position, in order, at most two batches ahead of the consumer.

        An image whose vector is known comes as `Embedded`. A warning comes before its image.
        """
        threads, ahead = self.embedder.threads, 2 * self.embedder.batch_size
        images = list(images)
        with self.source.reading([image for _, image in images], self.embedder.limits) as read:
            run = partial(self._read_or_retry, read)
            with closing(_look_ahead(run, images, threads, ahead)) as results:
                for advance, items in enumerate(results):
                    check(advance)
                    yield from items

    def _read_or_retry(
        self, read: Read, position: int, image: ImageFile
    ) -> list[ReadImage | Embedded | Failure]:
        """Read one image; if memory does not suffice beside others, try it alone.

        Raises:
            MemoryError: the process has leaked, so no image is to blame; the next worker has more.
        """
        budget = self.embedder.limits.budget
        with suppress(MemoryError, ImageOutOfMemory):
            return self._read(read, position, image)
        # An image beside it may have taken more than its header says.
        with budget.exclusive(), suppress(MemoryError, ImageOutOfMemory):
            return self._read(read, position, image)
        # Asked after the errors are gone: their tracebacks keep the memory of the frames alive.
        if budget.over_limit():
            raise MemoryError
        error = ImageOutOfMemory(stage="preprocess")
        return [Failure(image.path, error.stage, error.reason)]

    def _read(
        self, read: Read, position: int, image: ImageFile
    ) -> list[ReadImage | Embedded | Failure]:
        try:
            failpoint("image", image.path)
            with self._timed("read"):
                data = read(image)
                digest = sha256(data)
                vector = self.cache.get(digest)
            if vector is not None and self.save is None:
                return [Embedded(position, digest, vector, reused=True)]
            prepared = self._preprocess(data, digest)
            if self.save is not None:
                self.save(image.path, prepared.image)
        except ImageOutOfMemory:
            raise
        except BadImage as error:
            return [Failure(image.path, error.stage, error.reason)]
        items: list[ReadImage | Embedded | Failure] = []
        if prepared.warning:
            items.append(Failure(image.path, "preprocess", prepared.warning, warning=True))
        if vector is not None:
            items.append(Embedded(position, digest, vector, reused=True))
        else:
            warned = bool(prepared.warning)
            items.append(ReadImage(position, image.path, digest, prepared.image, warned))
        return items

    def _preprocess(self, data: bytes, digest: str) -> PreparedImage:
        embedder = self.embedder
        if embedder.prepared:
            with self._timed("read"):
                prepared = embedder.prepared.get(digest)
            if prepared is not None:
                return prepared
        with self._timed("decode"):
            decoded = decode_with_warnings(
                data, embedder.limits, embedder.bg_color, embedder.decode_side
            )
        with self._timed("cut_out"):
            prepared = embedder.prepare(decoded.image)
        if decoded.warnings:
            warnings = [*decoded.warnings, *([prepared.warning] if prepared.warning else [])]
            prepared = replace(prepared, warning="; ".join(warnings))
        if embedder.prepared:
            with self._timed("write"):
                embedder.prepared.put(digest, prepared)
        return prepared

    def _timed(self, stage: str) -> AbstractContextManager[None]:
        return self.times.measure(stage, self.embedder.threads)


def embed(
    reads: Iterable[ReadImage | Embedded | Failure],
    embedder: Embedder,
    cache: VectorCache,
    times: StageTimes,
) -> Iterator[Embedded | Failure]:
    """Run the model on batches of the images that were read; pass the rest through at once."""
    batch: list[ReadImage] = []
    for item in reads:
        if not isinstance(item, ReadImage):
            yield item
            continue
        batch.append(item)
        if len(batch) == embedder.batch_size:
            yield from _embed_batch(batch, embedder, cache, times)
            batch.clear()
    if batch:
        yield from _embed_batch(batch, embedder, cache, times)


def collect(
    items: Iterable[Embedded | Failure], embedder: Embedder, times: StageTimes
) -> ShardResult:
    """Make the arrays of a shard, in the order of its images."""
    images: list[Embedded] = []
    failures: list[Failure] = []
    for item in items:
        if isinstance(item, Failure):
            failures.append(item)
        else:
            images.append(item)
    images.sort(key=lambda image: image.position)
    empty = np.zeros((0, embedder.encoder.dim), np.float32)
    return ShardResult(
        vectors=ShardVectors(
            positions=np.array([image.position for image in images], np.int32),
            sha256=np.array([image.digest for image in images], "S64"),
            vectors=np.stack([image.vector for image in images]) if images else empty,
        ),
        failures=failures,
        embedded=sum(not image.reused for image in images),
        reused=sum(image.reused for image in images),
        stage_seconds=times.seconds(),
    )


def usable(vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell of (..., d) vectors which have a direction: those that are finite, and not zero."""
    lengths = np.linalg.norm(vectors, axis=-1)
    found: NDArray[np.bool_] = np.isfinite(lengths) & (lengths > 0)
    return found


def _embed_batch(
    batch: Sequence[ReadImage], embedder: Embedder, cache: VectorCache, times: StageTimes
) -> list[Embedded | Failure]:
    with times.measure("embed"):
        vectors = embedder.encoder.embed_images([item.image for item in batch])
    good = usable(vectors)
    if not good.all():
        require_working(embedder.prepare, embedder.encoder.embed_images, NO_VECTOR)
    rows = list(zip(batch, vectors, good.tolist(), strict=True))
    with times.measure("write"):
        cache.put({item.digest: vector for item, vector, ok in rows if ok and not item.warned})
    return [
        Embedded(item.position, item.digest, vector)
        if ok
        else Failure(item.path, "embed", NO_VECTOR)
        for item, vector, ok in rows
    ]


def _embed_one_by_one(
    reader: Reader,
    images: Sequence[ImageFile],
    check: Callable[[int], None],
    on_start: Callable[[int], bool],
    on_done: Callable[[int], None],
) -> Iterator[Embedded | Failure]:
    """Embed each image alone; an error of any kind is a failure of its image.

    Raises:
        SetupError: the model or background removal has stopped working for any image.
    """
    for position, image in enumerate(images):
        check(position)
        if not on_start(position):
            reason = "crashed the worker: its process died each time this image ran alone"
            yield Failure(image.path, "crash", reason)
            continue
        try:
            with closing(reader.read([(position, image)])) as reads:
                items = list(embed(reads, reader.embedder, reader.cache, reader.times))
        except (ImgrecError, OSError):
            on_done(position)
            raise  # a server or a disk, which no image is to blame for
        except Exception as error:
            if reader.embedder.limits.budget.over_limit():
                raise  # memory that the process had lost before
            on_done(position)
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            embedder = reader.embedder
            require_working(embedder.prepare, embedder.encoder.embed_images, reason)
            yield Failure(image.path, "embed", reason)
            continue
        on_done(position)
        yield from items


def require_working(
    prepare: Callable[[Image.Image], PreparedImage],
    embed: Callable[[list[Image.Image]], NDArray[np.float32]],
    met: str,
) -> None:
    """Embed a gray square: where that fails, too, no image is to blame, as after an error of CUDA.

    It fails without a usable vector, too: else a model that computes nothing but NaN would make a
    failure of each image.

    Args:
        met: the error of an image that is the reason to ask.

    Raises:
        SetupError: it fails.
    """
    try:
        prepared = prepare(Image.new("RGB", (PROBE_SIDE, PROBE_SIDE), (128, 128, 128)))
        if not usable(embed([prepared.image])).all():
            raise ValueError(NO_VECTOR)
    except ImgrecError:
        return  # it has judged the square, which it could not do if it were broken
    except Exception as error:
        raise SetupError(
            f"The model no longer embeds any image, not even a gray square ({met}): start this "
            "worker again."
        ) from error


def _look_ahead(
    read: Callable[[int, ImageFile], T],
    images: Iterable[tuple[int, ImageFile]],
    threads: int,
    ahead: int,
) -> Generator[T, None, None]:
    """Yield `read(position, image)` in order, computed by threads at most `ahead` in front."""
    futures: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read", initializer=_lower_priority)
    try:
        for position, image in images:
            futures.append(pool.submit(read, position, image))
            if len(futures) >= ahead:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _lower_priority() -> None:
    """Let the model's threads go first on a full CPU.

    They wait for each other at every layer: one that stands aside for a decoder holds up the rest.
    Measured, ViT-B/32 on two cores: 4 % more images a second. Only Linux knows priorities of
    threads; elsewhere the number would be taken for a process.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):  # not permitted: then all share alike
            os.setpriority(
                os.PRIO_PROCESS, thread, max(NICE, os.getpriority(os.PRIO_PROCESS, thread))
            )
