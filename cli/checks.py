"""What `imgrec check` tries, each thing once and for real."""

from __future__ import annotations

import shlex
import shutil
import time
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cli.wiring import Wiring
from pipeline.errors import FingerprintMismatch, ImgrecError, IndexBroken, IndexMissing
from pipeline.settings import Settings
from workers.routes import QUEUES

if TYPE_CHECKING:
    from pipeline.index.versions import VersionStore
    from workers.resources import Resources

GIB = 1024**3
# A rebuild writes its shards and a whole new version beside the one that serves.
COPIES = 3
LEAST_FREE = GIB
REBUILD = "imgrec enqueue-rebuild FOLDER --wait"


class CheckFailed(Exception):
    """A check that failed, with what to type about it."""

    def __init__(self, found: str, next_step: str) -> None:
        super().__init__(found, next_step)
        self.found, self.next = found, next_step


def corrected(setting: str) -> str:
    """Say what to type after a setting was wrong."""
    return f"correct {setting} in .env, then: imgrec check"


class Checks:
    """Everything that can be proved about the settings here."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._settings: Settings = wiring.settings
        self._broker: str | None = None  # why no worker can be asked

    def redis(self) -> str:
        """Redis answers, takes a key and throws no task away."""
        from redis.exceptions import RedisError

        from pipeline.store.redis_client import PREFIX, answers, connect, require_fit, trouble

        url = self._settings.redis_url
        self._broker = "not checked: Redis does not work"
        if not answers(url):
            raise CheckFailed(str(trouble(url, None)), _start_redis(url))
        try:
            client = connect(url, 5)
            facts = require_fit(url, client)
            client.set(f"{PREFIX}check", 1, ex=60)
        except RedisError as error:
            raise CheckFailed(str(trouble(url, error)), corrected("REDIS_URL")) from error
        self._broker = None
        policy = facts.get("maxmemory_policy", "unknown")
        if policy.startswith("allkeys"):  # volatile-* takes answers and the cache, never a task
            raise CheckFailed(
                f"answers, but its policy {policy} evicts tasks when its memory is full",
                f"{_redis_cli(url)} config set maxmemory-policy noeviction",
            )
        kept = (
            "append-only" if facts.get("aof_enabled") else "not append-only: a restart loses tasks"
        )
        return f"{facts.get('redis_version', '?')} answers, policy {policy}, {kept}"

    def cache(self) -> str:
        """The cache of its own answers."""
        from redis.exceptions import RedisError

        from pipeline.store.redis_client import connect, require_fit, trouble

        url = self._settings.cache_url
        try:
            require_fit(url, connect(url, 5), "CACHE_URL")
        except RedisError as error:
            raise CheckFailed(
                str(trouble(url, error, "CACHE_URL")), corrected("CACHE_URL")
            ) from error
        _, kinds = self._resources.shared_cache.describe()
        return f"answers, {sum(kind.keys for kind in kinds)} keys"

    def database(self) -> str:
        """The database takes changes."""
        from pipeline.store.database import UNICODE
        from pipeline.urls import without_password

        with self._resources.database.transaction() as tx:
            schema = tx.rows("SELECT MAX(version) AS version FROM schema_version")[0]["version"]
            tx.rows("DELETE FROM revisions WHERE name = ?", ("check",))
            encoding = tx.encoding()
        if encoding not in UNICODE:
            raise CheckFailed(
                f"has the encoding {encoding}, which cannot hold every file name",
                "createdb --encoding UTF8 --template template0 NAME, and name it in DATABASE_URL",
            )
        shown = without_password(self._settings.database_url)
        return f"{shown}, schema version {schema}, writable"

    def disk(self) -> str:
        """The disk has room for a rebuild."""
        folder = self._settings.data_dir
        while not folder.exists():
            folder = folder.resolve().parent
        free = shutil.disk_usage(folder).free
        wanted = max(LEAST_FREE, COPIES * sum(f.stat().st_size for f in self._published_files()))
        if free < wanted:
            raise CheckFailed(
                f"{free / GIB:.1f} GiB free in {self._settings.data_dir}, but a rebuild needs "
                f"{wanted / GIB:.1f} GiB",
                f"du -sh {shlex.quote(str(folder))}/* and free space there, or set DATA_DIR to a "
                "larger disk in .env",
            )
        return f"{free / GIB:.1f} GiB free in {self._settings.data_dir}"

    def device(self) -> str:
        """The GPU is used by all who could, or there is none to use."""
        from pipeline.embed.clip import choose_device, gpu_name
        from pipeline.preprocess.onnx_runtime import sees_gpu

        wanted = self._settings.device
        if choose_device(wanted) == "cpu":
            threads = f"{self._settings.threads} CPU threads"
            if gpu := gpu_name():
                return f"DEVICE=cpu: {gpu} is available but not used, {threads}"
            if wanted == "auto" and shutil.which("nvidia-smi"):
                raise CheckFailed(
                    f"an NVIDIA driver is installed, but torch {version('torch')} finds no GPU",
                    "nvidia-smi and pip install 'imgrec[gpu]', or set DEVICE=cpu in .env",
                )
            return f"DEVICE={wanted}: no GPU found, {threads}"
        if self._settings.use_bg_removal and not sees_gpu():
            raise CheckFailed(
                f"{gpu_name()} is used for embeddings, but onnxruntime does not find it",
                "pip uninstall onnxruntime onnxruntime-gpu && pip install 'imgrec[gpu]'",
            )
        return f"{gpu_name()} is used"

    def model(self) -> str:
        """The embedding model loads and embeds an image."""
        from PIL import Image

        start = time.monotonic()
        clip = self._resources.clip
        clip.embed_images([Image.new("RGB", self._settings.preprocess_size)])
        took = time.monotonic() - start
        return f"{self._settings.embedding_model}, {clip.dim} dimensions, loaded in {took:.1f} s"

    def removal(self) -> str:
        """The background removal model loads and cuts an image out."""
        from PIL import Image

        self._resources.remover(Image.new("RGB", (64, 64)))
        return f"{self._settings.rembg_model} works"

    def index(self) -> str:
        """The published index is whole, loads, and is of this machine's fingerprint."""
        from pipeline.embed.fingerprint import find_fingerprint

        store = self._resources.versions
        try:
            opened = store.current()
            store.verify(opened)
            loaded = self._resources.live_index.current().faiss.ntotal
        except IndexMissing as error:
            raise CheckFailed(str(error), REBUILD) from error
        except ImgrecError as error:
            raise CheckFailed(str(error), self._way_back(store)) from error
        images = opened.manifest["images"]
        if loaded != images:
            raise CheckFailed(
                f"{opened.name} has {loaded} vectors for {images} images", self._way_back(store)
            )
        mine = find_fingerprint(self._settings)
        if mine is None:
            return (
                f"{opened.name}, {images} images; its fingerprint was not compared, because the "
                "model's revision is unknown until it is downloaded"
            )
        try:
            opened.require(mine.id, mine.summary)
        except FingerprintMismatch as error:
            root = shlex.quote(str(opened.manifest["root"]))
            raise CheckFailed(str(error), f"imgrec enqueue-rebuild {root} --wait") from error
        return f"{opened.name}, {images} images, made with the same model and settings"

    def worker(self, queue: str) -> Callable[[], str]:
        """A worker listens on the queue."""

        def run_check() -> str:
            if self._broker is not None:
                raise CheckFailed(self._broker, "repair Redis, then: imgrec check")
            count = self._workers[queue]
            if not count:
                raise CheckFailed(
                    "no worker answers", f"celery worker -Q {queue}, or all with: imgrec up"
                )
            return f"{count} {'worker answers' if count == 1 else 'workers answer'}"

        return run_check

    def settings_of_workers(self) -> str:
        """The workers work with this database, this data folder and this models folder."""
        from pipeline.store.identity import PARTS
        from workers.roll_call import Dispute, serving

        if self._broker is not None:
            raise CheckFailed(self._broker, "repair Redis, then: imgrec check")
        roll_call = self._wiring.dispatcher.roll_call
        present = serving(roll_call.present(), QUEUES) if roll_call is not None else []
        if not present:
            return "no worker has said yet what it works with"
        mine = self._resources.identifier.read()
        dispute = Dispute.find(mine, present, QUEUES, PARTS)
        if dispute is not None:
            raise CheckFailed(
                str(dispute), "set the same DATABASE_URL, DATA_DIR and MODELS_DIR everywhere"
            )
        return (
            f"{len(present)} {'worker works' if len(present) == 1 else 'workers work'} with this "
            "database, data folder and models folder"
        )

    @cached_property
    def _workers(self) -> Counter[str]:
        return self._wiring.dispatcher.workers()

    @property
    def _resources(self) -> Resources:
        return self._wiring.resources

    def _published_files(self) -> list[Path]:
        try:
            return list(self._resources.versions.current().folder.iterdir())
        except (ImgrecError, OSError):
            return []

    def _way_back(self, store: VersionStore) -> str:
        """Name an older version that is whole, or the rebuild that mends everything."""
        try:
            current = store.current_name()
        except IndexBroken:
            current = None
        for older in reversed(store.versions()):
            try:
                if older.name != current:
                    store.verify(store.open(older.name))
                    return f"imgrec index rollback {older.name}"
            except ImgrecError:
                continue
        return REBUILD


def _start_redis(url: str) -> str:
    from pipeline.store.redis_client import can_start_here

    if can_start_here(url):
        return "imgrec up"
    return f"start the Redis there, or {corrected('REDIS_URL')}"


def _redis_cli(url: str) -> str:
    """Return how to call redis-cli for this server; it asks for the password."""
    parts = urlsplit(url)
    words = ["redis-cli"]
    if parts.scheme == "unix":
        words += ["-s", parts.path]
    else:
        words += ["-h", parts.hostname or "127.0.0.1", "-p", str(parts.port or 6379)]
    words += ["--tls"] if parts.scheme == "rediss" else []
    words += ["--user", parts.username] if parts.username else []
    words += ["--askpass"] if parts.password else []
    return shlex.join(words)
