"""Read every setting from the environment or `.env`, once, into one frozen value.

No other module reads the environment. `.env.example` and the table in docs/reference.md are written
from the fields and their descriptions below; a test compares them.
"""

from __future__ import annotations

import base64
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ByteSize,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from pipeline.allowed_hosts import AllowedHosts
from pipeline.cgroup import cores
from pipeline.errors import WrongUse, first_invalid
from pipeline.renamed_settings import accept_old_names
from pipeline.urls import (
    database_address,
    redis_address,
    vector_address,
    vector_addresses,
    without_password,
)

MIB = 1024**2
GIB = 1024**3
MAX_SIZE = 2**63 - 1  # of a resource limit


def _parse_size(value: Any, parse: ValidatorFunctionWrapHandler) -> ByteSize:
    try:
        size: ByteSize = parse(value)
    except ValidationError:
        raise ValueError("a size in bytes is required, e.g. 2GiB or 512MB") from None
    if size > MAX_SIZE:
        raise ValueError("the size is larger than any memory or disk")
    return size


SECRET_PREFIX = "whsec_"  # of Standard Webhooks, before a key in base64
Size = Annotated[ByteSize, WrapValidator(_parse_size)]
DatabaseUrl = Annotated[str, AfterValidator(database_address)]
RedisUrl = Annotated[str, AfterValidator(lambda url: redis_address(url) if url else url)]
VectorUrl = Annotated[str, AfterValidator(lambda url: vector_address(url) if url else url)]
VectorUrls = Annotated[
    str, AfterValidator(lambda urls: ",".join(map(vector_address, vector_addresses(urls))))
]


