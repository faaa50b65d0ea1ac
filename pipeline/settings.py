"""Read every setting from the environment or `.env`, once, into one frozen value.

No other module reads the environment. `.env.example` and docs/reference.md list the same names;
a test compares the three.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ByteSize, Field, TypeAdapter, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from pipeline.errors import WrongUse
from pipeline.urls import database_address, redis_address, without_password

MIB = 1024 * 1024


class Settings(BaseSettings):
    """All settings; the environment's name of a field is its name in capitals."""

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    # Model
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the model runs")
    embedding_model: str = Field(
        "openai/clip-vit-base-patch32",
        min_length=1,
        description="Any transformers CLIP or SigLIP: a hub name or a folder",
    )
    embedding_revision: str = Field("main", description="Branch, tag or commit of a hub model")
    precision: Literal["auto", "fp32", "bf16", "int8"] = Field(
        "auto",
        description="How exactly images are embedded; auto: fastest whose vectors stay the same",
    )
    embed_batch_size: int = Field(32, ge=1, le=4096, description="Images in one forward pass")
    cpu_threads: int = Field(
        0, ge=0, description="Compute threads of one worker process; 0 takes half of the cores"
    )

    # Preprocessing
    use_bg_removal: bool = Field(True, description="Cut the product out with rembg first")
    rembg_model: str = Field(
        "u2net", min_length=1, description="u2net, u2netp, isnet-general-use, silueta, ..."
    )
    rembg_backend: Literal["auto", "onnxruntime", "mnn", "openvino"] = Field(
        "auto", description="What computes masks on a CPU; auto: the fastest that draws the same"
    )
    u2net_home: str = Field("", description="Folder of the rembg weights; empty: rembg's own")
    preprocess_size: Annotated[tuple[int, int], NoDecode] = Field(
        (224, 224), description="Width, height in pixels of what the model sees"
    )
    preprocess_padding: float = Field(
        0.1, ge=0, le=1, description="Margin around a cut-out, as a share of its longer side"
    )
    preprocess_bg_color: Annotated[tuple[int, int, int], NoDecode] = Field(
        (255, 255, 255), description="Red, green, blue behind cut-outs, alpha and padding"
    )
    prepared_cache_bytes: int = Field(
        2048 * MIB,
        ge=0,
        description="Disk for cut-outs that later rebuilds use again; 0 keeps none",
    )
    max_image_pixels: int = Field(
        50_000_000, ge=64, description="Larger pictures are refused before they are decoded"
    )
    max_image_bytes: int = Field(50 * MIB, ge=1024, description="Larger files are refused")
    worker_max_memory: str = Field(
        "",
        description="Memory of one worker process, as in 4GiB; empty: half of the machine's or "
        "most of the container's; 0: no limit",
    )

    # Places
    data_dir: Path = Field(Path("data"), description="Folder of the index, the jobs, the logs")
    models_dir: Path = Field(Path("models"), description="Folder of the trained heads")
    image_roots: str = Field(
        "", description="Folders that workers may read, separated by ':'; empty: any job's folder"
    )
    database_url: str = Field(
        "sqlite:///./data/app.db", description="sqlite:///FILE or postgresql://..."
    )
    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        description="Broker and results (append-only, noeviction); rediss://HOST is Redis over "
        "TLS and verifies, ?ssl_ca_certs=FILE names an authority of your own",
    )
    cache_url: str = Field("", description="Redis of the shared cache; empty: REDIS_URL")

    # Rebuild
    shard_size: int = Field(256, ge=1, le=10_000, description="Images in one task")
    shard_window: int = Field(64, ge=1, description="Shards of a job that wait in the queue")
    lease_s: float = Field(15, gt=0, description="Silence after which a shard's worker is dead")
    stall_s: float = Field(
        600, gt=0, description="One image or batch that takes longer counts as a hung worker"
    )
    max_attempts: int = Field(
        3, ge=1, description="Crashes of a shard before its images are tried one by one"
    )
    reconcile_s: float = Field(5, gt=0, description="Pause between two looks for lost work")
    keep_versions: int = Field(3, ge=2, description="Index versions kept for rollback")
    flat_max_vectors: int = Field(
        50_000, ge=1, description="Up to here the index is exact; above it is IVF"
    )
    index_memory: ByteSize | None = Field(
        None,
        description="What the index may take, as 2GiB; above it, its vectors are shortened; "
        "empty: no limit",
    )

    # Classify
    labels_file: str = Field(
        "", description="What classify can say, a TOML file; empty: the one that comes with imgrec"
    )
    min_confidence: float = Field(
        # On the demo catalogue imgrec-mini is right in 95.9 % of the colours above 0.4 (95.5 % of
        # all). No guard against pictures without a product: of noise it was 0.99 sure.
        0.4,
        ge=0,
        le=1,
        description="A label with less is shown as unknown, with its best guess",
    )

    # Query
    top_k: int = Field(5, ge=1, le=1000, description="Matches of a query")
    query_concurrency: int = Field(16, ge=1, description="Queries in flight in one query worker")
    vector_ttl_s: int = Field(30 * 86_400, ge=1, description="Life of a cached vector")
    result_ttl_s: int = Field(86_400, ge=1, description="Life of a cached query result")
    query_log_days: int = Field(
        90, ge=0, description="Days that answered queries are kept for feedback; 0 keeps none"
    )

    @field_validator("preprocess_size", "preprocess_bg_color", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(","))
        return value

    @field_validator("preprocess_size")
    @classmethod
    def _size_in_range(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not all(16 <= side <= 2048 for side in value):
            raise ValueError("each side must be 16 to 2048 pixels, as in 224,224")
        return value

    @field_validator("preprocess_bg_color")
    @classmethod
    def _color_in_range(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if not all(0 <= channel <= 255 for channel in value):
            raise ValueError("three numbers from 0 to 255, as in 255,255,255")
        return value

    @field_validator("worker_max_memory")
    @classmethod
    def _known_size(cls, value: str) -> str:
        try:
            TypeAdapter(ByteSize).validate_python(value or "0")
        except ValidationError:
            raise ValueError("a number of bytes, as in 4GiB or 512MB") from None
        return value

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: str) -> str:
        return database_address(value)

    @field_validator("redis_url", "cache_url")
    @classmethod
    def _known_redis(cls, value: str) -> str:
        return redis_address(value) if value else value

    @property
    def index_dir(self) -> Path:
        return self.data_dir / "faiss_index"

    @property
    def training_dir(self) -> Path:
        return self.data_dir / "training"

    @property
    def jobs_dir(self) -> Path:
        return self.data_dir / "jobs"

    @property
    def memory_limit(self) -> int | None:
        """`WORKER_MAX_MEMORY` in bytes; 0 for none, None where it is left to us."""
        value = self.worker_max_memory
        return int(TypeAdapter(ByteSize).validate_python(value)) if value else None

    @property
    def threads(self) -> int:
        """Compute threads of this process: `CPU_THREADS`, or half of the cores.

        Half, because an embed and a query worker commonly share a machine; `imgrec up` knows how
        many workers it starts and divides the cores exactly.
        """
        return self.cpu_threads or max(1, cores() // 2)


def cores() -> int:
    """Count the CPU cores that this process may use; containers may be given fewer than exist."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@lru_cache(maxsize=1)
def load_settings() -> Settings:
    """Return the process's settings.

    Raises:
        WrongUse: a value does not parse; the sentence names the setting and the value.
    """
    try:
        settings = Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).upper()
        reason = first["msg"].removeprefix("Value error, ")
        shown = without_password(repr(first["input"]))
        if name.endswith("_URL") and "://" not in shown:
            shown = "not shown: it may hold a password"
        # Without its cause, which quotes the value with its password.
        raise WrongUse(f"The setting {name} cannot be used: {reason} (it is {shown}).") from None
    if settings.u2net_home:
        # rembg reads this name from the environment only; a value from .env must reach it.
        os.environ["U2NET_HOME"] = settings.u2net_home
    return settings
