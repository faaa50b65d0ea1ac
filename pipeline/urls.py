"""The addresses of Redis and of the database: refused where they can never work, made alike for
all who read them, shown without their secrets.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

# What the broker, the result backend and the cache all understand.
TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
TLS_OPTIONS = {"ssl_cert_reqs", "ssl_check_hostname", "ssl_password", *TLS_FILES}
CERT_REQS = ("required", "optional", "none")
WRITTEN = "special characters in a user or a password are written %XX"


def without_password(text: str) -> str:
    """Return an address, or a text with one in it, that may be shown."""
    # To the last @: a password may hold one.
    text = re.sub(r"(://[^:/@\s'\"]*):.*@", r"\1:***@", text)
    return re.sub(r"([?&\s](?:ssl_?)?password=)[^&#\s'\"]*", r"\1***", text)


def redis_address(url: str) -> str:
    """Return the address as redis-py, kombu and Celery all read it; TLS verifies by default.

    Left alone, kombu would take a bare `rediss://` for one that verifies nothing, Celery would
    refuse it, and each of the three spells the options' values in its own way.

    Raises:
        ValueError: it can never work; the reason shows no secret.
    """
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must start with redis://, rediss:// or unix://")
    try:
        parts = urlsplit(url)
        _ = parts.port
        whole = not parts.fragment and "@" not in parts.path + parts.query
    except ValueError:  # it quotes what it took for the port
        parts, whole = urlsplit("redis://"), False
    _require(url, parts.netloc, whole)
    if parts.scheme == "unix" and (parts.hostname or parts.path in ("", "/")):
        raise ValueError("a socket has a whole path, e.g. unix:///run/redis/redis.sock")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    number = query.pop("db", "") or (parts.path.strip("/") if parts.scheme != "unix" else "")
    if not re.fullmatch(r"\d*", number):
        raise ValueError("the database after the last / must be a number, e.g. redis://HOST:6379/0")
    if unknown := sorted(query.keys() - TLS_OPTIONS):
        available = ", ".join(sorted(TLS_OPTIONS))
        raise ValueError(f"unknown option {unknown[0][:40]!r}; available options: {available}")
    if parts.scheme == "rediss":
        query = _tls(query)
    elif query:
        raise ValueError(f"{sorted(query)[0]} needs rediss://, the scheme of Redis over TLS")
    path = parts.path if parts.scheme == "unix" else f"/{number or 0}"
    if parts.scheme == "unix" and number:
        query["db"] = number
    options = f"?{urlencode(query, safe='/')}" if query else ""
    return f"{parts.scheme}://{parts.netloc}{path}{options}"


def celery_address(url: str) -> str:
    """Return what kombu and Celery call a `redis_address`: a socket's file has another scheme."""
    parts = urlsplit(url)
    if parts.scheme != "unix":
        return url
    number = dict(parse_qsl(parts.query)).get("db", "0")
    return f"redis+socket://{parts.netloc}{quote(parts.path)}?virtual_host={number}"


def database_address(url: str) -> str:
    """Return the address of a database.

    Raises:
        ValueError: it can never work; the reason shows no secret.
    """
    if not url.startswith(("sqlite:///", "postgresql://", "postgres://")):
        raise ValueError("must start with sqlite:/// or postgresql://")
    if url.startswith("sqlite") and "?" in url:
        raise ValueError("sqlite:///FILE takes no options after a '?'")
    if not url.startswith("sqlite"):
        authority, _, rest = url.partition("://")[2].partition("/")
        # libpq takes several hosts, and everything but / and @ as it stands.
        _require(url, authority, "@" not in authority.partition("@")[2] + rest.partition("?")[0])
    return url


def vector_address(url: str) -> str:
    """Return the address of an engine that searches vectors.

    Raises:
        ValueError: it can never work; the reason shows no secret.
    """
    if url.startswith(("milvus://", "milvus+tls://")):
        parts = urlsplit(url)
        if "@" in parts.netloc:
            raise ValueError("the login of Milvus belongs into VECTOR_TOKEN")
        _require(url, parts.netloc, bool(parts.hostname) and not parts.query)
        return url
    if not url.startswith(("postgresql://", "postgres://")):
        raise ValueError("must be empty, or start with postgresql://, milvus:// or milvus+tls://")
    return database_address(url)


def vector_addresses(text: str) -> list[str]:
    """Split a list of addresses at its commas, not at those between the hosts of one address."""
    parts = re.split(r",(?=\s*postgres(?:ql)?://)", text)
    return [part.strip(" ,") for part in parts if part.strip(" ,")]


def _require(url: str, authority: str, whole: bool) -> None:
    """Refuse what a raw / or @ in a password makes of an address, before anyone quotes it."""
    ports = re.findall(r":([^:\],]*)(?=,|$)", authority.rpartition("@")[2])
    if not whole or not all(re.fullmatch(r"\d{0,5}", port) for port in ports):
        scheme = url.partition("://")[0]
        raise ValueError(
            f"it is not an address like {scheme}://USER:PASSWORD@HOST:PORT ({WRITTEN})"
        )


def _tls(query: dict[str, str]) -> dict[str, str]:
    requirement = query.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    if requirement not in CERT_REQS:
        raise ValueError(f"ssl_cert_reqs must be one of {', '.join(CERT_REQS)}")
    query = {**query, "ssl_cert_reqs": requirement}
    if "ssl_check_hostname" in query:
        yes = query["ssl_check_hostname"].lower() not in ("false", "0", "f", "no", "n", "off")
        query["ssl_check_hostname"] = str(yes).lower()
    for name in TLS_FILES:
        if name in query and not Path(query[name]).is_file():
            raise ValueError(f"{name} names {query[name]!r}, which does not exist")
    return query
