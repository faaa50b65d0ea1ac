"""Reach a Redis, and say in one sentence why one cannot be used."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from pipeline.errors import ServerUnavailable
from pipeline.urls import without_password

PREFIX = "imgrec:"  # of every key in Redis, so that a user of its ACL can be held to them
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


def refuses(error: BaseException) -> bool:
    """Tell whether a Redis that is there takes neither our name nor our password."""
    return isinstance(error, (redis.AuthenticationError, redis.exceptions.AuthorizationError))


def trouble(url: str, error: BaseException | None, setting: str = "REDIS_URL") -> ServerUnavailable:
    """Return the sentence for what redis-py, or kombu in its name, has raised.

    Args:
        setting: which one holds `url`.
    """
    what = "The cache" if setting.startswith("CACHE_URL") else "Redis"
    return ServerUnavailable(
        _sentence(url, error, setting)
        or f"{what} does not answer at {without_password(url)}: start it ('imgrec up' starts "
        f"everything on one machine), or correct the address in {setting}."
    )


def _sentence(url: str, error: BaseException | None, setting: str) -> str | None:
    """Explain an error; None for a server that is not there."""
    what = "The cache" if setting.startswith("CACHE_URL") else "Redis"
    for each in _causes(error):
        tls = urlsplit(url).scheme == "rediss"
        if sentence := _explain(each, f"{what} at {without_password(url)}", setting, tls):
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
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in ANOTHER_NAME:
            return (
                f"The certificate of {server} is for another name ({error.verify_message}): write "
                f"the name that it was made for in {setting}."
            )
        return (
            f"The certificate of {server} is not trusted ({error.verify_message}): name the file "
            f"of its authority in {setting}, e.g. rediss://HOST:6379/0?ssl_ca_certs=FILE."
        )
    if isinstance(error, ssl.SSLError) or (tls and "handshake operation timed out" in reason):
        return (
            f"{server} rejects this TLS connection ({reason}): if it does not use TLS, write "
            f"redis:// in {setting}; if it requires a client certificate, add ssl_certfile and "
            "ssl_keyfile."
        )
    if isinstance(error, redis.OutOfMemoryError) or "used memory > 'maxmemory'" in reason:
        return (
            f"{server} is full and accepts no messages: raise its maxmemory, or empty the cache "
            "with 'imgrec cache clear'. Planned work continues when there is space."
        )
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
    if isinstance(error, redis.BusyLoadingError):
        return f"{server} is still loading its data: try again in a moment."
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
