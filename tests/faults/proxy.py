"""A network between imgrec and Redis that can be slow, silent, or cut."""

from __future__ import annotations

import socket
import struct
import threading
import time
from dataclasses import dataclass, field

RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no time: closing sends RST instead of FIN


@dataclass(eq=False)
class _Link:
    """One connection through the proxy."""

    client: socket.socket
    server: socket.socket
    silent: bool = False

    def cut(self) -> None:
        for end in (self.client, self.server):
            try:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            end.close()


@dataclass
class Proxy:
    """Listens on a free loopback port and carries bytes to another one."""

    target: int
    delay_s: float = 0.0
    carried: int = 0
    _links: set[_Link] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def silence(self) -> int:
        """Carry nothing more on today's connections, and tell nobody; return how many."""
        links = list(self._links)
        for link in links:
            link.silent = True
        return len(links)

    def reset(self) -> int:
        """End today's connections with RST; return how many."""
        links = list(self._links)
        for link in links:
            self._links.discard(link)
            link.cut()
        return len(links)

    def close(self) -> None:
        self._listener.close()
        self.reset()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target), 2)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(client, server)
            self._links.add(link)
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._carry, args=(link, source, sink), daemon=True).start()

    def _carry(self, link: _Link, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                if link.silent:
                    continue
                if self.delay_s:
                    time.sleep(self.delay_s)
                sink.sendall(data)
                self.carried += len(data)
            if not link.silent:
                sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        finally:
            if not link.silent:
                self._links.discard(link)
