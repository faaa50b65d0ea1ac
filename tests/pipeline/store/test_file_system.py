"""SQLite's write-ahead log is used only where the processes of a database share memory."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

import pytest

from pipeline.errors import ServerUnavailable
from pipeline.store import file_system as module
from pipeline.store import sqlite
from pipeline.store.database import Database
from pipeline.store.file_system import file_system, shares_memory
from pipeline.store.jobs import Jobs


def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, folder: Path) -> None:
    lines = ["22 1 8:1 / / rw - ext4 /dev/sda1 rw"]
    place = str(folder).replace(" ", "\\040")
    lines.append(f"40 22 0:40 / {place} rw,relatime shared:1 - {kind} server:/export rw")
    (tmp_path / "mountinfo").write_text("\n".join(lines))
    monkeypatch.setattr(module, "MOUNTS", tmp_path / "mountinfo")


@pytest.mark.parametrize(
    ("kind", "shared"),
    [
        *((kind, False) for kind in ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "fuse")),
        *((kind, True) for kind in ("ext4", "xfs", "btrfs", "overlay", "tmpfs", "fuseblk", "zfs")),
    ],
)
def test_the_file_system_of_a_folder_and_whether_it_shares_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, shared: bool
) -> None:
    folder = tmp_path / "my share"
    mounted(tmp_path, monkeypatch, kind, folder)
    assert file_system(folder / "data" / "app.db") == kind
    assert shares_memory(folder / "data" / "app.db") == shared
    assert file_system(tmp_path / "my share too") == "ext4"


def journal(file: Path) -> str:
    with sqlite3.connect(file) as connection:
        return str(connection.execute("PRAGMA journal_mode").fetchone()[0])


def test_a_database_on_a_network_disk_has_another_journal_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mounted(tmp_path, monkeypatch, "nfs4", tmp_path / "share")
    file = tmp_path / "share" / "app.db"
    with caplog.at_level(logging.WARNING):
        jobs = Jobs(Database(f"sqlite:///{file}"))
        assert jobs.list_with_progress() == []
    assert journal(file) == "delete"
    assert "on a network file system (nfs4)" in caplog.text
    assert len(caplog.records) == 1  # not at each transaction
    assert sorted(path.name for path in file.parent.iterdir()) == ["app.db"]


def test_a_database_that_was_made_on_a_local_disk_changes_its_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "share" / "app.db"
    file.parent.mkdir()
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    mounted(tmp_path, monkeypatch, "nfs4", tmp_path / "share")
    assert Jobs(Database(f"sqlite:///{file}")).list_with_progress() == []
    assert journal(file) == "delete"


def test_a_process_that_uses_the_write_ahead_log_there_is_named_as_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "share" / "app.db"
    assert Jobs(Database(f"sqlite:///{file}")).list_with_progress() == []
    reader = sqlite3.connect(file)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM jobs").fetchall()
    mounted(tmp_path, monkeypatch, "cifs", tmp_path / "share")
    monkeypatch.setattr(sqlite, "LOCKED_S", 0.1)
    with pytest.raises(ServerUnavailable, match="another process uses it with SQLite's write-ah"):
        Jobs(Database(f"sqlite:///{file}")).list_with_progress()
    reader.close()
