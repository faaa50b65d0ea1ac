"""A Milvus by its address; what pymilvus and gRPC raise becomes a sentence here."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from pipeline.errors import DatabaseFailed, ServerUnavailable, SetupError, one_line
from pipeline.urls import without_password

CONNECT_S = 5.0
CALL_S = 10.0  # a search, or a look
BUILD_S = 3600.0  # an index that is built, or loaded
MIN_VERSION = (2, 3)
# https://milvus.io/docs/error_code.md: a component is not ready, unavailable, or out of memory.
OUTAGES = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 9, 500, 502, 503, 901})
NOT_LOADED = frozenset({101, 103})  # the collection, or not all of it
UNAVAILABLE = re.compile(
    r"StatusCode\.(UNAVAILABLE|DEADLINE.EXCEEDED|CANCELLED)|Fail connecting|Timeout|timed out"
)


class NotLoaded(DatabaseFailed):
    """A collection that is not in the memory of the query nodes."""


class MilvusServer:
    """Connects at first use: pymilvus takes seconds to import."""

    def __init__(self, url: str, token: str) -> None:
        """Connect to nothing yet.

        Args:
            token: of the user, or USER:PASSWORD; empty without a login.
        """
        self.shown = without_password(url)
        parts = urlsplit(url)
        scheme = "https" if parts.scheme == "milvus+tls" else "http"
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        self._uri = f"{scheme}://{host}:{parts.port or 19530}"
        self._database = unquote(parts.path.strip("/"))
        self._token = token
        self._lock = threading.Lock()
        self._client: Any = None

    @contextmanager
    def client(self) -> Iterator[Any]:
        """Give a `MilvusClient`; it may be used by several threads.

        Raises:
            SetupError: pymilvus is not installed, or the server is too old.
            ServerUnavailable: the server does not answer. DatabaseFailed: it refuses something.
        """
        library = _pymilvus()
        try:
            with self._lock:
                if self._client is None:
                    self._client = self._connect(library)
            yield self._client
        except library.MilvusException as error:
            # gRPC's own codes are no numbers.
            code = error.code if isinstance(error.code, int) else None
            raise self._sentence(error, code) from error
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in ("grpc", "pymilvus"):
                raise
            raise self._sentence(error, None) from error

    def _connect(self, library: Any) -> Any:
        client = library.MilvusClient(
            uri=self._uri, token=self._token, db_name=self._database, timeout=CONNECT_S
        )
        version = str(client.get_server_version(timeout=CALL_S))
        numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
        if numbers < MIN_VERSION:
            raise SetupError(
                f"Milvus at {self.shown} has version {version}, and imgrec needs "
                f"{'.'.join(map(str, MIN_VERSION))} or later: update it."
            )
        return client

    def _sentence(self, error: Exception, code: int | None) -> ServerUnavailable | DatabaseFailed:
        reason = one_line(error)
        if code in OUTAGES or UNAVAILABLE.search(str(error)):
            return ServerUnavailable(
                f"Milvus at {self.shown} does not answer: {reason}. Start it, or correct "
                "VECTOR_URL."
            )
        if code in NOT_LOADED:
            return NotLoaded(f"Milvus at {self.shown} has not loaded a collection: {reason}.")
        return DatabaseFailed(f"Milvus at {self.shown} cannot do this: {reason}. See its log.")


def _pymilvus() -> Any:
    try:
        import pymilvus
    except ImportError as error:
        raise SetupError(
            "pymilvus is not installed: install imgrec with the extra 'milvus', `pip install "
            "'.[milvus]'` in its folder, or leave VECTOR_URL empty."
        ) from error
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # each error becomes a sentence
    return pymilvus
