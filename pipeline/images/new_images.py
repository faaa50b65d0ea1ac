"""Write images that are added to an index: into the folder or the store that it was built from."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

from pipeline.access import is_unavailable, user_name
from pipeline.atomic_files import remove_abandoned, sync_folder, temporary_beside
from pipeline.errors import (
    BadImage,
    Conflict,
    FolderUnavailable,
    ObjectConflict,
    ObjectMissing,
    StoreRefused,
    WrongUse,
    quote,
)
from pipeline.failpoints import failpoint
from pipeline.images.decode import Limits, read_image, sha256
from pipeline.images.fetched import feed_name
from pipeline.images.find import SYSTEM_FOLDERS, ImageFile, confined, mtime_ns
from pipeline.images.formats import SUFFIXES, suffix_of
from pipeline.images.object_source import ObjectSource, tag_number
from pipeline.images.path_length import too_long
from pipeline.images.roots import open_source, parse_root
from pipeline.names import CONTROL, nfc
from pipeline.settings import Settings
from pipeline.storage.address import Address, is_address

if TYPE_CHECKING:
    from pipeline.storage.object_store import ObjectStore

MAX_PART_BYTES = 200  # of a folder's or a file's name; a file system allows 255, a suffix follows
MAX_NEW_PATH_BYTES = 900  # a key of S3 has up to 1,024
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class NewImages(Protocol):
    """Takes images below one root. A rebuild of that root finds them under the same paths."""

    def path_of(self, photo: str) -> str | None:
        """Return the path of a photo that is below the root already; None for another one."""

    def read(self, path: str, limits: Limits) -> bytes:
        """Return the bytes of an image that is there.

        Raises:
            BadImage: it is not there, empty or too large.
        """

    def put(self, path: str, data: bytes) -> ImageFile:
        """Write an image; return it as a rebuild will list it, with its hash.

        One of the same content that is there already stays as it is.

        Raises:
            Conflict: another image, or something else, has this path.
            FolderUnavailable, StoreRefused: this process may not write there.
            ServerUnavailable: the store does not answer.
        """


def open_new_images(root: str, settings: Settings) -> NewImages:
    """Return what takes images below the root of an index.

    Raises:
        WrongUse: outside of IMAGE_ROOTS, not on this host, or nothing that can be added to.
    """
    name = feed_name(root)
    if name is not None:
        raise WrongUse(
            f"The products come from the feed {quote(name)}, and a rebuild indexes what it lists: "
            f"add the image's address to the feed, import it and rebuild feed:{name}, which "
            "fetches only what is new."
        )
    place = parse_root(root)
    open_source(place, settings)  # for its checks
    if isinstance(place, Path):
        return NewFiles(place)
    if place.scheme in ("http", "https"):
        raise WrongUse(
            f"The products are at {root}, and a web server does not tell a new object from one "
            "that is there: put the photo there and rebuild, which embeds only what is new."
        )
    return NewObjects(place)


def image_path(product: str, name: str, data: bytes) -> str:
    """Return the path of a new image of a product, e.g. lamp/one/photo.jpg.

    Args:
        name: of its file, as somebody has it; of folders in it, only the last part counts.

    Raises:
        WrongUse: no folder can be named after the product, or no image after the name.
    """
    parts = PurePosixPath(nfc(product)).parts
    if not parts or any(_wrong_folder(part) for part in parts):
        raise WrongUse(f"No folder can be named after the product {quote(product)}.")
    file = _file_name(nfc(name), data)
    if not file:
        raise WrongUse(f"No image can be named {quote(name)}: rename it.")
    path = "/".join((*parts, file))
    if len(path.encode()) > MAX_NEW_PATH_BYTES:
        raise WrongUse(f"The name of the product {quote(product)} is too long for a folder.")
    return path


def upload_name(name: str, data: bytes) -> str:
    """Return the name of an uploaded image: what its sender calls it, and its content.

    So the same upload has the same name again, and another one never has, whatever cameras call
    their photos.
    """
    stem = os.path.splitext(re.split(r"[/\\]", name)[-1])[0]
    stem = re.sub(r"[^\w-]+", "-", stem).strip("-_")[:60] or "image"
    return f"{stem}-{sha256(data)[:12]}{suffix_of(data)}"


def _wrong_folder(name: str) -> bool:
    """Tell whether a rebuild would not look into a folder of this name, or it leads elsewhere."""
    return (
        name.startswith((".", "/"))
        or "\\" in name
        or CONTROL.search(name) is not None
        or name.casefold() in SYSTEM_FOLDERS
        or len(name.encode("utf-8", "surrogatepass")) > MAX_PART_BYTES
    )


def _file_name(name: str, data: bytes) -> str:
    """Return the last part of a name with an image's suffix; an empty text where it has none."""
    name = re.split(r"[/\\]", name)[-1]
    if os.path.splitext(name)[1].lower() not in SUFFIXES:
        name += suffix_of(data)
    wrong = name.startswith(".") or CONTROL.search(name)
    return "" if wrong or len(name.encode("utf-8", "surrogatepass")) > MAX_PART_BYTES else name


