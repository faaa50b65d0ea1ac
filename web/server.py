"""Run the application until it is asked to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.errors import WrongUse
from pipeline.listener import listen
from web.access import is_loopback
from web.app import create_app
from web.context import Web
from workers.resources import Resources

KEEP_ALIVE_S = 15
HEAD_S = 10.0  # for the head of a request to arrive
MAX_HEAD_BYTES = 65_536  # a product id of 4,096 characters, percent-encoded, fits
MAX_CONNECTIONS = 900  # most systems allow a process 1,024 open files
STOP_S = 4  # connections that are open then are closed


class Server(uvicorn.Server):
    """Tells open event streams and waiting queries of a signal: uvicorn waits for them."""

    def __init__(self, config: uvicorn.Config, web: Web) -> None:
        super().__init__(config)
        self._web = web

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._web.stopping.set()
        # Not uvicorn's own: it would end this process by the same signal when all is done.
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


class Protocol(H11Protocol):
    """Lets go of clients that open a connection, or begin a request, and do not go on.

    uvicorn itself waits for the head of a request without end.
    """

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait_for_head()
        else:
            self._head_arrived()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_arrived()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self.transport.close)

    def _head_arrived(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def serve(
    resources: Resources, host: str, port: int, tell: Callable[[str], None] = lambda url: None
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        tell: called with the address when connections are accepted.

    Raises:
        WrongUse: the address cannot be used, or is reached from elsewhere and there is no key.
        ServerUnavailable: the database does not answer.
    """
    public = not is_loopback(host)
    if public and not any(key.revoked_at is None for key in resources.api_keys.all()):
        raise WrongUse(
            f"Without an API key only this machine may be served, not {host}: 'imgrec keys create "
            "NAME --scope admin' makes one."
        )
    listener = listen(host, port)
    server = make_server(Web(resources, public=public))
    name = f"[{host}]" if ":" in host else host
    tell(f"http://{name}:{listener.getsockname()[1]}")
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    server.run(sockets=[listener])


def make_server(web: Web) -> Server:
    """Return the server of an application, with its limits."""
    config = uvicorn.Config(
        create_app(web),
        http=Protocol,
        limit_concurrency=MAX_CONNECTIONS,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_S,
        lifespan="on",
    )
    return Server(config, web)
