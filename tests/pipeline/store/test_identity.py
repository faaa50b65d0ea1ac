"""A database and two folders have ids of their own: places are compared by id, not by path."""

from __future__ import annotations

import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.access import require_writable
from pipeline.errors import FolderUnavailable, ImgrecError
from pipeline.settings import Settings
from pipeline.store.database import Database
from pipeline.store.identity import (
    ID_FILE,
    Identifier,
    Identity,
    Place,
    database_id,
    shown_database,
)


def identifier(settings: Settings, **changes: object) -> Identifier:
    changed = settings.model_copy(update=changes)
    return Identifier(changed, Database(changed.database_url))


def test_a_database_keeps_the_id_of_its_first_use(database_url: str) -> None:
    first = database_id(Database(database_url))
    assert database_id(Database(database_url)) == first


def test_processes_that_use_a_database_for_the_first_time_at_once_get_one_id(
    database_url: str,
) -> None:
    found: list[str] = []
    databases = [Database(database_url) for _ in range(4)]
    threads = [
        threading.Thread(target=lambda each=each: found.append(database_id(each)))  # type: ignore[misc]
        for each in databases
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1


def test_a_copy_of_a_database_or_a_folder_is_the_same_one(
    settings: Settings, tmp_path: Path
) -> None:
    settings.data_dir.mkdir(parents=True)
    original = identifier(settings).read(create=True)
    shutil.copytree(tmp_path / "data", tmp_path / "restored")
    copy = identifier(
        settings,
        data_dir=tmp_path / "restored",
        database_url=f"sqlite:///{tmp_path}/restored/app.db",
    ).read(create=True)
    assert not original.differs(copy, "data")
    assert not original.differs(copy, "database")
    assert copy.data.where != original.data.where


def test_one_folder_under_two_paths_is_one_place(settings: Settings, tmp_path: Path) -> None:
    settings.data_dir.mkdir(parents=True)
    (tmp_path / "mount").symlink_to(settings.data_dir)
    here = identifier(settings).read("data", create=True)
    there = identifier(settings, data_dir=tmp_path / "mount").read("data")
    assert not here.differs(replace(there, host="another"), "data")


def test_relative_folders_of_one_name_are_two_places(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for name in ("a", "b"):
        (tmp_path / name / "data").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / name)
        relative = identifier(
            settings, data_dir=Path("data"), database_url="sqlite:///./data/app.db"
        )
        found.append(relative.read(create=True))
    assert found[0].differs(found[1], "data")
    assert found[0].differs(found[1], "database")
    assert found[0].database.where == f"sqlite:///{tmp_path}/a/data/app.db"


def test_what_is_only_read_gets_no_id(settings: Settings) -> None:
    place = identifier(settings).read("data").data
    assert place == Place(None, str(settings.data_dir))
    assert not settings.data_dir.exists()


def test_an_id_that_a_kill_left_empty_is_written_anew(settings: Settings) -> None:
    settings.data_dir.mkdir(parents=True)
    (settings.data_dir / ID_FILE).write_text("")
    assert identifier(settings).read("data", create=True).data.id
    assert [file.name for file in settings.data_dir.iterdir()] == [ID_FILE]


def test_an_id_that_another_process_gives_meanwhile_stays(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = settings.data_dir / ID_FILE
    file.parent.mkdir(parents=True)
    write = Path.write_text

    def write_second(path: Path, text: str, encoding: str) -> int:
        monkeypatch.setattr(Path, "write_text", write)
        file.write_text("of the other process")
        return write(path, text, encoding)

    monkeypatch.setattr(Path, "write_text", write_second)
    assert identifier(settings).read("data", create=True).data.id == "of the other process"
    assert [each.name for each in file.parent.iterdir()] == [ID_FILE]


def test_a_disk_without_hard_links_gets_an_id(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    settings.data_dir.mkdir(parents=True)
    first = identifier(settings).read("data", create=True).data.id
    assert first
    assert identifier(settings).read("data", create=True).data.id == first


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_has_none(settings: Settings) -> None:
    settings.models_dir.mkdir(parents=True)
    settings.models_dir.chmod(0o500)
    assert identifier(settings).read("models", create=True).models.id is None


def test_a_relative_database_of_a_deleted_working_folder_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FolderUnavailable, match="the working folder of the process was deleted"):
        require_writable(Path("data"), "DATABASE_URL")


def test_a_working_folder_that_was_deleted_is_said(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    relative = identifier(settings, data_dir=Path("data"))
    before = relative.read("data").data
    (tmp_path / "gone").rmdir()
    (tmp_path / "gone" / "data").mkdir(parents=True)  # another one of this name
    after = relative.read("data").data
    assert before.problem == ""
    assert after.problem == "the working folder of the process was deleted"
    assert after.where == before.where == str(tmp_path / "gone" / "data")


def test_a_database_that_does_not_answer_has_no_id_and_is_nobody_s_fault(
    settings: Settings,
) -> None:
    url = "postgresql://shop:secret@127.0.0.1:9/shop"
    place = identifier(settings, database_url=url).read("database").database
    assert place.id is None
    assert "does not answer" in place.problem
    assert "secret" not in place.where + place.problem


def test_an_address_is_shown_whole_and_without_its_password(tmp_path: Path) -> None:
    assert shown_database("postgresql://u:secret@h/n") == "postgresql://u:***@h/n"
    assert shown_database("sqlite:///x.db") == f"sqlite:///{Path.cwd()}/x.db"


HERE = Place("1", "/a")


def identity(host: str = "one", **places: Place) -> Identity:
    return Identity(host, **{"database": HERE, "data": HERE, "models": HERE, **places})


@pytest.mark.parametrize(
    ("part", "mine", "host", "theirs", "differs"),
    [
        # Ids decide where both have one, whatever the paths.
        ("data", Place("1", "/a"), "two", Place("1", "/mnt/a"), False),
        ("data", Place("1", "/a"), "one", Place("2", "/a"), True),  # it was replaced
        ("database", Place("1", "postgresql://h/a"), "two", Place("2", "postgresql://h/a"), True),
        # Without ids, paths decide on one host; another host's may be a mount of the same.
        ("data", Place(None, "/a"), "one", Place(None, "/a"), False),
        ("data", Place(None, "/a"), "one", Place("2", "/b"), True),
        ("data", Place(None, "/a"), "one", Place("2", "/a"), False),
        ("data", Place(None, "/a"), "two", Place("2", "/b"), False),
        ("models", Place(None, "/a"), "two", Place(None, "/b"), False),
        # Heads were trained here, and over there is no folder of them.
        ("models", Place("1", "/a"), "two", Place(None, "/b"), True),
        # A folder that is gone cannot be the same; a database that is away comes back.
        ("data", Place("1", "/a"), "one", Place(None, "/a", "deleted"), True),
        ("data", Place("1", "/a"), "two", Place(None, "/a", "deleted"), True),
        ("database", Place("1", "a"), "one", Place(None, "b", "does not answer"), False),
    ],
)
def test_what_certainly_differs(
    part: str, mine: Place, host: str, theirs: Place, differs: bool
) -> None:
    here, there = identity(**{part: mine}), identity(host, **{part: theirs})
    assert here.differs(there, part) is differs
    assert there.differs(here, part) is differs


def test_an_identity_survives_its_way_over_redis_and_nonsense_is_an_error() -> None:
    mine = identity(models=Place(None, "/m", "deleted"))
    there = Identity.from_json(mine.to_json())
    assert not any(mine.differs(there, part) for part in ("database", "data", "models"))
    assert there.models.problem == "deleted"
    for nonsense in ({}, [], 3, {"host": "x", "database": None}):
        with pytest.raises((TypeError, KeyError)):
            Identity.from_json(nonsense)


def test_a_broken_database_is_a_sentence_and_no_crash(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "broken.db"
    file.write_bytes(b"no database at all" * 100)
    broken = identifier(settings, database_url=f"sqlite:///{file}")
    assert "not a usable database" in broken.read("database").database.problem
    with pytest.raises(ImgrecError):
        database_id(Database(f"sqlite:///{file}"))