def _listed(path: str) -> str:
    """Return the path of an image that is there, if a rebuild finds it.

    Raises:
        WrongUse: it does not: the image would leave the index again.
    """
    *folders, name = path.split("/")
    hidden = any(part.startswith(".") for part in (*folders, name))
    if hidden or any(part.casefold() in SYSTEM_FOLDERS for part in folders):
        raise WrongUse(f"A rebuild does not find {quote(path)}: its folder or name is left out.")
    if os.path.splitext(name)[1].lower() not in SUFFIXES:
        raise WrongUse(f"A rebuild does not find {quote(path)}: it has no suffix of an image.")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise WrongUse(f"The file name {quote(path)} is not UTF-8: rename the file.") from None
    if size := too_long(path):
        raise WrongUse(f"The path {quote(path)} has {size}: shorten the names of its folders.")
    return path


class NewFiles:
    """A folder of this host."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise WrongUse(
                f"The products folder {folder} is not on this machine: add photos where it is."
            )
        self._root = folder.resolve()

    def path_of(self, photo: str) -> str | None:
        if is_address(photo):
            return None
        place = Path(photo).resolve()
        if not place.is_relative_to(self._root):
            return None
        return _listed(place.relative_to(self._root).as_posix())

    def read(self, path: str, limits: Limits) -> bytes:
        return read_image(confined(self._root, path), limits)

    def put(self, path: str, data: bytes) -> ImageFile:
        try:
            place = confined(self._root, path)
            self._write(place, path, data)
            facts = place.stat()
        except BadImage as error:
            raise WrongUse(f"{quote(path)} cannot be written: {error}.") from error
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise _taken(path) from error
        except OSError as error:
            if is_unavailable(error):
                raise FolderUnavailable(
                    f"The {user_name()} cannot write the photo below the products folder "
                    f"{self._root}: {error.strerror}. Give it the right to write there, or add the "
                    "photo where it has that right."
                ) from error
            raise
        return ImageFile(path, facts.st_size, mtime_ns(facts), sha256(data))

    def _write(self, place: Path, path: str, data: bytes) -> None:
        """Write a file that is whole from the first moment on, and never over another one."""
        if self._is_there(place, path, data):
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(place.parent)
        temporary = temporary_beside(place)
        try:
            with temporary.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            failpoint("new_image.before_link")
            try:
                _link_new(temporary, place)
            except FileExistsError:  # written by another process meanwhile
                if not self._is_there(place, path, data):
                    raise
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(place.parent)

    def _is_there(self, place: Path, path: str, data: bytes) -> bool:
        """Tell whether a file of this content is there.

        Raises:
            Conflict: another one is.
        """
        if not place.exists():
            return False
        if not place.is_file() or place.stat().st_size != len(data) or place.read_bytes() != data:
            raise _taken(path)
        return True


class NewObjects:
    """A prefix of a store."""

    def __init__(self, address: Address) -> None:
        from pipeline.storage.object_store import ObjectStore  # needs a library

        self._source = ObjectSource(address)
        self._store: ObjectStore = ObjectStore(address)

    def path_of(self, photo: str) -> str | None:
        if not is_address(photo):
            return None
        root, photo = f"{self._store.name}/", str(Address.parse(photo))
        if not photo.startswith(root):
            raise WrongUse(f"The photo {photo} is not below {root}, where the products are.")
        return _listed(photo.removeprefix(root))

    def read(self, path: str, limits: Limits) -> bytes:
        return self._source.read(path, limits)

    def put(self, path: str, data: bytes) -> ImageFile:
        digest = sha256(data)
        try:
            self._store.put_if(path, data, None)
        except ObjectConflict:
            if not self._is_there(path, data):
                raise _taken(path) from None
        except ObjectMissing as error:
            raise StoreRefused(f"The store {self._store.name} does not exist.") from error
        info = self._store.info(path)
        return ImageFile(path, info.size, tag_number(info.etag), digest)

    def _is_there(self, path: str, data: bytes) -> bool:
        from pipeline.storage.object_store import TooLarge

        try:
            return self._store.get(path, len(data)).data == data
        except (ObjectMissing, TooLarge):
            return False


def _link_new(source: Path, place: Path) -> None:
    """Give a file a second name that nothing has yet.

    Raises:
        FileExistsError: something has it.
    """
    try:
        os.link(source, place)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        # Without hard links: reserve the name, then replace what reserves it.
        with place.open("xb"):
            pass
        source.replace(place)


def _taken(path: str) -> Conflict:
    return Conflict(
        f"{path} is another photo below the products folder: rename yours to add it, too."
    )
