"""Reach a Redis, and say in one sentence why one cannot be used."""

from __future__ import annotations

import math
import os
import re
import ssl
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from pipeline.errors import ServerUnavailable
from pipeline.urls import without_password

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
OLDEST = (6, 2)  # kombu 5.7 sends ZRANGE with BYSCORE and REV
CLUSTER_ERRORS = (redis.exceptions.ClusterError, redis.exceptions.ClusterCrossSlotError)
PREFIX = "imgrec:"  # of every key in Redis, so that a user of its ACL can be held to them
ASK_TIME_S = 10.0  # between two questions for its time by who sends many messages
NOT_NOW = (9, 10)  # x509_vfy.h: X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
ANOTHER_NAME = (62, 64)  # x509_vfy.h: X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH


def connect(url: str, timeout_s: float, **options: Any) -> redis.Redis:
    """Return a client that tries once and waits no longer than `timeout_s` for any answer."""
    options = {"socket_connect_timeout": timeout_s, **options}
    return redis.Redis.from_url(
        url, socket_timeout=timeout_s, retry=Retry(NoBackoff(), 0), **options
    )


def answers(url: str) -> bool:
    """Tell whether a Redis takes commands at this address; False where nobody answers.

    Raises:
        ServerUnavailable: somebody does, but refuses us.
    """
    try:
        with closing(connect(url, 2)) as client:
            return bool(client.ping())
    except redis.RedisError as error:
        if _sentence(url, error, "REDIS_URL") is None:
            return False
        raise trouble(url, error) from error


def require_fit(url: str, client: redis.Redis, setting: str = "REDIS_URL") -> dict[str, Any]:
    """Refuse a server that answers, but can never carry queues; return its INFO.

    Raises:
        ServerUnavailable: a node of a cluster, a sentinel, a read-only replica, or too old.
        redis.RedisError: it does not answer.
    """
    try:
        facts: Any = client.info()
    except redis.exceptions.NoPermissionError:
        return {}  # then the first message tells
    server = _name(url, setting)
    mode = facts.get("redis_mode") or facts.get("server_mode")
    if mode == "cluster" or facts.get("cluster_enabled"):
        raise ServerUnavailable(_of_cluster(server, setting))
    if mode == "sentinel":
        raise ServerUnavailable(
            f"{server} is a Sentinel, which holds no data{_masters(client)}: name the Redis that "
            f"it watches in {setting}."
        )
    if facts.get("role") == "slave" and facts.get("slave_read_only", 1):
        primary = f"{facts.get('master_host')}:{facts.get('master_port')}"
        raise ServerUnavailable(_of_replica(server, setting, f" of {primary}"))
    version = str(facts.get("redis_version", ""))
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers and numbers < OLDEST:
        raise ServerUnavailable(
            f"{server} is Redis {version}, and the queues need {OLDEST[0]}.{OLDEST[1]} or newer: "
            f"update it, or name another one in {setting}."
        )
    return dict(facts)


def _of_cluster(server: str, setting: str) -> str:
    return (
        f"{server} is a node of a Redis Cluster, which spreads keys over its nodes and cannot "
        f"carry Celery's queues: name a single Redis or Valkey in {setting}."
    )


def _of_replica(server: str, setting: str, of_primary: str = "") -> str:
    return (
        f"{server} is a read-only replica{of_primary} and takes no messages: name the primary in "
        f"{setting}."
    )


def _masters(client: redis.Redis) -> str:
    try:
        masters: Any = client.sentinel_masters()
        places = [f"{name} at {each['ip']}:{each['port']}" for name, each in masters.items()]
    except (redis.RedisError, KeyError, AttributeError, TypeError):
        return ""
    return f" (it watches {', '.join(places)})" if places else ""


def server_time(client: Any) -> float:
    """Return Redis's time in seconds since the epoch: hosts need not agree on theirs."""
    seconds, micros = client.time()
    return float(seconds + micros / 1e6)


class ServerClock:
    """Redis's time between two questions for it, which cost a round trip each.

    It goes on by a clock that counts the time in which the machine sleeps, too. Where the system
    has none, nothing is known.
    """

    def __init__(self) -> None:
        self._set_at = -math.inf
        self._offset = 0.0

    def now(self) -> float | None:
        """Return the time in seconds since the epoch; None where Redis must be asked."""
        here = _since_boot()
        if here is None or not 0 <= here - self._set_at < ASK_TIME_S:
            return None
        return here + self._offset

    def set(self, server_s: float) -> float:
        """Remember what Redis has said just now, and return it."""
        here = _since_boot()
        if here is not None:
            self._set_at, self._offset = here, server_s - here
        return server_s


def _since_boot() -> float | None:
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return None if clock is None else time.clock_gettime(clock)


def can_start_here(url: str) -> bool:
    """Tell whether `imgrec up` can start a Redis at this address: loopback or a socket, no TLS."""
    parts = urlsplit(url)
    loopback = (parts.hostname or "localhost") in LOOPBACK
    return parts.scheme == "unix" or (parts.scheme == "redis" and loopback)


def _name(url: str, setting: str) -> str:
    what = "The cache" if setting.startswith("CACHE_URL") else "Redis"
    return f"{what} at {without_password(url)}"


def refuses(error: BaseException) -> bool:
    """Tell whether a Redis that is there takes neither our name nor our password."""
    return isinstance(error, (redis.AuthenticationError, redis.exceptions.AuthorizationError))


