"""Rows about what answers over a socket: Redis, the cache, the database, the workers."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from cli.checks.row import CheckContext, CheckFailed, corrected


def redis(context: CheckContext) -> str:
    """Redis answers, takes a key and throws no task away."""
    from redis.exceptions import RedisError

    from pipeline.store.redis_client import PREFIX, answers, connect, trouble

    url = context.settings.redis_url
    if not answers(url):
        raise CheckFailed(str(trouble(url, None)), _start_redis(url))
    try:
        client = connect(url, 5)
        client.set(f"{PREFIX}check", 1, ex=60)
        facts: Any = client.info()
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
    _, kinds = context.resources.shared_cache.describe()
    return f"answers, {sum(kind.keys for kind in kinds)} keys"


def database(context: CheckContext) -> str:
    """The database takes changes."""
    from pipeline.store.database import UNICODE
    from pipeline.urls import without_password

    with context.resources.database.transaction() as tx:
        schema = tx.rows("SELECT MAX(version) AS version FROM schema_version")[0]["version"]
        tx.rows("DELETE FROM revisions WHERE name = ?", ("check",))
        encoding = tx.encoding()
    if encoding not in UNICODE:
        raise CheckFailed(
            f"has the encoding {encoding}, which cannot hold every file name",
            "createdb --encoding UTF8 --template template0 NAME, and name it in DATABASE_URL",
        )
    url = without_password(context.settings.database_url)
    return f"{url}, schema version {schema}, writable"


def worker(queue: str) -> Callable[[CheckContext], str]:
    """Return the check that a worker listens on the queue."""

    def run(context: CheckContext) -> str:
        if not context.redis_works:
            raise CheckFailed(
                "not checked: Redis does not work", "repair Redis, then: imgrec check"
            )
        count = context.workers[queue]
        if not count:
            raise CheckFailed(
                "no worker answers", f"celery worker -Q {queue}, or all with: imgrec up"
            )
        return f"{count} {'worker answers' if count == 1 else 'workers answer'}"

    return run


def _start_redis(url: str) -> str:
    from cli.redis_server import LOOPBACK

    parts = urlsplit(url)
    if parts.scheme == "redis" and (parts.hostname or "localhost") in LOOPBACK:
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
