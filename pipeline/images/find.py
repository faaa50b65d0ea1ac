"""Find the images below a folder, and keep paths inside it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

from pipeline.errors import BadImage, WrongUse
from pipeline.images.exclude import EXCLUDE_FILE, Exclude, FolderExclude, read_exclude_file
from pipeline.images.failure import Failure
from pipeline.images.formats import SUFFIXES

# Folders that other programs keep among photos: thumbnails, deleted files, archive metadata. In
# lower case. Hidden ones need no name here.
SYSTEM_FOLDERS = frozenset(
    {
        *("@eadir", "@tmp", "@sharebin", "#recycle", "#snapshot"),  # Synology
        *("@recycle", "@recently-snapshot"),  # QNAP
        *("__macosx", "network trash folder", "temporary items"),  # macOS
        *("$recycle.bin", "recycler", "recycled", "system volume information"),  # Windows
        *("lost+found", "node_modules"),
    }
)
SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
MAX_SUFFIXES = 20  # different ones that are counted by name
MAX_SUFFIX = 12  # characters of one
# What is wrong with one folder or file only. Any other error, e.g. of a failing disk or of a server
# that is away, ends the listing: the products of a whole tree would leave the index.
ONE_PLACE = (
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR),
    *(errno.ELOOP, errno.ENAMETOOLONG),
)
MIN_TIME_NS, MAX_TIME_NS = -(2**63), 2**63 - 1  # from 1677 to 2262


class ImageFile(NamedTuple):
    """One image below a root: its posix path from there, bytes, modification time in ns.

    Of an object in a store, the time is a number that stands for its ETag; of an image of a feed,
    one that stands for its content, whose hash is known.

    A tuple, because a listing makes millions: a frozen dataclass takes twice as long to make.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str = ""


@dataclass
class LeftOut:
    """How many files and folders a listing left out on purpose, by reason."""

    counts: Counter[str] = field(default_factory=Counter)
    _suffixes: set[str] = field(default_factory=set)

    def add(self, reason: str) -> None:
        self.counts[reason] += 1

    def add_name(self, name: str) -> None:
        """Count a file whose name is not an image's."""
        suffix = os.path.splitext(name)[1].lower()
        if suffix not in self._suffixes:
            usable = 1 < len(suffix) <= MAX_SUFFIX and suffix.isprintable()
            if usable and len(self._suffixes) < MAX_SUFFIXES:
                self._suffixes.add(suffix)
            else:
                suffix = "no suffix" if not suffix else "other suffixes"
        self.add(f"not an image's name ({suffix})")

    def by_reason(self) -> dict[str, int]:
        """Return the counts, the largest first."""
        return dict(sorted(self.counts.items(), key=lambda item: (-item[1], item[0])))


@dataclass(frozen=True)
class _Folder:
    """A folder on the way: the paths of `entries` are still to be taken, the last one first.

    Those of folders end with a slash. No `os.DirEntry` is kept: its `stat` takes longer than that
    of the path, and its memory is wanted for a folder of millions.
    """

    entries: list[str]
    real: str  # its path without links
    exclude: FolderExclude | None


def find_images(
    root: Path,
    exclude: Exclude | None = None,
    left_out: LeftOut | None = None,
    alive: Callable[[], None] = lambda: None,
) -> Iterator[ImageFile | Failure]:
    """Yield the images below `root` in ascending order of their paths, and what is wrong there.

    A failure is a file or folder that cannot be listed; with `warning`, one that may not be what
    it looks like. A link to a folder below `root` is followed, each folder once; a link that leads
    back or out of `root` is a failure. Memory holds one folder's names, and those of the folders
    that it lies in. No file is opened but .imgrecignore.

    Args:
        left_out: counts what is left out on purpose: hidden files, other names, ...
        alive: called for each folder, which may hold no image, and for each name in it.

    Raises:
        WrongUse: `root` cannot be read, or a disk fails.
    """
    return _Walk(root, exclude or Exclude(), left_out or LeftOut(), alive).run()