def trouble(url: str, error: BaseException | None, setting: str = "REDIS_URL") -> ServerUnavailable:
    """Return the sentence for what redis-py, or kombu in its name, has raised.

    Args:
        setting: which one holds `url`.
    """
    what = "The cache" if setting.startswith("CACHE_URL") else "Redis"
    here = can_start_here(url) and what == "Redis"
    start = "start it ('imgrec up' starts everything on one machine)" if here else "start it there"
    return ServerUnavailable(
        _sentence(url, error, setting)
        or f"{what} does not answer at {without_password(url)}: {start}, or correct the address "
        f"in {setting}."
    )


@contextmanager
def explained(url: str, setting: str = "REDIS_URL") -> Iterator[None]:
    """Raise what redis-py raises as a sentence, see `trouble`."""
    try:
        yield
    except redis.RedisError as error:
        raise trouble(url, error, setting) from error


def _sentence(url: str, error: BaseException | None, setting: str) -> str | None:
    """Explain an error; None for a server that is not there."""
    for each in _causes(error):
        tls = urlsplit(url).scheme == "rediss"
        if sentence := _explain(each, _name(url, setting), setting, tls):
            return sentence
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the errors behind an error, the first one first: it knows most."""
    chain = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    yield from reversed(chain)


def _explain(error: BaseException, server: str, setting: str, tls: bool) -> str | None:
    if isinstance(error, redis.exceptions.ExecAbortError):
        return None  # it only says that another error came before
    # Redis quotes the arguments of a command that it does not know; those may be a password.
    reason = str(error).split(", with args")[0].rstrip(".")
    return (
        _explain_tls(error, reason, server, setting, tls)
        or _explain_rights(error, reason, server, setting)
        or _explain_state(error, reason, server, setting)
        or _explain_answer(error, reason, server, setting, tls)
    )


def _explain_tls(
    error: BaseException, reason: str, server: str, setting: str, tls: bool
) -> str | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _explain_certificate(error, server, setting)
    if isinstance(error, ssl.SSLError) or (tls and "handshake operation timed out" in reason):
        return (
            f"{server} rejects this TLS connection ({reason}): if it does not use TLS, write "
            f"redis:// in {setting}; if it requires a client certificate, add ssl_certfile and "
            "ssl_keyfile."
        )
    return None


def _explain_state(error: BaseException, reason: str, server: str, setting: str) -> str | None:
    """Explain what a server cannot do now, or not in the role that it has."""
    if isinstance(error, redis.OutOfMemoryError) or "used memory > 'maxmemory'" in reason:
        return (
            f"{server} is full and accepts no messages: raise its maxmemory, or empty the cache "
            "with 'imgrec cache clear'. Planned work continues when there is space."
        )
    if isinstance(error, redis.BusyLoadingError):
        return f"{server} is still loading its data: try again in a moment."
    if isinstance(error, CLUSTER_ERRORS):
        return _of_cluster(server, setting)
    if isinstance(error, redis.exceptions.ReadOnlyError):
        return _of_replica(server, setting)
    return None


def _explain_rights(error: BaseException, reason: str, server: str, setting: str) -> str | None:
    if refuses(error):
        problem = "it requires a password" if reason.startswith("HELLO must be called") else reason
        return (
            f"{server} refuses the login ({problem}): correct the user and the password in "
            f"{setting}."
        )
    if isinstance(error, redis.exceptions.NoPermissionError) or "NOPERM" in reason:
        return (
            f"{server} gives this user too few rights ({reason}): give it the keys imgrec:*, all "
            "channels and all commands but the dangerous ones: "
            "ACL SETUSER NAME ~imgrec:* &* +@all -@dangerous +info."
        )
    if isinstance(error, PermissionError) or "Error 13 connecting" in reason:
        return (
            f"{server} may not be opened by this user (uid {os.geteuid()}): give it write "
            f"permission to the socket, or correct the path in {setting}."
        )
    return None


def _explain_answer(
    error: BaseException, reason: str, server: str, setting: str, tls: bool
) -> str | None:
    """Explain an answer, or a closed connection, of what may not be the server that is meant."""
    if "unknown command" in reason:
        return (
            f"{server} does not know this command ({reason}): it is no full Redis server, e.g. a "
            f"Sentinel. Name a Redis or Valkey in {setting}."
        )
    if isinstance(error, redis.ResponseError):
        number = "DB index" in reason
        way = "correct the database's number" if number else "see its log, or correct the address"
        return f"{server} answers with an error ({reason}): {way} in {setting}."
    off = isinstance(error, (ConnectionResetError, redis.InvalidResponse))
    if not tls and (off or reason == "Connection closed by server"):
        return (
            f"{server} closes the connection ({reason}): check whether it is running; if it uses "
            f"TLS, write rediss:// in {setting}."
        )
    return None


def _explain_certificate(error: ssl.SSLCertVerificationError, server: str, setting: str) -> str:
    if error.verify_code in ANOTHER_NAME:
        return (
            f"The certificate of {server} is for another name ({error.verify_message}): write "
            f"the name that it was made for in {setting}."
        )
    if error.verify_code in NOT_NOW:
        return (
            f"The certificate of {server} is not valid now ({error.verify_message}): the clock "
            f"of this machine says {time.strftime('%Y-%m-%d %H:%M %Z')}. Set the clock, or "
            "renew the certificate."
        )
    return (
        f"The certificate of {server} is not trusted ({error.verify_message}): name the file "
        f"of its authority in {setting}, e.g. rediss://HOST:6379/0?ssl_ca_certs=FILE."
    )
