"""`imgrec check`: prove, thing by thing, that this machine can work; or say what to do about it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from cli.output import json_option, print_json
from pipeline.errors import ImgrecError
from pipeline.settings import Settings, load_settings

GIB = 1024**3
# A rebuild writes its shards and a whole new version beside the one that serves.
COPIES = 3
LEAST_FREE = GIB


@dataclass(frozen=True)
class Proof:
    """One thing that was tried: what came of it and, where it failed, the next command."""

    name: str
    ok: bool
    found: str
    next: str = ""


class Failed(Exception):
    """A check that failed, with what to do about it."""

    def __init__(self, found: str, next_step: str) -> None:
        super().__init__(found, next_step)
        self.found, self.next = found, next_step


@click.command()
@click.option("--no-model", is_flag=True, help="Do not load the models (they take some seconds).")
@json_option
def check(no_model: bool, as_json: bool) -> int:
    """Prove that everything here works, line by line."""
    settings = load_settings()
    proofs = []
    for name, prove in _checks(settings, no_model):
        try:
            proof = Proof(name, True, prove())
        except Failed as failed:
            proof = Proof(name, False, failed.found, failed.next)
        except ImgrecError as error:
            proof = Proof(name, False, str(error), NEXT.get(name, "imgrec up"))
        proofs.append(proof)
        if not as_json:
            mark = click.style("ok  ", fg="green") if proof.ok else click.style("FAIL", fg="red")
            click.echo(f"{mark} {proof.name}: {proof.found}")
            if proof.next:
                click.echo(f"     next: {proof.next}")
    good = all(proof.ok for proof in proofs)
    if as_json:
        print_json({"ok": good, "checks": [asdict(proof) for proof in proofs]})
    return 0 if good else 4


NEXT = {
    "redis": "imgrec up",
    "cache": "correct CACHE_URL in .env",
    "database": "correct DATABASE_URL in .env",
    "model": "correct EMBEDDING_MODEL in .env",
    "background removal": "make weights, or set USE_BG_REMOVAL=false",
    "index": "imgrec enqueue-rebuild FOLDER --wait",
}

Check = tuple[str, Callable[[], str]]


def _checks(settings: Settings, no_model: bool) -> list[Check]:
    found: list[Check] = [("redis", lambda: _redis(settings))]
    if settings.cache_url and settings.cache_url != settings.redis_url:
        found.append(("cache", lambda: _cache(settings)))
    found.append(("database", lambda: _database(settings)))
    found.append(("disk", lambda: _disk(settings)))
    if not no_model:
        found.append(("device", lambda: _device(settings)))
        found.append(("model", lambda: _model(settings)))
        if settings.use_bg_removal:
            found.append(("background removal", lambda: _removal(settings)))
    found.append(("index", lambda: _index(settings)))
    return found + [(f"worker on {q}", partial(_worker, q)) for q in ("embed", "index", "query")]


def _redis(settings: Settings) -> str:
    import redis

    from workers import flow

    flow.require_redis()
    client = redis.Redis.from_url(settings.redis_url, socket_timeout=5)
    facts: Any = client.info()
    policy = facts.get("maxmemory_policy", "unknown")
    if policy not in ("noeviction", "unknown"):
        raise Failed(
            f"answers, but its policy {policy} may throw tasks away when its memory is full",
            "redis-cli config set maxmemory-policy noeviction",
        )
    kept = "append-only" if facts.get("aof_enabled") else "not append-only: a restart loses tasks"
    return f"{facts.get('redis_version', '?')} answers, policy {policy}, {kept}"


def _cache(settings: Settings) -> str:
    from pipeline.store.cache import Cache

    _, kinds = Cache(settings.cache_url, settings.vector_ttl_s, settings.result_ttl_s).describe()
    return f"answers, {sum(kind.keys for kind in kinds)} keys"


def _database(settings: Settings) -> str:
    from pipeline.store.database import Database, without_password

    with Database(settings.database_url).transaction() as tx:
        version = tx.rows("SELECT MAX(version) AS version FROM schema_version")[0]["version"]
    return f"{without_password(settings.database_url)}, schema version {version}, writable"


def _disk(settings: Settings) -> str:
    folder = settings.data_dir
    while not folder.exists():
        folder = folder.resolve().parent
    free = shutil.disk_usage(folder).free
    index = sum(f.stat().st_size for f in _published_files(settings))
    wanted = max(LEAST_FREE, COPIES * index)
    if free < wanted:
        raise Failed(
            f"{free / GIB:.1f} GiB free in {settings.data_dir}, a rebuild wants {wanted / GIB:.1f}",
            "free space there, or set DATA_DIR to a larger disk",
        )
    return f"{free / GIB:.1f} GiB free in {settings.data_dir}"


def _published_files(settings: Settings) -> list[Path]:
    from pipeline.versions import VersionStore

    try:
        return list(VersionStore(settings.index_dir).current().folder.iterdir())
    except (ImgrecError, OSError):
        return []


def _device(settings: Settings) -> str:
    from pipeline.background import sees_gpu
    from pipeline.clip import choose_device, gpu_name

    if choose_device(settings.device) == "cpu":
        return f"DEVICE={settings.device}: no GPU is used, {settings.threads} CPU threads"
    if settings.use_bg_removal and not sees_gpu():
        raise Failed(
            f"{gpu_name()} is used for embeddings, but onnxruntime does not see it",
            "pip uninstall onnxruntime onnxruntime-gpu && pip install 'imgrec[gpu]'",
        )
    return f"{gpu_name()} is used"


def _model(settings: Settings) -> str:
    from PIL import Image

    from pipeline.clip import load_clip

    start = time.monotonic()
    clip = load_clip(settings)
    clip.embed_images([Image.new("RGB", settings.preprocess_size)])
    took = time.monotonic() - start
    return f"{settings.embedding_model}, {clip.dim} dimensions, loaded in {took:.1f} s"


def _removal(settings: Settings) -> str:
    from PIL import Image

    from pipeline.background import load_remover

    load_remover(settings.rembg_model, settings.threads, settings.device)(
        Image.new("RGB", (64, 64))
    )
    return f"{settings.rembg_model} works"


def _index(settings: Settings) -> str:
    from pipeline.fingerprint import find_fingerprint
    from pipeline.published import PublishedIndex
    from pipeline.versions import VersionStore

    opened = PublishedIndex(VersionStore(settings.index_dir)).current()
    mine = find_fingerprint(settings)
    if mine is not None:
        opened.version.require(mine.id, mine.summary)
    images = opened.version.manifest["images"]
    if opened.faiss.ntotal != images:
        raise Failed(
            f"{opened.version.name} holds {opened.faiss.ntotal} vectors for {images} images",
            "imgrec index rollback",
        )
    return f"{opened.version.name}, {images} images, of this fingerprint"


def _worker(queue: str) -> str:
    from workers import flow

    count = flow.workers_on(queue)
    if not count:
        raise Failed("none answers", f"celery worker -Q {queue}, or all with 'imgrec up'")
    return f"{count} answer{'s' if count == 1 else ''}"
