"""Name what made a vector: the model's content and the preprocessing's parameters.

The command line plans a rebuild without loading torch, so this module needs neither: a folder is
known by the digest of its files, a hub model by its commit in the local hub cache.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.access import require_readable
from pipeline.atomic_files import file_sha256
from pipeline.preprocess.prepare import Preprocessing
from pipeline.settings import Settings

# What can change a vector. A model card or a training log cannot.
MODEL_SUFFIXES = frozenset({".json", ".safetensors", ".bin", ".txt", ".model"})


@dataclass(frozen=True)
class Fingerprint:
    """`id` stands in cache keys, shards and manifests; `description` explains it to people."""

    id: str
    description: dict[str, Any]

    @property
    def summary(self) -> str:
        spec = self.description["preprocessing"]
        removal = (
            f"background removal by {spec['rembg_model']}" if spec["rembg_model"] else "original"
        )
        size = "x".join(str(side) for side in spec["size"])
        return f"{self.description['model']} on {removal} {size} images [{self.id}]"


def find_fingerprint(settings: Settings) -> Fingerprint | None:
    """Return the fingerprint that these settings stand for.

    None when the hub model is not in this machine's cache yet: only a worker that has downloaded
    it can tell its commit.
    """
    revision = model_revision(settings.embedding_model, settings.embedding_revision)
    if revision is None:
        return None
    spec = Preprocessing.from_settings(settings).parameters()
    identity = {"revision": revision, "preprocessing": spec}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return Fingerprint(digest[:16], {"model": settings.embedding_model, **identity})


def require_readable_model(name: str) -> None:
    """Check that the hub's cache can be read, where a model is to come from it or into it.

    Without the right, it would look empty, and the model missing.

    Raises:
        FolderUnavailable: it cannot.
    """
    if not Path(name).expanduser().is_dir():
        from huggingface_hub.constants import HF_HUB_CACHE

        require_readable(Path(HF_HUB_CACHE), "HF_HOME")


def model_revision(name: str, revision: str) -> str | None:
    """Return `sha256:...` of a model folder, or the commit of a hub model in the local cache."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        files = sorted(
            file
            for file in folder.iterdir()
            if file.suffix in MODEL_SUFFIXES and file.is_file() and not file.name.startswith(".")
        )
        digest = hashlib.sha256()
        for file in files:
            stat = file.stat()
            digest.update(file.name.encode() + b"\0")
            digest.update(_file_digest(file.resolve(), stat.st_size, stat.st_mtime_ns))
        return f"sha256:{digest.hexdigest()[:32]}"
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None  # no hub name; loading the model will say so in a sentence
    if not isinstance(config, str):
        return None
    return f"{name}@{Path(config).parent.name}"


@lru_cache(maxsize=256)
def _file_digest(file: Path, size: int, mtime_ns: int) -> bytes:
    return bytes.fromhex(file_sha256(file))
