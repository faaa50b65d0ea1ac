"""Say which folder cannot be used, by which user, which right is missing, and what to do.

An OSError of `DENIED` or `DISK_FULL` goes unchanged through the pipeline, up to where the settings
are known; there `explain` makes it a sentence.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import FolderUnavailable, ImgrecError

if TYPE_CHECKING:
    from pipeline.settings import Settings

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
# What imgrec writes into itself. A rebuild writes all of them but `training`.
WRITTEN = ("faiss_index", "jobs", "fetched", "run", "prepared", "redis", "copies")


def is_unavailable(error: BaseException) -> bool:
    """Tell whether a folder is to blame: its disk is full, or this user lacks a right."""
    return isinstance(error, OSError) and error.errno in DENIED | DISK_FULL


def unavailable_cause(error: BaseException) -> OSError | None:
    """Return the error about a folder that a library has wrapped into another one, if there is."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and is_unavailable(cause):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def explain(error: OSError, settings: Settings) -> FolderUnavailable:
    """Return the sentence for an error of `DENIED` or `DISK_FULL`."""
    path = _path(error) or settings.data_dir
    name, folder = _setting_of(path, settings)
    return _unavailable(error, path, name, folder)


def require_readable(path: Path, name: str) -> None:
    """Check that a folder, where there is one, can be listed and entered.

    Raises:
        FolderUnavailable: it cannot, or what stands above it cannot be entered.
    """
    try:
        with os.scandir(path):
            pass
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unavailable(error, path, name, path) from error


def require_writable(path: Path, name: str, root: Path | None = None) -> None:
    """Check that files can be made in a folder, or that it can be made itself.

    A file without a name is made, because the bits of a mode say nothing of a read-only mount, an
    immutable folder or a server that squashes root.

    Args:
        root: the folder that the setting `name` names, if `path` is below it.

    Raises:
        FolderUnavailable: they cannot.
    """
    try:
        place = path.absolute()
    except FileNotFoundError as error:
        raise FolderUnavailable(
            f"{name} ({path}) cannot be used: the working folder of the process was deleted: start "
            "the process again, in a folder that is there."
        ) from error
    try:
        while not place.exists():
            place = place.parent
        require_readable(place, name)
        with tempfile.TemporaryFile(dir=place) as stream:
            stream.write(b"\0")
            stream.flush()
    except OSError as error:
        raise _unavailable(error, place, name, root or path) from error


def require_usable_file(file: Path, name: str) -> None:
    """Check that a file can be read and written.

    Raises:
        FolderUnavailable: it cannot.
    """
    try:
        with file.open("r+b"):
            pass
    except OSError as error:
        raise _unavailable(error, file, name, file.parent) from error


def require_data_dir(settings: Settings) -> None:
    """Check before any work that a rebuild can write everything below DATA_DIR.

    Raises:
        FolderUnavailable: it cannot.
    """
    require_writable(settings.data_dir, "DATA_DIR")
    for name in WRITTEN:
        folder = settings.data_dir / name
        if folder.exists():
            require_writable(folder, "DATA_DIR", settings.data_dir)


@contextmanager
def writing_temporary(what: str) -> Iterator[None]:
    """Say where a temporary file could not be written; no setting of ours names that folder.

    Raises:
        ImgrecError: the disk is full, or this user lacks a right there.
    """
    try:
        yield
    except OSError as error:
        if not is_unavailable(error):
            raise
        raise temporary_failed(what, error.strerror or str(error)) from error


def temporary_failed(what: str, reason: str) -> ImgrecError:
    return ImgrecError(
        f"{what} cannot be written to {tempfile.gettempdir()}: {reason}. Free some space there, or "
        "set TMPDIR to a folder that has it."
    )


def user_name() -> str:
    """Name the user of this process; a container's user may have a number only."""
    return _user(os.geteuid())


def _unavailable(error: OSError, path: Path, name: str, folder: Path) -> FolderUnavailable:
    reason = error.strerror or str(error)
    if error.errno in DENIED:
        return FolderUnavailable(_denied(path, name, folder, reason))
    if error.errno in DISK_FULL:
        return FolderUnavailable(
            f"{name} ({folder}) cannot be written: {reason}. Free space there; a running rebuild "
            "then continues automatically."
        )
    return FolderUnavailable(f"{name} ({folder}) cannot be used: {reason}: correct {name}.")


def _denied(path: Path, name: str, folder: Path, reason: str) -> str:
    place, right, verb = _missing_right(path.absolute())
    failure = f"{name} ({folder}) cannot be {'read' if verb == 'read' else 'written'}: {reason}."
    if _is_read_only(place):
        return (
            f"{failure} The file system of {place} is mounted read-only: mount it writable, or "
            f"set {name} to another folder."
        )
    facts, me = place.stat(), os.geteuid()
    if facts.st_uid == me:
        way = f"give it that right (chmod -R u+rwX {folder})"
    else:
        way = f"give it that right as root (chown -R {me} {folder}), or run imgrec as the owner"
    return (
        f"{failure} The {user_name()} may not {right} {place}, which belongs to the "
        f"{_user(facts.st_uid)} and has the mode {stat.filemode(facts.st_mode)}: {way}."
    )


def _missing_right(path: Path) -> tuple[Path, str, str]:
    """Find what stands in the way: (where, the right that is missing there, read or write)."""
    for parent in reversed(path.parents):
        if parent.exists() and not _may(parent, os.X_OK):
            return parent, "enter the folder", "read"
    while not path.exists() and path != path.parent:
        path = path.parent
    if path.is_dir():
        if not _may(path, os.R_OK | os.X_OK):
            return path, "list the folder", "read"
        return path, "write to the folder", "write"
    if not _may(path, os.R_OK):
        return path, "read the file", "read"
    if not _may(path, os.W_OK):
        return path, "write to the file", "write"
    return path.parent, "write to the folder", "write"


def _may(path: Path, mode: int) -> bool:
    effective = os.access in os.supports_effective_ids
    return os.access(path, mode, effective_ids=effective)


def _is_read_only(place: Path) -> bool:
    try:
        return bool(os.statvfs(place).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _user(uid: int) -> str:
    try:
        return f"user '{pwd.getpwuid(uid).pw_name}' (uid {uid})"
    except KeyError:
        return f"user with uid {uid}"


def _path(error: OSError) -> Path | None:
    for name in (error.filename, error.filename2):
        if isinstance(name, str | bytes) and name:
            return Path(os.fsdecode(name))
    return None


def _setting_of(path: Path, settings: Settings) -> tuple[str, Path]:
    """Return the setting that names the folder of a path, and the folder."""
    path = path.absolute()
    folders = list(named_folders(settings))
    if os.path.isdir(settings.embedding_model):
        folders.append(("EMBEDDING_MODEL", Path(settings.embedding_model)))
    fitting = [(name, folder) for name, folder in folders if path.is_relative_to(folder.absolute())]
    return max(fitting, key=lambda each: len(each[1].absolute().parts), default=("It", path))


def named_folders(settings: Settings) -> Iterator[tuple[str, Path]]:
    """Yield every folder that imgrec uses by itself, with the setting that names it."""
    yield "DATA_DIR", settings.data_dir
    yield "MODELS_DIR", settings.models_dir
    if settings.u2net_home:
        yield "U2NET_HOME", Path(settings.u2net_home)
    from huggingface_hub.constants import HF_HOME

    yield "HF_HOME", Path(HF_HOME)
    if settings.database_url.startswith("sqlite:///"):
        yield "DATABASE_URL", Path(settings.database_url.removeprefix("sqlite:///")).parent
