"""Which database, data folder and models folder a process works with, as other hosts can compare.

Each of the three gets an id at its first use and keeps it: a row of the database, a small file in a
folder, or an object of the store that ARTIFACTS_URL names in place of both folders. So hosts that
mount one folder under different paths agree, and two folders of one relative name do not. A
restored copy has the id of its original.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ImgrecError
from pipeline.settings import Settings
from pipeline.storage.address import is_address
from pipeline.storage.artifacts import artifacts_address, store_id
from pipeline.store.database import SQLITE, Database
from pipeline.urls import without_password

ID_FILE = ".imgrec-id"
DATABASE_ID = "database id"  # the row of `revisions`
SETTING_OF = {"database": "DATABASE_URL", "data": "DATA_DIR", "models": "MODELS_DIR"}
PARTS = tuple(SETTING_OF)
STORE_SETTING = "ARTIFACTS_URL"
STORE_LOOK_S = 60.0  # for so long, the id of a store is not asked for again


@dataclass(frozen=True)
class Place:
    """A database or a folder: its id, None where it has none yet, and where this process sees it.

    `problem` says why it cannot be read.
    """

    id: str | None
    where: str
    problem: str = ""


@dataclass(frozen=True)
class Identity:
    """What one process works with."""

    host: str
    database: Place
    data: Place
    models: Place

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Identity:
        """Read what `to_json` wrote.

        Raises:
            TypeError, KeyError: it is something else.
        """
        places = {
            part: Place(*(str(value[part][key] or "") for key in ("id", "where", "problem")))
            for part in PARTS
        }
        return cls(host=str(value["host"]), **places)

    def differs(self, other: Identity, part: str) -> bool:
        """Tell whether a part is certainly not the same there."""
        mine: Place = getattr(self, part)
        theirs: Place = getattr(other, part)
        if mine.id and theirs.id:
            return mine.id != theirs.id
        if is_address(mine.where) or is_address(theirs.where):
            return part != "database" and mine.where != theirs.where
        if mine.problem or theirs.problem:
            # A database that does not answer is waited for; a folder that is gone stays away.
            return part != "database" and bool(mine.problem) != bool(theirs.problem)
        if self.host == other.host:
            return mine.where != theirs.where
        # What another host has no id for is nothing that was written to from here.
        return part == "models" and bool(mine.id) != bool(theirs.id)


class Identifier:
    """Reads the identity of this process; relative paths are those of its start."""

    def __init__(self, settings: Settings, database: Database | None) -> None:
        """Read nothing yet.

        Args:
            database: None for who asks about the folders alone.
        """
        self._database = database
        self._artifacts = artifacts_address(settings)
        self._store_id: tuple[float | None, str | None] = (None, None)
        self._folders = {"data": settings.data_dir, "models": settings.models_dir}
        self._where = {part: str(_absolute(folder)) for part, folder in self._folders.items()}
        if self._artifacts is not None:
            self._where = dict.fromkeys(self._folders, str(self._artifacts))
        self._where["database"] = shown_database(settings.database_url)

    def read(self, *parts: str, create: bool = False) -> Identity:
        """Return the identity now; a folder may have been replaced since the last look.

        Args:
            parts: those to read; the others have no id.
            create: give an id to what is there and has none.
        """
        places = {part: Place(None, self._where[part]) for part in PARTS}
        for part in parts or PARTS:
            if part == "database":
                places[part] = self._database_place()
            elif self._artifacts is not None:
                places[part] = Place(self._id_of_store(create), self._where[part])
            else:
                places[part] = self._folder(part)
                if create and not places[part].id and not places[part].problem:
                    places[part] = self._create(part)
        return Identity(socket.gethostname(), **places)

    def create_folder(self, part: str) -> None:
        """Make a folder with an id, where it can be written."""
        if self._artifacts is not None:
            return
        with contextlib.suppress(OSError):
            self._folders[part].mkdir(parents=True, exist_ok=True)
            _write_id(self._folders[part])

    def _database_place(self) -> Place:
        where = self._where["database"]
        if self._database is None:
            return Place(None, where)
        try:
            return Place(database_id(self._database), where)
        except ImgrecError as error:
            return Place(None, where, str(error))

    def _id_of_store(self, create: bool) -> str | None:
        """Return the id of the store; None where it has none, or does not say it now."""
        asked_at, found = self._store_id
        if asked_at is not None and time.monotonic() - asked_at < STORE_LOOK_S:
            return found
        from pipeline.storage.object_store import ObjectStore

        assert self._artifacts is not None
        # Whoever reads or writes there says that it is away. To ask again takes seconds then, in
        # which a worker announces nothing.
        with contextlib.suppress(ImgrecError):
            found = store_id(ObjectStore(self._artifacts), create=create)
            if found is None:
                return None
        self._store_id = (time.monotonic(), found)
        return found

    def _folder(self, part: str) -> Place:
        where = self._where[part]
        try:
            return Place(_read_id(self._folders[part]), where)
        except FileNotFoundError:
            return Place(None, where, _gone())
        except OSError as error:
            return Place(None, where, f"{where} cannot be read ({error.strerror})")

    def _create(self, part: str) -> Place:
        # A folder that is not there yet, or is read-only, has no id.
        with contextlib.suppress(OSError):
            if self._folders[part].is_dir():
                _write_id(self._folders[part])
        return self._folder(part)


def database_id(database: Database) -> str:
    """Return the id of a database, given to it at the first question.

    Raises:
        ServerUnavailable: the database does not answer.
    """
    question = "SELECT n FROM revisions WHERE name = ?"
    with database.transaction(read_only=True) as tx:
        rows = tx.rows(question, (DATABASE_ID,))
    if not rows:
        with database.transaction() as tx:
            tx.rows(
                "INSERT INTO revisions VALUES (?, ?) ON CONFLICT (name) DO NOTHING",
                (DATABASE_ID, 1 + secrets.randbelow(2**31 - 1)),
            )
            rows = tx.rows(question, (DATABASE_ID,))
    return str(rows[0]["n"])


def shown_database(url: str) -> str:
    """Return a database's address to show: without its password, and with a whole path."""
    if url.startswith(SQLITE):
        return f"{SQLITE}{_absolute(Path(url.removeprefix(SQLITE)))}"
    return without_password(url)


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().resolve()
    except OSError:  # the working folder is gone
        return path


def _gone() -> str:
    """Say that relative paths lead nowhere; an empty string while the working folder is there."""
    try:
        Path.cwd()
    except OSError:
        return "the working folder of the process was deleted"
    return ""


def _read_id(folder: Path) -> str | None:
    return (folder / ID_FILE).read_text(encoding="ascii", errors="replace").strip() or None


def _write_id(folder: Path) -> None:
    """Write an id unless there is one; of two processes at once, one wins."""
    file = folder / ID_FILE
    if file.exists() and _read_id(folder):
        return
    temporary = folder / f"{ID_FILE}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        temporary.write_text(f"{uuid.uuid4().hex}\n", encoding="ascii")
        try:
            os.link(temporary, file)
        except FileExistsError:
            if not _read_id(folder):  # a kill or a full disk left it empty
                temporary.replace(file)
        except OSError:  # a disk without hard links
            temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
