"""What a worker process holds, made at first use and once: the wiring of the program."""

from __future__ import annotations

import functools
import logging
import socket
import threading
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.background import load_remover
from pipeline.batcher import Batcher
from pipeline.classify import Trained, ZeroShot
from pipeline.clip import Clip, load_clip
from pipeline.embed import Tools, make_tools
from pipeline.errors import ImgrecError, SetupError
from pipeline.fingerprint import Fingerprint, find_fingerprint
from pipeline.heads import HeadStore
from pipeline.images import Limits
from pipeline.labels import load_labels
from pipeline.preprocess import Prepared, Preprocessing, Remover, prepare
from pipeline.recommend import PublishedIndex
from pipeline.settings import load_settings
from pipeline.store.cache import Cache
from pipeline.store.database import Database
from pipeline.store.jobs import Jobs
from pipeline.versions import VersionStore

log = logging.getLogger(__name__)

HOST = socket.gethostname()
Made = TypeVar("Made")

# Set when the process was asked to stop; long tasks look at it between two images.
stopping = threading.Event()


def once(make: Callable[[], Made]) -> Callable[[], Made]:
    """Cache a maker's value; threads that ask at the same time wait for one making.

    A failure is not cached: weights may be put into place while the worker runs.
    """
    lock = threading.RLock()
    made: list[Made] = []

    @functools.wraps(make)
    def get() -> Made:
        if not made:
            with lock:
                if not made:
                    made.append(make())
        return made[0]

    return get


@once
def jobs() -> Jobs:
    return Jobs(Database(load_settings().database_url))


@once
def versions() -> VersionStore:
    return VersionStore(load_settings().index_dir)


@once
def published() -> PublishedIndex:
    return PublishedIndex(versions())


@once
def cache() -> Cache:
    settings = load_settings()
    return Cache(
        settings.cache_url or settings.redis_url, settings.vector_ttl_s, settings.result_ttl_s
    )


@once
def clip() -> Clip:
    return load_clip(load_settings())


@once
def fingerprint() -> Fingerprint:
    """What this process's vectors are; the model is loaded first, so a hub commit is known."""
    clip()
    found = find_fingerprint(load_settings())
    if found is None:
        raise SetupError(
            f"The revision of {load_settings().embedding_model} cannot be told from the hub cache."
        )
    return found


def limits() -> Limits:
    settings = load_settings()
    return Limits(settings.max_image_pixels, settings.max_image_bytes)


@once
def tools() -> Tools:
    """Everything that embedding a shard needs."""
    encoder = clip()  # first: torch brings the CUDA libraries that onnxruntime looks for
    return make_tools(load_settings(), encoder)


@once
def query_prepare() -> Callable[[Image.Image], Prepared]:
    """The same preprocessing for queries: one picture at a time, on all threads, for latency."""
    settings = load_settings()
    clip()  # before the remover, as in `tools`
    spec = Preprocessing.from_settings(settings)
    remover = _remover(threads=settings.threads) if settings.use_bg_removal else None
    turn = threading.Lock()

    def run(image: Image.Image) -> Prepared:
        with turn:
            return prepare(image, spec, remover)

    return run


@once
def zero_shot() -> ZeroShot:
    settings = load_settings()
    labels = load_labels(settings.labels_file)
    kept = KnownVectors(fingerprint().id, use_known=True)
    return ZeroShot(clip(), labels, kept, settings.min_confidence)


@once
def trained() -> Trained:
    settings = load_settings()
    heads = HeadStore(settings.models_dir)
    return Trained(zero_shot(), heads, fingerprint(), settings.min_confidence)


@once
def batcher() -> Batcher:
    return Batcher(clip().embed_images, load_settings().embed_batch_size)


def _remover(threads: int) -> Remover:
    settings = load_settings()
    return load_remover(settings.rembg_model, threads, settings.device)


class KnownVectors:
    """Vectors by content hash: from the published version, then from the shared cache."""

    def __init__(self, fingerprint_id: str, *, use_known: bool) -> None:
        self._fingerprint = fingerprint_id
        self._use_known = use_known
        self._version = None
        if use_known:
            try:
                version = versions().current()
            except ImgrecError:
                version = None  # none yet, or broken: then nothing of it is reused
            if version and version.fingerprint == fingerprint_id:
                self._version = version

    def get(self, digest: str) -> NDArray[np.float32] | None:
        if not self._use_known:
            return None
        if self._version is not None:
            row = self._version.row_of_hash(digest)
            if row is not None:
                return np.array(self._version.vectors[row])
        return cache().get_vector(self._fingerprint, digest)

    def put(self, vectors: dict[str, NDArray[np.float32]]) -> None:
        cache().put_vectors(self._fingerprint, vectors)
