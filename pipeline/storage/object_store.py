"""Objects by key, below one address. Every error of the library is mapped here, and only here.

The library reports most answers of a server as one type of error, so the status is read from its
text; no text of it is ever shown, since it may hold a signature.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import (
    ImgrecError,
    ObjectConflict,
    ObjectMissing,
    ServerUnavailable,
    StoreRefused,
    WrongUse,
    quote,
)
from pipeline.storage.address import Address
from pipeline.storage.credentials import aws_profile

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore as Library

KEYS_A_PAGE = 1000
# A file is uploaded in parts of obstore's default size, or of larger ones: S3 takes 10,000.
PART_BYTES, MAX_PARTS = 5 * 2**20, 10_000
MAX_KEY_BYTES = 1024  # of S3 and Google, with the address's prefix; Azure takes no fewer
CONNECT_S, SILENCE_S, TRANSFER_S = 5, 30, 300
# After that the caller is told; its work waits in the job table, not in a thread.
RETRIES = 6
RETRY_S = 20
STATUS = re.compile(r"status code: (\d{3})")
QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
CODE = re.compile(r"<Code>(\w{1,60})</Code>")
ENDPOINT = re.compile(r"(?i)https?://[A-Za-z0-9.:\[\]_-]+(/[A-Za-z0-9._~/-]*)?")
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, the file of a service account",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
METADATA_SERVICE = ("169.254.169.254", "169.254.170.2", "metadata.google.internal")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object: its key below the store's address, bytes, and a tag of its content."""

    key: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class StoredObject:
    data: bytes
    etag: str


class ObjectStore:
    """The objects below one address; safe to use in many threads, not across a fork.

    Every method raises:
        ServerUnavailable: the store does not answer, or cannot serve now.
        StoreRefused: it refuses the credentials, or has no such bucket.
        ObjectMissing: there is no object of this key.
    """

    def __init__(self, address: Address, library: Library | None = None) -> None:
        """Open nothing yet but what costs nothing.

        Args:
            library: in place of what the address names.
        """
        self.name = str(address)
        self._prefix_bytes = len(f"{address.prefix}/".encode()) if address.prefix else 0
        self._library = library if library is not None else _open(address)
        # What a conditional put compares: Google compares generations, the others ETags.
        self._condition = "version" if address.scheme == "gs" else "e_tag"

    def objects(self, prefix: str | None = None) -> Iterator[ObjectInfo]:
        """Yield all objects, below a prefix if one is given, in the order of the store."""
        for page in self.pages(prefix):
            yield from page

    def pages(self, prefix: str | None = None) -> Iterator[list[ObjectInfo]]:
        """Yield the same in lists of up to KEYS_A_PAGE."""
        with _mapped(self.name, ""):
            for page in self._library.list(prefix, chunk_size=KEYS_A_PAGE):
                yield [_info(each) for each in page]

    def ages(self, prefix: str) -> Iterator[tuple[ObjectInfo, float]]:
        """Yield all objects below a prefix, each with the time of its last put, since the epoch."""
        with _mapped(self.name, ""):
            for page in self._library.list(prefix, chunk_size=KEYS_A_PAGE):
                for each in page:
                    yield _info(each), each["last_modified"].timestamp()

    def first_level(self, prefix: str | None = None) -> tuple[list[str], list[ObjectInfo]]:
        """Return the prefixes that end at the next slash, and the objects without one.

        Both are whole keys, also below a `prefix`.
        """
        with _mapped(self.name, ""):
            level = self._library.list_with_delimiter(prefix)
            return list(level["common_prefixes"]), [_info(each) for each in level["objects"]]

    def info(self, key: str) -> ObjectInfo:
        """Return an object's facts, as a listing has them."""
        with _mapped(self.name, key):
            return _info(self._library.head(key))

    def get(self, key: str, max_bytes: int | None = None) -> StoredObject:
        """Return an object's content.

        Raises:
            TooLarge: it has more than `max_bytes`; nothing of it was read.
        """
        with _mapped(self.name, key):
            result = self._library.get(key)
            size = result.meta["size"]
            if max_bytes is not None and size > max_bytes:
                raise TooLarge(size)
            return StoredObject(bytes(result.bytes()), self._tag(result.meta))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return a part of an object."""
        with _mapped(self.name, key):
            return bytes(self._library.get_range(key, start=start, length=length))

    def put(self, key: str, data: bytes | Path) -> None:
        """Store an object, whatever was there before.

        Raises:
            WrongUse: no object can have this key.
        """
        self._require_short(key)
        size = data.stat().st_size if isinstance(data, Path) else len(data)
        part = max(PART_BYTES, -(-size // MAX_PARTS))
        with _mapped(self.name, key):
            self._library.put(key, data, chunk_size=part)

    def put_if(self, key: str, data: bytes, etag: str | None) -> str:
        """Store an object if its present tag is `etag`, or if it is new; return its new tag.

        Raises:
            ObjectConflict: it is another, or there is none.
            WrongUse: no object can have this key.
        """
        self._require_short(key)
        mode: Any = "create" if etag is None else {self._condition: etag}
        with _mapped(self.name, key):
            return self._tag(self._library.put(key, data, mode=mode))

    def _require_short(self, key: str) -> None:
        size = self._prefix_bytes + len(key.encode("utf-8", "surrogatepass"))
        if size > MAX_KEY_BYTES:
            raise WrongUse(
                f"A key of the store {self.name} cannot be used, {quote(key)}: it has {size:,} "
                f"bytes with its prefix, and {MAX_KEY_BYTES:,} bytes are allowed."
            )

    def _tag(self, facts: Any) -> str:
        return str(facts[self._condition] or "")

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; one that is gone already is none the less deleted."""
        with _mapped(self.name, ""):
            if keys:
                self._library.delete(list(keys))


