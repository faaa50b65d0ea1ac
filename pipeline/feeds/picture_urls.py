"""Addresses of pictures in a cell: parted, written as they are sent, and refused where unsafe."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from urllib.parse import quote, urlsplit, urlunsplit

from pipeline.allowed_hosts import Network, is_public

MAX_URL = 2048  # characters, as of what is fetched
# A comma may belong to an address: it parts two only where another address follows.
_PARTS = re.compile(r"[|\r\n]+|[\s,;]+(?=(?:[a-z][a-z0-9+.-]*:)?//)|,\s+(?=data:)", re.IGNORECASE)
_ADDRESS = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//|(?:data|file|mailto):", re.IGNORECASE)
_BROKEN_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PLAIN = re.compile(r"[A-Za-z0-9/._=&-]*")
_SAFE = "/%:@!$&'()*+,;=~-._"


def split_pictures(text: str) -> list[str]:
    """Part a cell at pipes, line breaks, and commas or blanks before another address."""
    parts = (part.strip(" \t,;") for part in _PARTS.split(text))
    return [part for part in parts if part]


def is_address(text: str) -> bool:
    return bool(_ADDRESS.match(text))


def canonical_url(text: str, private: tuple[Network, ...] = ()) -> str:
    """Return an address as it is sent.

    `https:` is added where the scheme is left out, blanks and letters beyond ASCII are encoded, and
    what is encoded already stays.

    Args:
        private: networks whose addresses may be fetched although they are private.

    Raises:
        ValueError: it cannot or must not be fetched; the message says why.
    """
    if len(text) > MAX_URL:
        raise ValueError(f"it has more than {MAX_URL:,} characters")
    try:
        parts = urlsplit(f"https:{text}" if text.startswith("//") else text)
        port = parts.port
    except ValueError as error:
        raise ValueError("it is not a valid address") from error
    if parts.scheme not in ("http", "https"):
        reason = f"'{parts.scheme}:' is not fetched" if parts.scheme else "it is no address"
        raise ValueError(f"{reason}; only http and https are")
    if parts.username is not None or parts.password is not None:
        raise ValueError("it contains a user name or a password")
    host = _host(parts.hostname or "", private)
    netloc = f"{host}:{port}" if port is not None else host
    path, query = parts.path, parts.query
    if not _PLAIN.fullmatch(path):
        path = quote(_BROKEN_PERCENT.sub("%25", path), safe=_SAFE)
    if not _PLAIN.fullmatch(query):
        query = quote(_BROKEN_PERCENT.sub("%25", query), safe=_SAFE + "?[]{}|^`")
    url = urlunsplit((parts.scheme, netloc, path or "/", query, ""))
    if len(url) > MAX_URL:
        raise ValueError(f"it has more than {MAX_URL:,} characters")
    return url


@lru_cache(maxsize=1024)
def _host(name: str, private: tuple[Network, ...]) -> str:
    """Check the host of an address and return it in ASCII."""
    if not name:
        raise ValueError("it names no host")
    bare = name.rstrip(".").lower()
    if bare == "localhost" or bare.endswith((".localhost", ".local", ".internal")):
        raise ValueError("it is an address of a private network")
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        if re.fullmatch(r"(0x[0-9a-f]+|[0-9]+)(\.(0x[0-9a-f]+|[0-9]+)){0,3}", bare):
            raise ValueError("its host is not written as a name or as four numbers") from None
        try:
            return bare if bare.isascii() else bare.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise ValueError("its host is not a valid name") from error
    if not is_public(address) and not any(address in network for network in private):
        raise ValueError("it is an address of a private network")
    return f"[{bare}]" if address.version == 6 else bare