class _Walk:
    def __init__(
        self, root: Path, exclude: Exclude, left_out: LeftOut, alive: Callable[[], None]
    ) -> None:
        self._root = os.path.realpath(root)
        self._prefix = os.path.join(self._root, "")
        self._exclude = exclude
        self._left_out = left_out
        self._alive = alive
        self._links: dict[str, str] = {}  # real path of a linked folder: path of the link
        self._way: list[_Folder] = []

    def run(self) -> Iterator[ImageFile | Failure]:
        try:
            self._way.append(self._open(self._root, "", self._root, None))
        except OSError as error:
            raise _unreadable(self._root, error) from error
        while self._way:
            entries = self._way[-1].entries
            if not entries:
                self._way.pop()
            elif entries[-1].endswith("/"):
                yield from self._enter(entries.pop()[:-1])
            else:
                yield from self._files(entries)

    def _files(self, entries: list[str]) -> Iterator[ImageFile | Failure]:
        """Yield a folder's images up to the next folder in it.

        From their folder, a file is found a seventh sooner than by its whole path.
        """
        start = entries[-1].rfind("/") + 1
        folder: int | None = None
        try:
            with contextlib.suppress(OSError):  # then each file says what is wrong
                folder = os.open(self._prefix + entries[-1][:start], os.O_RDONLY | os.O_DIRECTORY)
            skipped, prefix = (0, self._prefix) if folder is None else (start, "")
            while entries and entries[-1][-1] != "/":
                path = entries.pop()
                try:
                    path.isascii() or path.encode()
                    stat = os.stat(prefix + path[skipped:], dir_fd=folder)
                except (UnicodeEncodeError, OSError) as error:
                    yield self._wrong_file(path, error)
                    continue
                if S_ISREG(stat.st_mode):
                    yield ImageFile(path, stat.st_size, mtime_ns(stat))
                else:  # reading a pipe would never end
                    yield Failure(path, "find", "this is not a regular file")
        finally:
            if folder is not None:
                os.close(folder)

    def _enter(self, path: str) -> Iterator[Failure]:
        """Go on with a folder's entries; yield what is wrong with it."""
        here, name = self._way[-1], os.path.basename(path)
        folder = self._prefix + path
        if os.path.splitext(name)[1].lower() in SUFFIXES:
            yield _failure(path, "this is a folder with the name of an image", warning=True)
        real = os.path.join(here.real, name)
        if os.path.islink(folder):
            real = os.path.realpath(folder)
            problem = self._wrong_link(real)
            if problem:
                yield _failure(path, problem)
                return
            self._links[real] = path
        try:
            self._way.append(self._open(folder, f"{path}/", real, here.exclude))
        except WrongUse as error:  # its exclude file
            yield _failure(path, f"the folder was left out: {error}")
        except OSError as error:
            if error.errno not in ONE_PLACE:
                raise _unreadable(folder, error) from error
            yield _failure(path, f"the folder cannot be read: {error.strerror}")

    def _wrong_link(self, real: str) -> str | None:
        """Say why a link to this folder is not followed."""
        if real != self._root and not real.startswith(self._root.rstrip("/") + "/"):
            return f"the link leads outside the products folder, to {real}: copy the folder here"
        for folder in self._way:
            if folder.real == real or folder.real.startswith(f"{real}/"):
                return "the link leads back to a folder that it lies in"
        if real in self._links:
            return f"the link leads to the same folder as '{self._links[real]}'"
        return None

    def _open(self, folder: str, prefix: str, real: str, exclude: FolderExclude | None) -> _Folder:
        """List a folder's images and folders by path; a folder's path ends with a slash.

        With the slash, a folder sorts where its images do: a-b.jpg, a/b.jpg, a0.jpg.
        """
        self._alive()
        entries: list[str] = []
        with os.scandir(folder) as found:
            for entry in found:
                self._alive()  # a folder of millions, or on a slow disk, takes minutes
                name = entry.name
                hidden = name[0] == "."
                is_image = name[name.rfind(".") :].lower() in SUFFIXES
                if is_image and not hidden and entry.is_file(follow_symlinks=False):
                    entries.append(prefix + name)  # as most are
                elif hidden:
                    if name == EXCLUDE_FILE:
                        exclude = FolderExclude(prefix, read_exclude_file(folder), exclude)
                    else:
                        self._left_out.add("hidden")
                elif _is_folder(entry):
                    if name.casefold() in SYSTEM_FOLDERS and _readable(entry):
                        self._left_out.add(f"system folder {name}")
                    else:
                        entries.append(f"{prefix}{name}/")
                elif is_image or (entry.is_symlink() and not os.path.exists(entry.path)):
                    entries.append(prefix + name)  # a link that leads nowhere may be a folder's
                elif name.casefold() in SYSTEM_FILES:
                    self._left_out.add(f"system file {name}")
                else:
                    self._left_out.add_name(name)
        if exclude is not None or not self._exclude.is_empty:
            entries = [path for path in entries if not self._is_excluded(path, exclude)]
        entries.sort(reverse=True)
        return _Folder(entries, real, exclude)

    def _wrong_file(self, path: str, error: UnicodeEncodeError | OSError) -> Failure:
        """Say what is wrong with a file.

        Raises:
            WrongUse: a disk fails.
        """
        if isinstance(error, UnicodeEncodeError):
            return _failure(path, "the file name is not UTF-8: rename the file")
        if isinstance(error, FileNotFoundError):
            link = os.path.islink(self._prefix + path)
            return Failure(
                path, "find", "the link leads to nothing" if link else "the file has gone"
            )
        if error.errno not in ONE_PLACE:
            error.filename = self._prefix + path
            raise _unreadable(error.filename, error) from error
        return Failure(path, "find", f"the file cannot be read: {error.strerror}")

    def _is_excluded(self, path: str, exclude: FolderExclude | None) -> bool:
        if self._exclude.matches(path):
            self._left_out.add("excluded by --exclude")
        elif exclude is not None and exclude.matches(path):
            self._left_out.add(f"excluded by {EXCLUDE_FILE}")
        else:
            return False
        return True