class TooLarge(ImgrecError):
    """An object that is larger than its reader allows."""

    def __init__(self, size: int) -> None:
        super().__init__(f"the object has {size:,} bytes")
        self.size = size


def _info(meta: ObjectMeta) -> ObjectInfo:
    etag = meta["e_tag"] or meta["last_modified"].isoformat()
    return ObjectInfo(meta["path"], meta["size"], etag)


def _open(address: Address) -> Library:
    from obstore.exceptions import BaseError

    try:
        return _opened(address)
    except BaseError as error:  # whose text may hold what it could not read
        if "Account must be specified" in str(error):
            raise StoreRefused(
                f"The store {address} needs the name of its account: set "
                "AZURE_STORAGE_ACCOUNT_NAME."
            ) from None
        raise StoreRefused(
            f"The store {address} cannot be opened with these settings: check "
            f"{CREDENTIALS.get(address.scheme, 'its address')}."
        ) from None


def _opened(address: Address) -> Library:
    from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

    retry: Any = {
        "max_retries": RETRIES,
        "retry_timeout": timedelta(seconds=RETRY_S),
        "backoff": {
            "init_backoff": timedelta(milliseconds=200),
            "max_backoff": timedelta(seconds=5),
        },
    }
    client: Any = {
        "connect_timeout": timedelta(seconds=CONNECT_S),
        "read_timeout": timedelta(seconds=SILENCE_S),
        "timeout": timedelta(seconds=TRANSFER_S),
    }
    options: Any = {"client_options": client, "retry_config": retry}
    prefix = address.prefix or None
    match address.scheme:
        case "s3":
            options |= _s3_options()
            client["allow_http"] = options.get("endpoint", "").lower().startswith("http://")
            return S3Store(address.bucket, prefix=prefix, **options)
        case "gs":
            return GCSStore(address.bucket, prefix=prefix, **options)
        case "az":
            endpoint = os.environ.get("AZURE_STORAGE_ENDPOINT", "")
            client["allow_http"] = endpoint.startswith("http://")
            return AzureStore(address.bucket, prefix=prefix, **options)
        case _:
            client["allow_http"] = address.scheme == "http"
            return HTTPStore.from_url(str(address), **options)


def _s3_options() -> dict[str, Any]:
    options: dict[str, Any] = aws_profile()
    for name, option in (
        ("AWS_DEFAULT_REGION", "region"),
        ("AWS_REGION", "region"),
        ("AWS_ENDPOINT_URL", "endpoint"),
        ("AWS_ENDPOINT_URL_S3", "endpoint"),
    ):
        if value := os.environ.get(name):
            options[option] = value
    # The library panics over an address that is none.
    if "endpoint" in options and not ENDPOINT.fullmatch(options["endpoint"]):
        raise StoreRefused(
            "AWS_ENDPOINT_URL must be an address like https://HOST:PORT, without a user or a "
            "password."
        )
    return options


@contextmanager
def _mapped(store: str, key: str) -> Iterator[None]:
    """Raise an error of the library as one of imgrec's."""
    try:
        yield
    except (ImgrecError, GeneratorExit):
        raise
    except FileNotFoundError:
        raise ObjectMissing(f"The store {store} has no object {key!r}.") from None
    except Exception as error:
        raise _translated(error, store, key) from None


def _translated(error: Exception, store: str, key: str) -> Exception:
    from obstore import exceptions

    if isinstance(error, ValueError | exceptions.InvalidPathError):
        # A listing ends at such a key; the library tells which one it is.
        named = repr(key) if key else (match[0] if (match := QUOTED.search(str(error))) else "")
        return WrongUse(
            f"A key of the store {store} cannot be used{f', {named}' if named else ''}: no part of "
            "its path may be empty, '.' or '..', or hold a control character. Rename that object, "
            "or name a prefix beside it."
        )
    if isinstance(error, exceptions.AlreadyExistsError | exceptions.PreconditionError):
        return ObjectConflict(f"The object {key!r} of the store {store} was changed meanwhile.")
    if not isinstance(error, exceptions.BaseError | NotImplementedError):
        return error
    text = str(error)
    status = int(match[1]) if (match := STATUS.search(text)) else 0
    code = f" ({match[1]})" if (match := CODE.search(text)) else ""
    if any(host in text for host in METADATA_SERVICE) or "nauthenticated" in type(error).__name__:
        return StoreRefused(
            f"There are no credentials for the store {store}: set "
            f"{CREDENTIALS.get(store.partition(':')[0], 'its address')}."
        )
    if status in (401, 403) or isinstance(error, exceptions.PermissionDeniedError):
        return StoreRefused(
            f"The store {store} refuses access{code}: check the credentials and their rights."
        )
    if status in (409, 412):
        return ObjectConflict(f"The object {key!r} of the store {store} was changed meanwhile.")
    if status == 404:
        return StoreRefused(f"The store {store} does not exist{code}: create the bucket.")
    if status in (405, 501) or isinstance(error, NotImplementedError):
        return StoreRefused(f"The store {store} cannot do what is needed of it (HTTP {status}).")
    if 300 <= status < 500 and status not in (408, 429):
        return StoreRefused(f"The store {store} refuses the request: HTTP {status}{code}.")
    reason = f"HTTP {status}{code}" if status else "no connection"
    return ServerUnavailable(f"The store {store} does not answer: {reason}.")
