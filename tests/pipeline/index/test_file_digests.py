"""A file's digest is computed again when the file may have changed, and only then."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from pipeline.index import file_digests
from pipeline.index.file_digests import FileDigests

LONG_AGO_NS = 10**18


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read."""
    names: list[str] = []
    read = file_digests.file_sha256

    def note(path: Path) -> str:
        names.append(path.name)
        return read(path)

    monkeypatch.setattr(file_digests, "file_sha256", note)
    return names


def written(path: Path, data: bytes, mtime_ns: int = LONG_AGO_NS) -> Path:
    path.write_bytes(data)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


def test_a_file_is_read_once_also_under_another_name(tmp_path: Path, reads: list[str]) -> None:
    digests, file = FileDigests(), written(tmp_path / "a", b"vectors")
    link = tmp_path / "b"
    expected = hashlib.sha256(b"vectors").hexdigest()
    assert digests.sha256(file) == expected
    link.hardlink_to(file)
    file.unlink()
    assert digests.of_all([link, link]) == [expected, expected]
    assert reads == ["a"]


@pytest.mark.parametrize("change", ["another time", "another size", "another file"])
def test_a_file_that_changed_is_read_again(tmp_path: Path, reads: list[str], change: str) -> None:
    digests, file = FileDigests(), written(tmp_path / "a", b"vectors")
    digests.sha256(file)
    other = b"vectorS"
    if change == "another file":
        written(tmp_path / "new", other).replace(file)
    elif change == "another size":
        written(file, other := b"vectors and more")
    else:
        written(file, other, LONG_AGO_NS + 1)
    assert digests.sha256(file) == hashlib.sha256(other).hexdigest()
    assert len(reads) == 2


def test_a_file_that_was_written_just_now_is_read_again(tmp_path: Path, reads: list[str]) -> None:
    """It may be written once more within what its file system calls the same time."""
    digests, file = FileDigests(), tmp_path / "a"
    file.write_bytes(b"vectors")
    digests.sha256(file)
    digests.sha256(file)
    assert reads == ["a", "a"]


def test_a_file_that_this_process_wrote_is_not_read(tmp_path: Path, reads: list[str]) -> None:
    digests, file = FileDigests(), written(tmp_path / "a", b"vectors")
    digests.note(file, "noted")
    assert digests.sha256(file) == "noted"
    fresh = tmp_path / "fresh"
    fresh.write_bytes(b"vectors")
    digests.note(fresh, "noted")
    assert digests.sha256(fresh) == hashlib.sha256(b"vectors").hexdigest()
    assert reads == ["fresh"]


def test_a_file_that_is_gone_is_an_error_although_it_was_read(tmp_path: Path) -> None:
    digests, file = FileDigests(), written(tmp_path / "a", b"vectors")
    digests.sha256(file)
    file.unlink()
    with pytest.raises(FileNotFoundError):
        digests.sha256(file)
