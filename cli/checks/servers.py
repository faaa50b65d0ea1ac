"""Rows about what answers over a socket: Redis, the cache, the database, the workers."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from cli.checks.row import RECHECK, CheckContext, CheckFailed, CheckWarning, corrected
from pipeline.errors import ImgrecError
from workers.routes import FETCH, QUEUES

NO_REDIS = CheckFailed("not checked: Redis does not work", f"repair Redis, then: {RECHECK}")


def redis(context: CheckContext) -> str:
    """Redis answers, takes a key and throws no task away."""
    from redis.exceptions import RedisError

    from pipeline.store.redis_client import PREFIX, answers, connect, require_fit, trouble

    url = context.settings.redis_url
    if not answers(url):
        raise CheckFailed(str(trouble(url, None)), _start_redis(url))
    try:
        client = connect(url, 5)
        facts = require_fit(url, client)
        client.set(f"{PREFIX}check", 1, ex=60)
    except RedisError as error:
        raise CheckFailed(str(trouble(url, error)), corrected("REDIS_URL")) from error
    context.redis_works = True
    policy = facts.get("maxmemory_policy", "unknown")
    if policy.startswith("allkeys"):  # volatile-* takes answers and the cache, never a task
        raise CheckFailed(
            f"answers, but its policy {policy} evicts tasks when its memory is full",
            f"{_redis_cli(url)} config set maxmemory-policy noeviction",
        )
    log = "append-only" if facts.get("aof_enabled") else "not append-only: a restart loses tasks"
    return f"{facts.get('redis_version', '?')} answers, policy {policy}, {log}"


def has_cache_of_its_own(context: CheckContext) -> bool:
    settings = context.settings
    return settings.cache_url not in ("", settings.redis_url)


def cache(context: CheckContext) -> str:
    """The cache of its own answers."""
    from redis.exceptions import RedisError

    from pipeline.store.redis_client import connect, require_fit, trouble

    url = context.settings.cache_url
    try:
        require_fit(url, connect(url, 5), "CACHE_URL")
    except RedisError as error:
        raise CheckFailed(str(trouble(url, error, "CACHE_URL")), corrected("CACHE_URL")) from error
    _, kinds = context.resources.shared_cache.describe()
    return f"answers, {sum(kind.keys for kind in kinds)} keys"


def database(context: CheckContext) -> str:
    """The database takes changes."""
    from pipeline.store.database import UNICODE, schema_version
    from pipeline.store.file_system import file_system, shares_memory
    from pipeline.urls import without_password

    with context.resources.database.transaction() as tx:
        schema = schema_version(tx)
        tx.rows("DELETE FROM revisions WHERE name = ?", ("check",))
        encoding = tx.encoding()
    if encoding not in UNICODE:
        raise CheckFailed(
            f"has the encoding {encoding}, which cannot hold every file name",
            "createdb --encoding UTF8 --template template0 NAME, and name it in DATABASE_URL",
        )
    url = without_password(context.settings.database_url)
    file = Path(context.settings.database_url.removeprefix("sqlite:///"))
    if context.settings.database_url.startswith("sqlite:///") and not shares_memory(file):
        raise CheckWarning(
            f"{url} is on a network file system ({file_system(file)}), where SQLite is slower and "
            "its locks depend on the server",
            "put it on a local disk, or use PostgreSQL: correct DATABASE_URL in .env",
        )
    return f"{url}, schema version {schema}, writable"


def has_vector_server(context: CheckContext) -> bool:
    return bool(context.settings.vector_url)


def vectors(context: CheckContext) -> str:
    """The server that searches the vectors takes changes; its replicas follow."""
    state = context.resources.engines.current.check()
    if state.warning:
        raise CheckWarning(state.warning, corrected("VECTOR_READ_URLS"))
    return state.found


def has_artifact_store(context: CheckContext) -> bool:
    return bool(context.settings.artifacts_url)


def artifacts(context: CheckContext) -> str:
    """The store of versions and heads can be written, and has conditional puts."""
    context.resources.require_fit_artifacts()
    return f"{context.settings.artifacts_url} answers, with conditional puts"


def worker(queue: str) -> Callable[[CheckContext], str]:
    """Return the check that a worker listens on the queue."""

    def run(context: CheckContext) -> str:
        if not context.redis_works:
            raise NO_REDIS
        count = context.workers[queue]
        if not count:
            raise CheckFailed(
                "no worker answers", f"celery worker -Q {queue}, or all with: imgrec up"
            )
        return _answering(count)

    return run


def has_feed(context: CheckContext) -> bool:
    """Tell whether a feed lists images to fetch; without one, nobody needs to fetch."""
    try:
        return context.resources.feeds.any_urls()
    except ImgrecError:
        return False  # the database has a row of its own


def fetching(context: CheckContext) -> str:
    """A worker fetches the images of feeds, or `imgrec up` would start one."""
    if not context.redis_works:
        raise NO_REDIS
    hosts = context.settings.fetch_hosts
    count = context.workers[FETCH]
    if not count:
        raise CheckWarning(
            f"no worker answers; hosts: {hosts}",
            "celery worker -Q fetch; 'imgrec up' starts one when a job needs it",
        )
    return f"{_answering(count)}; hosts: {hosts}"


def _answering(count: int) -> str:
    return f"{count} {'worker answers' if count == 1 else 'workers answer'}"


def settings_of_workers(context: CheckContext) -> str:
    """The workers work with this database, this data folder and this models folder."""
    from pipeline.store.identity import PARTS
    from workers.agreement import Mismatch
    from workers.registry import serving

    if not context.redis_works:
        raise NO_REDIS
    registry = context.registry
    present = serving(registry.present(), QUEUES) if registry is not None else []
    if not present:
        return "no worker has said yet what it works with"
    mine = context.resources.identifier.read()
    mismatch = Mismatch.find(mine, present, QUEUES, PARTS)
    if mismatch is not None:
        raise CheckFailed(
            str(mismatch),
            "set the same DATABASE_URL, and ARTIFACTS_URL or DATA_DIR and MODELS_DIR, everywhere",
        )
    return (
        f"{len(present)} {'worker works' if len(present) == 1 else 'workers work'} with this "
        "database, data folder and models folder"
    )


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
