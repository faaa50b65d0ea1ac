"""What a process holds, made at first use and once: the wiring of the program."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.classify.classifiers import Trained, ZeroShot, text_matrix
from pipeline.classify.head_places import HeadFolder, HeadObjects, HeadPlace
from pipeline.classify.head_store import HeadStore
from pipeline.classify.labels import load_labels
from pipeline.embed.clip import Clip, load_clip
from pipeline.embed.embed_images import Embedder, build_embedder
from pipeline.embed.fingerprint import Fingerprint, find_fingerprint
from pipeline.embed.shard_files import ShardFiles, ShardFolder, ShardObjects
from pipeline.engines.choice import engines
from pipeline.errors import ImgrecError, ServerUnavailable, SetupError
from pipeline.failpoints import failpoint
from pipeline.images.decode import Limits
from pipeline.index.engine import Engines, OpenIndex
from pipeline.index.live_changes import ChangedIndexes
from pipeline.index.live_index import PublishedIndex
from pipeline.index.remote_versions import RemoteVersions
from pipeline.index.segments import VECTOR_FILES
from pipeline.index.versions import Version, VersionStore
from pipeline.micro_batcher import Batcher
from pipeline.preprocess.background_removal import load_remover
from pipeline.preprocess.prepare import (
    PreparedImage,
    Preprocessing,
    Remover,
    largest_object,
    prepare,
)
from pipeline.search.catalogue_filter import IndexedCatalogues
from pipeline.search.duplicate_rows import DuplicateRows
from pipeline.search.facets import Facet, facets
from pipeline.search.relevance_feedback import FeedbackIndex
from pipeline.settings import Settings, load_settings
from pipeline.storage.artifacts import (
    artifacts_address,
    copies_folder,
    require_conditional_puts,
)
from pipeline.storage.object_store import ObjectStore
from pipeline.store.api_keys import ApiKeys
from pipeline.store.cache import Cache, NoCache
from pipeline.store.database import Database
from pipeline.store.duplicates import Duplicates
from pipeline.store.feedback import FeedbackLog
from pipeline.store.feeds import Feeds
from pipeline.store.identity import Identifier
from pipeline.store.jobs import Jobs
from pipeline.store.live_changes import LiveChanges
from pipeline.store.products import Products
from pipeline.store.refreshing import RevisionCache
from pipeline.store.webhooks import Webhooks
from workers.agreement import require_agreement
from workers.consumer_watchdog import ConsumerWatchdog
from workers.dispatch import THIS_PROCESS, CeleryDispatcher, Dispatcher
from workers.known_vectors import KnownTexts, KnownVectors
from workers.lease import Leases
from workers.memory_guard import MemoryGuard
from workers.metrics import NoMetrics, serve_metrics
from workers.query_log import QueryLog
from workers.registry import serving
from workers.watchdog import Watchdog

log = logging.getLogger(__name__)

Value = TypeVar("Value")


class Once(Generic[Value]):
    """A cached property with a lock: threads that ask at the same time wait for one making.

    A failure is not cached: weights may be put into place while the worker runs.
    """

    def __init__(self, make: Callable[[Any], Value]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Once[Value]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> Value: ...
    def __get__(self, instance: object | None, owner: type) -> Value | Once[Value]:
        # Asked only while the instance has no such attribute: there is no `__set__`.
        if instance is None:
            return self
        attributes = vars(instance)
        # One lock for each property: others go on while a model loads.
        with attributes.setdefault(f"_{self._name}_lock", threading.RLock()):
            if self._name not in attributes:
                attributes[self._name] = self._make(instance)
            value: Value = attributes[self._name]
            return value


def once(make: Callable[[Resources], Value]) -> Once[Value]:
    """Return a property of `Resources` that is made once, see `Once`."""
    return Once(make)


class Resources:
    """Everything that tasks and commands of one process share."""

    def __init__(
        self,
        settings: Settings,
        dispatcher: Dispatcher,
        *,
        cache: Cache | NoCache | None = None,
        clip: Clip | None = None,
    ) -> None:
        """Hold nothing yet but what costs nothing.

        Args:
            cache: in place of the shared cache that the settings name.
            clip: in place of the model that the settings name.
        """
        self.settings = settings
        self.dispatcher = dispatcher
        self.worker_name = THIS_PROCESS  # a worker's, as Celery knows it
        # Set when the process was asked to stop; long tasks look at it between two images.
        self.stopping = threading.Event()
        self.watchdog = Watchdog()
        self.consumer = ConsumerWatchdog(settings, self.watchdog)
        self.memory_guard = MemoryGuard(settings, self.stopping, self.watchdog)
        self.failed_looks: Counter[str] = Counter()  # of the reconciler, by job
        self._verified: set[str] = set()  # versions whose vectors this process has read whole
        self._warned: tuple[str, Collection[str]] = ("", ())  # of a version, by its identity
        if cache is not None:
            vars(self)["cache"] = cache
        if clip is not None:
            vars(self)["clip"] = clip

    def end_worker(self, reason: str) -> None:
        """End this process gently if it is a worker: who watches over it starts another."""
        if self.memory_guard.is_worker:
            log.critical("This worker ends: %s", reason)
            os.kill(os.getpid(), signal.SIGTERM)

    # What outlives the process

    database = once(lambda self: Database(self.settings.database_url))
    identifier = once(lambda self: Identifier(self.settings, self.database))
    jobs = once(lambda self: Jobs(self.database))
    webhooks = once(lambda self: Webhooks(self.database))
    api_keys = once(lambda self: ApiKeys(self.database))
    key_ring = once(lambda self: RevisionCache(self.api_keys.revision, self.api_keys.key_ring))
    products = once(lambda self: Products(self.database))
    feeds = once(lambda self: Feeds(self.database))
    catalogue = once(lambda self: RevisionCache(self.products.revision, self.products.catalogue))
    indexed_catalogues = once(lambda self: IndexedCatalogues(self.catalogue.get))
    duplicates = once(lambda self: Duplicates(self.database))
    feedback_log = once(lambda self: FeedbackLog(self.database))
    live_changes = once(lambda self: LiveChanges(self.database))

    def require_agreement(self, queues: Sequence[str], *parts: str) -> None:
        """Compare this process's database and folders with those of the workers on some queues.

        Raises:
            SettingsDiffer: they differ. ServerUnavailable: Redis does not answer.
        """
        registry = self.dispatcher.registry
        present = registry.present() if registry is not None else []
        if registry is not None and serving(present, queues):
            require_agreement(registry, self.identifier.read(*parts), queues, parts, present)

    def require_agreement_of_running(self, queues: Sequence[str], *parts: str) -> None:
        """Do so for work that needs neither Redis nor workers: without Redis none are running.

        Raises:
            SettingsDiffer: they differ.
        """
        with contextlib.suppress(ServerUnavailable):
            self.require_agreement(queues, *parts)

    @once
    def leases(self) -> Leases:
        """The leases of the work that this process has claimed."""
        settings = self.settings
        return Leases(
            self.jobs, settings.lease_s, settings.hung_after_s, self.stopping, self.watchdog
        )

    @once
    def metrics(self) -> NoMetrics:
        settings = self.settings
        return serve_metrics(settings.metrics_host, settings.metrics_port)

    @once
    def facets(self) -> RevisionCache[list[Facet]]:
        """What the products can be filtered by; the catalogue itself is not kept."""
        return RevisionCache(self.products.revision, lambda: facets(self.products.catalogue()))

    @once
    def duplicate_rows(self) -> DuplicateRows:
        """The groups of duplicates as queries collapse them."""
        published = RevisionCache(self.duplicates.revision, self.duplicates.published)
        return DuplicateRows(published.get)

    @once
    def feedback_index(self) -> RevisionCache[FeedbackIndex]:
        """The newest feedback on queries of this process's kind."""
        log, mine = self.feedback_log, self.fingerprint.id
        return RevisionCache(log.revision, lambda: FeedbackIndex(log.newest(mine)))

    @once
    def query_log(self) -> QueryLog:
        return QueryLog(
            self.feedback_log,
            self.settings.query_log_days,
            self.watchdog,
            self.settings.hung_after_s,
        )

    @once
    def artifacts(self) -> ObjectStore | None:
        """The store that ARTIFACTS_URL names; None where DATA_DIR and MODELS_DIR hold all."""
        address = artifacts_address(self.settings)
        return None if address is None else ObjectStore(address)

    def require_fit_artifacts(self) -> None:
        """Try what the store that ARTIFACTS_URL names must be able to do.

        Raises:
            WrongUse: ARTIFACTS_URL names no store. StoreRefused: it lacks something.
            ServerUnavailable: it does not answer.
        """
        if self.artifacts is not None:
            require_conditional_puts(self.artifacts)

    @property
    def _copies(self) -> Path:
        address = artifacts_address(self.settings)
        assert address is not None
        return copies_folder(self.settings, address)

    @once
    def versions(self) -> VersionStore:
        if self.artifacts is None:
            return VersionStore(self.settings.index_dir)
        return RemoteVersions(self.artifacts, self._copies)

    @once
    def shard_files(self) -> ShardFiles:
        if self.artifacts is None:
            return ShardFolder(self.settings.jobs_dir)
        return ShardObjects(self.artifacts)

    @once
    def heads(self) -> HeadPlace:
        if self.artifacts is None:
            return HeadFolder(self.settings.models_dir)
        return HeadObjects(self.artifacts, self._copies / "models")

    @once
    def live_index(self) -> PublishedIndex:
        return PublishedIndex(
            self.versions,
            lambda version: self.indexed_catalogues.prepare(version),
            self.engines,
        )

    def searched_index(self, name: str = "") -> OpenIndex:
        """Return the published index with the changes since, or a version as it was published.

        Raises:
            IndexMissing, IndexBroken, NotFound: see `PublishedIndex.version`.
        """
        index = self.live_index.version(name)
        return index if name else self._changed_indexes.of(index)

    @once
    def _changed_indexes(self) -> ChangedIndexes:
        return ChangedIndexes(RevisionCache(self.live_changes.revision, self.live_changes.all).get)

    @once
    def engines(self) -> Engines:
        """What builds and searches the index."""
        return engines(self.settings, self._owner_of_versions)

    def _owner_of_versions(self) -> str:
        """Return what tells the versions here from those of others at the same server."""
        if self.settings.artifacts_url:
            return self.settings.artifacts_url
        return self.identifier.read("data", create=True).data.id or ""

    @once
    def shared_cache(self) -> Cache:
        settings = self.settings
        return Cache(
            settings.cache_url or settings.redis_url, settings.vector_ttl_s, settings.result_ttl_s
        )

    @once
    def cache(self) -> Cache | NoCache:
        return self.shared_cache

    # Models, and what stands before and behind them

    clip = once(lambda self: load_clip(self.settings))

    @once
    def fingerprint(self) -> Fingerprint:
        """What this process's vectors are; the model is loaded first, so a hub commit is known."""
        _ = self.clip
        fingerprint = find_fingerprint(self.settings)
        if fingerprint is None:
            model = self.settings.embedding_model
            raise SetupError(f"The revision of {model} cannot be determined from the hub cache.")
        return fingerprint

    @property
    def limits(self) -> Limits:
        """The limits of an image to decode, within the budget that all of them share."""
        return Limits.of(self.settings, self.memory_guard.budget)

    @once
    def embedder(self) -> Embedder:
        """Everything that embedding a shard needs."""
        encoder = self.clip  # first: torch brings the CUDA libraries that onnxruntime looks for
        embedder = build_embedder(self.settings, encoder)
        return replace(embedder, limits=self.limits, observe=self.metrics.stage)

    @once
    def remover(self) -> Remover:
        """Background removal of one image at a time, on all threads, for latency."""
        return load_remover(self.settings, threads=self.settings.threads)

    @once
    def query_prepare(self) -> Callable[..., PreparedImage]:
        """The same preprocessing for queries; background removal takes one image at a time.

        Without it there is nothing to wait for: images are made ready side by side while the
        model computes. With background removal, `largest=True` keeps the largest object only.
        """
        _ = self.clip  # before the remover, as in `embedder`
        spec = Preprocessing.from_settings(self.settings)
        if not self.settings.use_bg_removal:
            return lambda image: prepare(image, spec, None)
        remover = self.remover
        turn = threading.Lock()

        def run(image: Image.Image, largest: bool = False) -> PreparedImage:
            with turn:
                if largest:
                    return prepare(image, spec, lambda image: largest_object(remover(image)))
                return prepare(image, spec, remover)

        return run

    @once
    def batcher(self) -> Batcher[Image.Image]:
        """The model for queries: those that come at the same time share a forward pass."""
        embed_images = self.clip.embed_images
        work = self.watchdog.deadline("a batch of queries", self.settings.hung_after_s)

        def embed(images: Sequence[Image.Image]) -> NDArray[np.float32]:
            with work:
                failpoint("batch")
                return embed_images(images)

        batcher = Batcher(embed, self.settings.embed_batch_size)
        self.watchdog.register_thread(batcher.thread)
        return batcher

    @once
    def zero_shot(self) -> ZeroShot:
        labels = load_labels(self.settings.labels_file)
        return ZeroShot(self.clip, labels, self.known_texts, self.settings.min_confidence)

    @once
    def trained(self) -> Trained:
        heads = HeadStore(self.heads.folder())
        return Trained(self.zero_shot, heads, self.fingerprint, self.settings.min_confidence)

    def text_vector(self, text: str) -> NDArray[np.float32]:
        """Return the (d,) unit vector of a text, a known one or the model's."""
        matrix = text_matrix({text: (text,)}, self.clip, self.known_texts)
        return np.asarray(matrix[0])

    # Vectors that need no model

    known_texts = once(lambda self: KnownTexts(self.cache, self.fingerprint.id))

    def reusable_vectors(self, *, reuse: bool = True, verify: bool = False) -> KnownVectors:
        """Return what the published version and the cache hold of this process's vectors.

        Args:
            reuse: false for vectors that are only kept, never looked up.
            verify: compare the version's vectors with their digest before one is reused.
        """
        version = None
        if reuse:
            try:
                version = self.versions.on_disk()
                if verify and version.identity not in self._verified:
                    self.versions.verify(version, VECTOR_FILES)
                    self._verified.add(version.identity)
            except ImgrecError:
                version = None  # none yet, or broken: then nothing of it is reused
        warned = self.warned_paths(version) if version is not None else ()
        return KnownVectors(self.cache, self.fingerprint.id, version, reuse=reuse, warned=warned)

    def warned_paths(self, version: Version) -> Collection[str]:
        """Return the paths of the version's images that have a warning.

        Without the database there are none: a query needs no warning, and a rebuild waits for it.
        """
        identity, paths = self._warned
        if identity != version.identity:
            try:
                paths = self.jobs.image_warnings(version.manifest["job_id"]).keys()
            except ImgrecError:
                return ()
            self._warned = (version.identity, paths)
        return paths


_lock = threading.Lock()
_process_resources: Resources | None = None


def process_resources() -> Resources:
    """Return the resources of this worker process, made from its settings at first use."""
    global _process_resources
    if _process_resources is None:
        with _lock:
            if _process_resources is None:
                settings = load_settings()
                _process_resources = Resources(settings, CeleryDispatcher(settings.redis_url))
    return _process_resources


def set_process_resources(resources: Resources | None) -> None:
    """Have this process's tasks work with these; None: with those of its settings again."""
    global _process_resources
    _process_resources = resources
