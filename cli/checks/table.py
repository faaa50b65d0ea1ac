"""The rows of `imgrec check`, in their order."""

from __future__ import annotations

from collections.abc import Iterator

from cli.checks import folders, models, program, published_index, servers
from cli.checks.row import RECHECK, Check, CheckContext, Row, corrected
from pipeline.errors import ImgrecError
from workers.routes import EMBED, FETCH, INDEX, QUERY

CHECKS = (
    Check("redis", servers.redis, corrected("REDIS_URL")),
    Check("cache", servers.cache, corrected("CACHE_URL"), applies=servers.has_cache_of_its_own),
    Check("database", servers.database, corrected("DATABASE_URL")),
    Check(
        "vectors",
        servers.vectors,
        corrected("VECTOR_URL"),
        applies=servers.has_vector_server,
    ),
    Check(
        "artifacts",
        servers.artifacts,
        corrected("ARTIFACTS_URL"),
        applies=servers.has_artifact_store,
    ),
    Check("disk", folders.disk, f"give this user that right, then: {RECHECK}"),
    Check("rights", folders.rights, f"give this user that right, then: {RECHECK}"),
    Check(
        "device",
        models.device,
        "nvidia-smi, which shows whether the driver works; or set DEVICE=cpu in .env",
        applies=models.are_loaded,
    ),
    Check("model", models.model, corrected("EMBEDDING_MODEL"), applies=models.are_loaded),
    Check(
        "background removal",
        models.removal,
        "make weights, and set REMBG_MODEL=u2netp and U2NET_HOME=models/u2net in .env; or "
        "USE_BG_REMOVAL=false",
        applies=models.background_is_removed,
    ),
    Check("index", published_index.index),
    *(Check(f"worker on {queue}", servers.worker(queue)) for queue in (EMBED, INDEX, QUERY)),
    Check(f"worker on {FETCH}", servers.fetching, applies=servers.has_feed),
    Check("program", program.program),
    Check("agreement", servers.settings_of_workers),
)
NAME_WIDTH = max(len(check.name) for check in CHECKS) + 2  # with the colon and a space


def rows(context: CheckContext) -> Iterator[Row]:
    """Try one thing after the other; settings that cannot be read leave only their own row."""
    try:
        _ = context.settings
    except ImgrecError as error:
        yield Row(
            "settings",
            "error",
            str(error),
            f"correct it in .env or in the environment, then: {RECHECK}",
        )
        return
    for check in CHECKS:
        if check.applies(context):
            yield check.row(context)
