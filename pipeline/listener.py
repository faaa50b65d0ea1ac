"""Sockets that a server listens on."""

from __future__ import annotations

import socket

from pipeline.errors import WrongUse


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address; the port 0 is any that is free.

    Raises:
        WrongUse: it cannot be used, e.g. because another server listens there.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1024)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise WrongUse(
            f"Cannot listen on {host}:{port}: {reason}. Choose another with --host and --port."
        ) from error
    return listener
