"""Find the images below a folder, and keep paths inside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from stat import S_ISREG

from pipeline.errors import BadImage, WrongUse
from pipeline.settings import Settings

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image below a folder: its posix path from there, bytes, modification time in ns."""

    path: str
    size: int
    mtime_ns: int


def find_images(root: Path) -> Iterator[ImageFile | tuple[str, BadImage]]:
    """Yield the images below `root` in ascending order of their paths, hidden ones left out.

    A file that cannot even be listed is yielded as (shown path, error). Links to folders are not
    followed: they may form circles; links to files are. Memory holds one folder's names, and those
    of the folders that it lies in.

    Raises:
        WrongUse: a folder cannot be read.
    """
    waiting: list[Iterator[tuple[str, os.DirEntry[str]]]] = [_entries(str(root), "", root)]
    while waiting:
        found = next(waiting[-1], None)
        if found is None:
            waiting.pop()
            continue
        path, entry = found
        if path.endswith("/"):
            waiting.append(_entries(entry.path, path, root))
            continue
        try:
            path.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(path).decode("utf-8", "backslashreplace")
            yield shown, BadImage("the file name is not UTF-8: rename the file", "find")
            continue
        try:
            stat = entry.stat()
        except OSError as error:
            yield path, BadImage(f"the file cannot be read: {error.strerror}", "find")
            continue
        if not S_ISREG(stat.st_mode):  # reading a pipe would never end
            yield path, BadImage("this is not a regular file", "find")
            continue
        yield ImageFile(path, stat.st_size, stat.st_mtime_ns)


def _entries(folder: str, prefix: str, root: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield a folder's images and folders by path; a folder's path ends with a slash.

    With the slash, a folder sorts where its images do: a-b.jpg, a/b.jpg, a0.jpg.
    """
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    found.append((f"{prefix}{entry.name}/", entry))
                elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and not _is_folder(entry):
                    found.append((f"{prefix}{entry.name}", entry))
    except OSError as error:
        # A folder that is skipped in silence would drop its products from the index.
        where = error.filename or root
        raise WrongUse(f"The folder {where} cannot be read: {error.strerror}.") from error
    found.sort(key=itemgetter(0), reverse=True)
    while found:
        yield found.pop()


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Tell whether a link leads to a folder; one that leads nowhere does not."""
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:
        return False


def require_allowed(root: Path, settings: Settings) -> None:
    """Refuse a folder outside of IMAGE_ROOTS, where that is set.

    Raises:
        WrongUse: the folder is outside.
    """
    allowed = [Path(part).resolve() for part in settings.image_roots.split(":") if part]
    if allowed and not any(root.is_relative_to(place) for place in allowed):
        raise WrongUse(f"The folder '{root}' is outside of IMAGE_ROOTS ({settings.image_roots}).")


def confined(root: Path, path: str) -> Path:
    """Return the real place of `path` below `root`.

    Raises:
        BadImage: `..` or a link leads out of the folder, or in circles.
    """
    folder = root.resolve()
    try:
        full = (folder / path).resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError before Python 3.13
        raise BadImage("the file is a broken symbolic link", "read") from error
    if not full.is_relative_to(folder):
        raise BadImage("the path leads outside the products folder", "read")
    return full