def mtime_ns(stat: os.stat_result) -> int:
    """Return a file's modification time in ns, or the nearest that 64 bits hold.

    A camera's broken clock may be centuries off, and no array and no database holds more.
    """
    time_ns = stat.st_mtime_ns
    if MIN_TIME_NS <= time_ns <= MAX_TIME_NS:
        return time_ns
    return MIN_TIME_NS if time_ns < 0 else MAX_TIME_NS


def _failure(path: str, reason: str, *, warning: bool = False) -> Failure:
    """Say what is wrong with a path; bytes in names that are not UTF-8 are escaped."""
    path, reason = (
        os.fsencode(text).decode("utf-8", "backslashreplace") for text in (path, reason)
    )
    return Failure(path, "find", reason, warning)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a folder or leads to one; a link to itself does not.

    Raises:
        OSError: it cannot be found out, e.g. as a link leads to a server that is away.
    """
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno not in ONE_PLACE:
            raise
        return False


def _readable(entry: os.DirEntry[str]) -> bool:
    return os.access(entry.path, os.R_OK | os.X_OK)


def _unreadable(folder: str, error: OSError) -> WrongUse:
    # A folder that is skipped in silence would drop its products from the index.
    place = error.filename or folder
    what = "folder" if os.path.isdir(place) else "file"
    return WrongUse(f"The {what} {place} cannot be read: {error.strerror}.")


def confined(root: Path, path: str) -> Path:
    """Return the real place of `path` below `root`.

    Raises:
        BadImage: `..` or a link leads out of the folder, or in circles.
    """
    folder = root.resolve()
    circle = BadImage("the file is a broken symbolic link", "read")
    try:
        full = (folder / path).resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError before Python 3.13
        raise circle from error
    if full.is_symlink():  # since Python 3.13
        raise circle
    if not full.is_relative_to(folder):
        raise BadImage("the path leads outside the products folder", "read")
    return full
