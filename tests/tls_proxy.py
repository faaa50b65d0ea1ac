"""TLS in front of a server that has none: an authority, its certificates, a small proxy."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from pathlib import Path

import trustme

PIECE = 65536


class Authority:
    """An authority whose certificate lies in a file, as an operator gets it."""

    def __init__(self, file: Path) -> None:
        self._ca = trustme.CA()
        self.file = file
        self._ca.cert_pem.write_to_path(file)

    def server(self, *names: str) -> ssl.SSLContext:
        """Return a server's context with a certificate for these host names or addresses."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert(*names).configure_cert(context)
        return context

    def client_files(self, folder: Path) -> tuple[Path, Path]:
        """Write a client's certificate and key; return both files."""
        issued = self._ca.issue_cert("shop@example.org")
        certificate, key = folder / "client.pem", folder / "client.key"
        issued.cert_chain_pems[0].write_to_path(certificate)
        issued.private_key_pem.write_to_path(key)
        return certificate, key

    def demand(self, context: ssl.SSLContext) -> None:
        """Let a server accept only clients with a certificate of this authority."""
        self._ca.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED


class TlsProxy:
    """Terminates TLS on a free loopback port and hands the bytes to a plain port."""

    def __init__(self, context: ssl.SSLContext, target: int) -> None:
        self._context, self._target = context, target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.handshakes = 0
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Break every connection, as a proxy that restarts."""
        for each in list(self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            client.settimeout(20)
            with self._context.wrap_socket(client, server_side=True) as secure:
                secure.settimeout(None)
                self.handshakes += 1
                with socket.create_connection(("127.0.0.1", self._target)) as plain:
                    self._open |= {secure, plain}
                    back = threading.Thread(target=_pump, args=(plain, secure), daemon=True)
                    back.start()
                    _pump(secure, plain)
                    back.join()
                    self._open -= {secure, plain}


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(PIECE):
            sink.sendall(data)
    for each in (source, sink):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