class Settings(BaseSettings):
    """All settings; the environment's name of a field is its name in capitals."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8-sig",  # Windows' editors write a byte order mark
        env_ignore_empty=True,
        allow_inf_nan=False,
        extra="ignore",
        frozen=True,
    )

    # Model
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="Device of the models: `auto`, `cpu` or `cuda`. `auto` uses a GPU if there is "
        "one; with `cuda`, a missing GPU is an error",
    )
    embedding_model: str = Field(
        "openai/clip-vit-base-patch32",
        min_length=1,
        description="Embedding model: the hub name or the folder of a transformers model, e.g. a "
        "CLIP, SigLIP or DINOv2; `imgrec models` lists some",
    )
    embedding_revision: str = Field(
        "main", description="Branch, tag or commit of an embedding model from the hub"
    )
    model_precision: Literal["auto", "fp32", "bf16", "int8"] = Field(
        "auto",
        description="Numeric precision of the image encoder: `fp32`, `bf16` or `int8`. `auto` "
        "picks the fastest whose vectors keep a cosine of at least 0.995 with float32",
    )
    embed_batch_size: int = Field(
        32,
        ge=1,
        le=4096,
        description="Number of images in one forward pass of the embedding model; larger batches "
        "need more memory",
    )
    cpu_threads: int = Field(
        0,
        ge=0,
        description="Number of compute threads of one worker process; 0: half of the cores, or "
        "under `imgrec up` its share of them",
    )

    # Preprocessing
    use_bg_removal: bool = Field(
        True, description="Whether to remove the background of images with rembg before embedding"
    )
    rembg_model: str = Field(
        "u2net",
        min_length=1,
        description="Background removal model of rembg: `u2net`, `u2netp`, `isnet-general-use`, "
        "`silueta`, ...",
    )
    rembg_backend: Literal["auto", "onnxruntime", "mnn", "openvino"] = Field(
        "auto",
        description="Runtime of background removal on a CPU: `onnxruntime`, `mnn` or `openvino`. "
        "`auto` picks the fastest that computes the same masks",
    )
    u2net_home: str = Field(
        "", description="Folder of the rembg weights; empty: the default of rembg"
    )
    preprocess_size: Annotated[tuple[int, int], NoDecode] = Field(
        (224, 224), description="Width and height in pixels of the image that the model sees"
    )
    preprocess_padding: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Margin around a cut-out product, as a fraction of its longer side",
    )
    preprocess_bg_color: Annotated[tuple[int, int, int], NoDecode] = Field(
        (255, 255, 255),
        description="Color behind cut-outs, transparency and padding: red, green and blue, each 0 "
        "to 255",
    )
    cutout_cache_bytes: Size = Field(
        ByteSize(2 * GIB),
        description="Disk space for cached cut-outs, e.g. 2GiB, which save later rebuilds the "
        "background removal; 0: no cache",
    )
    max_image_pixels: int = Field(
        50_000_000,
        ge=64,
        description="Maximum number of pixels of an image; larger images are rejected before they "
        "are decoded",
    )
    max_image_bytes: Size = Field(
        ByteSize(50 * MIB),
        ge=1024,
        description="Maximum size of an image file, e.g. 50MiB; larger files are rejected",
    )
    worker_max_memory: Size | None = Field(
        None,
        description="Memory limit of one worker process, e.g. 4GiB; images that need more are "
        "rejected, and a worker that leaks is restarted; 0: unlimited; empty: half of the "
        "machine's memory, or most of the container's",
    )

    memory_shares: int = Field(
        1,
        ge=1,
        description="Number of worker processes that share the memory limit of their container; "
        "`imgrec up` sets it for its workers",
    )

    # Places
    data_dir: Path = Field(
        Path("data"),
        description="Folder of the index, the files of running rebuilds, the cut-out cache, the "
        "training images, the heartbeats and the logs",
    )
    artifacts_url: str = Field(
        "",
        description="Object store of index versions, running rebuilds and trained heads, e.g. "
        "`s3://shop/imgrec`, so that hosts share no disk; empty: `DATA_DIR` and `MODELS_DIR` hold "
        "them",
    )
    models_dir: Path = Field(
        Path("models"), description="Folder of the trained heads; query workers must see the same"
    )
    image_roots: str = Field(
        "",
        description="Folders and stores that workers may read images from, separated by `:`, e.g. "
        "`/data/products:s3://shop/photos`; empty: the folder or store of any job",
    )
    database_url: DatabaseUrl = Field(
        "sqlite:///./data/app.db",
        description="Database of jobs, product data and feedback: `sqlite:///FILE` or "
        "`postgresql://USER:PASSWORD@HOST/NAME`",
    )
    vector_url: VectorUrl = Field(
        "",
        description="Server that searches the vectors: `postgresql://USER:PASSWORD@HOST/NAME`, a "
        "PostgreSQL with pgvector 0.8.4 or later, or `milvus://HOST:19530/DATABASE`, over TLS "
        "`milvus+tls://`; empty: FAISS, in files of `DATA_DIR`",
    )
    vector_token: str = Field(
        "", description="Token for the Milvus at `VECTOR_URL`, or `USER:PASSWORD`; empty: no login"
    )
    vector_replicas: int = Field(
        1,
        ge=1,
        description="Copies of an index that Milvus holds in the memory of its query nodes",
    )
    vector_read_urls: VectorUrls = Field(
        "",
        description="Replicas of the PostgreSQL at `VECTOR_URL` that answer queries in turns, "
        "separated by commas; empty: the primary answers",
    )
    redis_url: RedisUrl = Field(
        "redis://127.0.0.1:6379/0",
        description="Redis of the queues and results, which must not evict keys; `rediss://` is "
        "Redis over TLS, where `?ssl_ca_certs=FILE` names your own certificate authority",
    )
    cache_url: RedisUrl = Field(
        "", description="Redis of the shared cache; empty: the one at `REDIS_URL`"
    )

    # Rebuild
    shard_size: int = Field(
        256,
        ge=1,
        le=10_000,
        description="Number of images in one shard, the unit of work of an embed worker",
    )
    max_shards_in_flight: int = Field(
        64,
        ge=1,
        description="Maximum number of shards of a job that are queued or running at once; fewer "
        "than twice the number of embed workers may leave some of them idle",
    )
    lease_s: float = Field(
        15,
        gt=0,
        le=900,
        description="Seconds without a heartbeat after which a worker is presumed dead and its "
        "shard is reassigned",
    )
    hung_after_s: float = Field(
        600,
        gt=0,
        le=86_400,
        description="Seconds that one image or batch may take before its worker counts as hung "
        "and loses its shard",
    )
    shard_max_attempts: int = Field(
        3,
        ge=1,
        description="Number of times that a shard may crash its worker before its images are "
        "tried one by one, to find the one that does",
    )
    reconcile_s: float = Field(
        5,
        gt=0,
        le=3600,
        description="Seconds between two searches for lost messages and expired leases",
    )
    keep_versions: int = Field(
        3, ge=2, description="Number of index versions kept on disk for rollback"
    )
    keep_jobs: int = Field(
        1000,
        ge=1,
        description="Number of ended rebuilds that are kept; older ones are deleted",
    )
    keep_job_rows: int = Field(
        1_000_000,
        ge=1,
        description="Number of shards and failures of ended rebuilds that the database keeps; "
        "beyond it, the oldest rebuilds are deleted",
    )
    up_log_bytes: Size = Field(
        ByteSize(10 * MIB),
        ge=1024,
        description="Maximum size of the log of `imgrec up --detach`, e.g. 10MiB; then a new one "
        "is started, and the previous one is kept",
    )
    flat_max_vectors: int = Field(
        50_000,
        ge=1,
        description="Maximum number of vectors that are searched exactly; larger indexes are "
        "approximate (IVF)",
    )
    index_memory: Size | None = Field(
        None,
        description="Memory budget of the index, e.g. 2GiB; larger indexes are compressed (SQ8, "
        "then PQ); empty or 0: unlimited",
    )

    # Classify
    labels_file: str = Field(
        "",
        description="TOML file with the labels of `imgrec classify`; empty: the file that comes "
        "with imgrec",
    )
    min_confidence: float = Field(
        # On the demo catalogue imgrec-mini is right in 96 % of all colours. No guard against images
        # without a product.
        0.4,
        ge=0,
        le=1,
        description="Confidence, 0 to 1, below which a label is shown as `unknown`, with its best "
        "guess",
    )

    # Query
    top_k: int = Field(
        5, ge=1, le=1000, description="Number of matches of a query without `--top-k`"
    )
    query_concurrency: int = Field(
        16, ge=1, description="Number of queries that one query worker serves concurrently"
    )
    vector_ttl_s: int = Field(
        30 * 86_400, ge=1, description="Seconds that a vector is kept in the shared cache"
    )
    result_ttl_s: int = Field(
        86_400, ge=1, description="Seconds that a query result is kept in the shared cache"
    )
    query_log_days: int = Field(
        90,
        ge=0,
        description="Days that answered queries are kept for feedback; 0: queries are not logged",
    )

    # Web server
    web_timeout_s: float = Field(
        30,
        gt=0,
        le=600,
        description="Seconds that the web server waits for the answer of a query",
    )
    web_max_queries: int = Field(
        128,
        ge=1,
        description="Number of queries that the web server serves concurrently; more are refused "
        "with status 503",
    )
    web_max_streams: int = Field(
        64,
        ge=1,
        description="Number of event streams (progress of rebuilds) that the web server keeps "
        "open; more are refused with status 503",
    )
    web_max_streams_per_key: int = Field(
        16,
        ge=1,
        description="Number of event streams that one API key may keep open; more are refused with "
        "status 429",
    )
    web_max_body: Size = Field(
        ByteSize(20 * MIB),
        ge=1024,
        description="Maximum size of the body of a request to the web server, e.g. 20MiB",
    )
    rate_limit: float = Field(
        50,
        ge=0,
        description="Requests a second that one API key may send on average; 0: unlimited",
    )
    rate_burst: int = Field(
        100, ge=1, description="Requests that one API key may send at once after a pause"
    )
    cors_origins: str = Field(
        "",
        description="Origins whose pages may call the API from a browser, separated by commas, "
        "e.g. `https://shop.example`; empty: none",
    )
    image_url_hosts: str = Field(
        "",
        description="Hosts that images of queries may be fetched from, separated by commas, e.g. "
        "`cdn.shop.example,*.images.example`; networks such as `10.1.0.0/16` allow private "
        "addresses; empty: no image is fetched",
    )
    fetch_hosts: str = Field(
        "*",
        description="Hosts that feeds and their images may be fetched from, as in "
        "`IMAGE_URL_HOSTS`; `*` or empty: every host with a public address; "
        "`*,10.1.0.0/16` also allows that private network",
    )
    fetch_connections: int = Field(
        4,
        ge=1,
        le=64,
        description="Number of connections to one host at once, divided among the fetch workers",
    )
    fetch_rate: float = Field(
        10,
        gt=0,
        le=10_000,
        description="Requests a second to one host, divided among the fetch workers",
    )
    fetch_timeout_s: float = Field(
        20,
        gt=0,
        le=600,
        description="Seconds within which an image must be downloaded, redirects included",
    )
    fetch_attempts: int = Field(
        4,
        ge=1,
        le=20,
        description="Number of requests for an image whose host does not answer or asks to wait",
    )
    fetch_recheck_s: int = Field(
        0,
        ge=0,
        description="Seconds in which an image that was fetched is not asked for again; 0: each "
        "rebuild asks whether it has changed",
    )
    fetch_robots: str = Field(
        "noai,noimageai",
        description="Directives of the header `X-Robots-Tag`, separated by commas, with which an "
        "image is left out, e.g. `noai,noimageai,noindex,noimageindex`; `off`: none",
    )
    feed_max_bytes: Size = Field(
        ByteSize(4 * GIB),
        ge=1024,
        description="Maximum size of a product feed, e.g. 4GiB, both compressed and decompressed",
    )
    feed_timeout_s: float = Field(
        1800, gt=0, le=86_400, description="Seconds within which a product feed must be downloaded"
    )
    webhook_hosts: str = Field(
        "",
        description="Hosts that webhooks may be sent to when a job ends, as in `IMAGE_URL_HOSTS`; "
        "empty: no webhooks",
    )
    webhook_secret: str = Field(
        "",
        description="Secret that signs webhooks, at least 24 characters, e.g. `whsec_` and the "
        "base64 of 32 random bytes; required with `WEBHOOK_HOSTS`",
    )
    metrics_host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address on which a worker serves its metrics; `0.0.0.0` in a container",
    )
    metrics_port: int = Field(
        0,
        ge=0,
        le=65_535,
        description="Port on which each worker serves its metrics; `imgrec up` counts up from it; "
        "0: none",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Accept the old names of renamed settings."""
        sources = (env_settings, dotenv_settings)
        accept_old_names([each for each in sources if isinstance(each, EnvSettingsSource)])
        return (init_settings, *sources)

    @field_validator("data_dir", "models_dir", "u2net_home", "labels_file", mode="before")
    @classmethod
    def _home(cls, value: Any) -> Any:
        """Read `~` as a shell does: in .env, none does."""
        return os.path.expanduser(value) if isinstance(value, str) else value

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
            raise ValueError("each side must be 16 to 2048 pixels, e.g. 224,224")
        return value

    @field_validator("preprocess_bg_color")
    @classmethod
    def _color_in_range(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if not all(0 <= channel <= 255 for channel in value):
            raise ValueError("three numbers from 0 to 255 are required, e.g. 255,255,255")
        return value

    @field_validator("image_url_hosts", "webhook_hosts")
    @classmethod
    def _known_hosts(cls, value: str) -> str:
        if value:
            AllowedHosts.parse(value)
        return value

    @field_validator("fetch_hosts")
    @classmethod
    def _known_fetch_hosts(cls, value: str) -> str:
        AllowedHosts.parse(value, star=True)
        return value

    @field_validator("fetch_robots")
    @classmethod
    def _known_directives(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z]+( *, *[a-z]+)*", value.lower()):
            raise ValueError("words separated by commas are required, e.g. noai,noimageai, or off")
        return value.lower()

    @field_validator("webhook_secret")
    @classmethod
    def _long_secret(cls, value: str) -> str:
        if value and len(value) < 24:
            raise ValueError("at least 24 characters are required")
        if value.startswith(SECRET_PREFIX):
            try:
                base64.b64decode(value.removeprefix(SECRET_PREFIX), validate=True)
            except ValueError:
                raise ValueError(f"base64 is required behind {SECRET_PREFIX}") from None
        return value

    @property
    def robots_directives(self) -> frozenset[str]:
        """The directives of FETCH_ROBOTS that are honoured."""
        return frozenset(part.strip() for part in self.fetch_robots.split(",")) - {"off"}

    @property
    def index_dir(self) -> Path:
        return self.data_dir / "faiss_index"

    @property
    def cutout_dir(self) -> Path:
        return self.data_dir / "prepared"

    @property
    def fetched_dir(self) -> Path:
        return self.data_dir / "fetched"

    @property
    def training_dir(self) -> Path:
        return self.data_dir / "training"

    @property
    def jobs_dir(self) -> Path:
        return self.data_dir / "jobs"

    @property
    def run_dir(self) -> Path:
        return self.data_dir / "run"

    @property
    def threads(self) -> int:
        """Compute threads of this process: `CPU_THREADS`, or half of the cores.

        Half, because an embed and a query worker commonly share a machine; `imgrec up` knows how
        many workers it starts and divides the cores exactly.
        """
        return self.cpu_threads or max(1, cores() // 2)


@lru_cache(maxsize=1)
def load_settings() -> Settings:
    """Return the process's settings.

    Raises:
        WrongUse: a value does not parse, or .env cannot be read; the sentence names the setting
            and the value, or the file.
    """
    try:
        settings = Settings()
    except OSError as error:
        raise WrongUse(
            f"The settings file .env of the working folder cannot be read: {error.strerror}. Give "
            "this user the right to read the folder and the file, or start in another folder."
        ) from error
    except UnicodeDecodeError as error:
        utf16 = error.object.startswith((b"\xff\xfe", b"\xfe\xff"))
        raise WrongUse(
            f"The settings file .env of the working folder is {'UTF-16, ' if utf16 else ''}not "
            "UTF-8: save it as UTF-8."
        ) from error
    except ValidationError as error:
        path, reason, value = first_invalid(error)
        name, shown = str(path[0]).upper(), without_password(repr(value))
        if name.endswith("_SECRET"):
            shown = "not shown, because it is a secret"
        if name.endswith("_URLS") or (name.endswith("_URL") and "://" not in shown):
            shown = "not shown, because it may contain a password"
        # Without its cause, which quotes the value with its password.
        raise WrongUse(f"The setting {name} cannot be used: {reason} (it is {shown}).") from None
    if settings.u2net_home:
        # rembg reads this name from the environment only; a value from .env must reach it.
        os.environ["U2NET_HOME"] = settings.u2net_home
    return settings
