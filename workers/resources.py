"""What a worker process holds, made at first use and once: the wiring of the program."""

from __future__ import annotations

import functools
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.classify.classifiers import Trained, ZeroShot, text_matrix
from pipeline.classify.head_store import HeadStore
from pipeline.classify.labels import load_labels
from pipeline.embed.clip import Clip, load_clip
from pipeline.embed.embed_images import Embedder, build_embedder
from pipeline.embed.fingerprint import Fingerprint, find_fingerprint
from pipeline.errors import ImgrecError, SetupError
from pipeline.failpoints import failpoint
from pipeline.images.decode import Limits
from pipeline.images.memory_budget import MemoryBudget
from pipeline.index.live_index import PublishedIndex
from pipeline.index.versions import Version, VersionStore
from pipeline.micro_batcher import Batcher
from pipeline.preprocess.background_removal import load_remover
from pipeline.preprocess.prepare import PreparedImage, Preprocessing, prepare
from pipeline.search.catalogue_filter import IndexedCatalogues
from pipeline.search.product_catalogue import Catalogue
from pipeline.search.relevance_feedback import FeedbackIndex
from pipeline.settings import load_settings
from pipeline.store.cache import Cache, NoCache
from pipeline.store.database import Database
from pipeline.store.feedback import FeedbackLog
from pipeline.store.jobs import Jobs
from pipeline.store.products import Products
from pipeline.store.refreshing import RevisionCache
from workers import watchdog
from workers.query_log import QueryLog

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
def database() -> Database:
    return Database(load_settings().database_url)


@once
def jobs() -> Jobs:
    return Jobs(database())


@once
def products() -> Products:
    return Products(database())


@once
def catalogue() -> RevisionCache[Catalogue]:
    return RevisionCache(products().revision, products().catalogue)


@once
def feedback() -> FeedbackLog:
    return FeedbackLog(database())


@once
def opinions() -> RevisionCache[FeedbackIndex]:
    """The newest feedback on queries of this process's kind."""
    mine = fingerprint().id
    return RevisionCache(feedback().revision, lambda: FeedbackIndex(feedback().newest(mine)))


@once
def query_log() -> QueryLog:
    return QueryLog(feedback(), load_settings().query_log_days)


@once
def versions() -> VersionStore:
    return VersionStore(load_settings().index_dir)


@once
def published() -> PublishedIndex:
    return PublishedIndex(versions(), lambda version: shelves().prepare(version))


@once
def shelves() -> IndexedCatalogues:
    return IndexedCatalogues(catalogue().get)


_without_cache = False


def disable_cache() -> None:
    """Use no shared cache in this process; call it before anything asks for one."""
    global _without_cache
    _without_cache = True


@once
def cache() -> Cache | NoCache:
    if _without_cache:
        return NoCache()
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


# Shared by all pictures that this process decodes; see workers.memory.
budget = MemoryBudget()


def limits() -> Limits:
    settings = load_settings()
    return Limits(settings.max_image_pixels, settings.max_image_bytes, budget)


@once
def embedder() -> Embedder:
    """Everything that embedding a shard needs."""
    encoder = clip()  # first: torch brings the CUDA libraries that onnxruntime looks for
    return replace(build_embedder(load_settings(), encoder), limits=limits())


@once
def query_prepare() -> Callable[[Image.Image], PreparedImage]:
    """The same preprocessing for queries; background removal takes one picture at a time.

    On all threads, for latency. Without it there is nothing to wait for: pictures are made ready
    side by side while the model computes.
    """
    settings = load_settings()
    clip()  # before the remover, as in `tools`
    spec = Preprocessing.from_settings(settings)
    if not settings.use_bg_removal:
        return lambda image: prepare(image, spec, None)
    remover = load_remover(settings, threads=settings.threads)
    turn = threading.Lock()

    def run(image: Image.Image) -> PreparedImage:
        with turn:
            return prepare(image, spec, remover)

    return run


@once
def zero_shot() -> ZeroShot:
    settings = load_settings()
    labels = load_labels(settings.labels_file)
    return ZeroShot(clip(), labels, KnownTexts(fingerprint().id), settings.min_confidence)


def text_vector(text: str) -> NDArray[np.float32]:
    """Return the (d,) unit vector of a text, a known one or the model's."""
    matrix = text_matrix({text: (text,)}, clip(), KnownTexts(fingerprint().id))
    return np.asarray(matrix[0])


@once
def trained() -> Trained:
    settings = load_settings()
    heads = HeadStore(settings.models_dir)
    return Trained(zero_shot(), heads, fingerprint(), settings.min_confidence)


@once
def batcher() -> Batcher[Image.Image]:
    embed_images, hung_after_s = clip().embed_images, load_settings().hung_after_s

    def embed(images: Sequence[Image.Image]) -> NDArray[np.float32]:
        with watchdog.Deadline("a batch of queries", hung_after_s):
            failpoint("batch")
            return embed_images(images)

    made = Batcher(embed, load_settings().embed_batch_size)
    watchdog.register_thread(made.thread)
    return made


_verified: set[str] = set()  # versions whose vectors this process has read whole


def reusable_vectors(*, reuse: bool = True, verify: bool = False) -> KnownVectors:
    """Return what the published version and the cache hold of this process's vectors.

    Args:
        reuse: false for vectors that are only kept, never looked up.
        verify: compare the version's vectors with their digest before one is reused.
    """
    version = None
    if reuse:
        try:
            version = versions().current()
            if verify and version.identity not in _verified:
                versions().verify(version, ["vectors.npy"])
                _verified.add(version.identity)
        except ImgrecError:
            version = None  # none yet, or broken: then nothing of it is reused
    return KnownVectors(fingerprint().id, version, reuse=reuse)


class KnownVectors:
    """Vectors by content hash: from an index version, then from the shared cache."""

    def __init__(self, fingerprint_id: str, version: Version | None, *, reuse: bool = True) -> None:
        self._fingerprint = fingerprint_id
        self._use_known = reuse
        self._version = version if version and version.fingerprint == fingerprint_id else None

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


class KnownTexts:
    """Text vectors by the digest of their prompts, from the shared cache."""

    def __init__(self, fingerprint_id: str) -> None:
        self._fingerprint = fingerprint_id

    def get(self, digest: str) -> NDArray[np.float32] | None:
        return cache().get_text(self._fingerprint, digest)

    def put(self, vectors: dict[str, NDArray[np.float32]]) -> None:
        cache().put_texts(self._fingerprint, vectors)
