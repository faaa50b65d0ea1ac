"""Where images come from: a folder of this host, or a prefix of an object store."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from pipeline.errors import SetupError, WrongUse
from pipeline.images.decode import Limits, read_image
from pipeline.images.exclude import Exclude
from pipeline.images.failure import Failure
from pipeline.images.find import ImageFile, LeftOut, confined, find_images
from pipeline.settings import Settings
from pipeline.storage.address import Address, is_address

# Folders and addresses separated by colons; an address has colons of its own.
ROOT = re.compile(r"[a-z][a-z0-9+.-]*://[^:]*(?::\d+(?=[/:]|$)[^:]*)?|[^:]+", re.IGNORECASE)

Read = Callable[[ImageFile], bytes]


class ImageSource(Protocol):
    """The images below one root."""

    @property
    def name(self) -> str:
        """The root as the job table and the manifest name it, e.g. /data/products or s3://b/p."""

    def find(
        self, exclude: Exclude | None = None, left_out: LeftOut | None = None
    ) -> Iterator[ImageFile | Failure]:
        """Yield the images in ascending order of their paths, and what is wrong there."""

    def require(self) -> None:
        """Refuse to begin where the root cannot be used from this host.

        Raises:
            ImgrecError: it does not exist, does not answer, or refuses access.
        """

    def reading(self, images: Sequence[ImageFile], limits: Limits) -> AbstractContextManager[Read]:
        """Return a function that reads images, these in about this order; threads may share it.

        The function raises BadImage for what is wrong with one image, other errors for the rest.
        """


class ImageFolder:
    """The images of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        return str(self.folder)

    def find(
        self, exclude: Exclude | None = None, left_out: LeftOut | None = None
    ) -> Iterator[ImageFile | Failure]:
        return find_images(self.folder, exclude, left_out)

    def require(self) -> None:
        if not self.folder.is_dir():
            raise SetupError(
                f"The folder {self.folder} does not exist on this host: every embed worker must "
                "see the products folder under the same path."
            )

    def reading(self, images: Sequence[ImageFile], limits: Limits) -> AbstractContextManager[Read]:
        folder = self.folder
        return nullcontext(lambda image: read_image(confined(folder, image.path), limits))


def parse_root(root: str | Path | Address) -> Path | Address:
    """Return what a root names: a folder, also as file:///PATH, or a prefix of a store.

    Raises:
        WrongUse: an address that names neither.
    """
    if not isinstance(root, str) or not is_address(root):
        return Path(root) if isinstance(root, str) else root
    if not root.lower().startswith("file:"):
        return Address.parse(root)
    parts = urlsplit(root)
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise WrongUse(f"The address {root!r} names no folder of this host: write file:///PATH.")
    return Path(unquote(parts.path))


def open_source(root: str | Path | Address, settings: Settings) -> ImageSource:
    """Return the images below a folder or an address, where IMAGE_ROOTS allows it.

    Raises:
        WrongUse: outside of IMAGE_ROOTS, or an address that names no store.
    """
    place = parse_root(root)
    if isinstance(place, Path):
        place = place.resolve()
    _require_allowed(place, settings)
    if isinstance(place, Path):
        return ImageFolder(place)
    from pipeline.images.object_source import ObjectSource  # needs a library that few commands do

    return ObjectSource(place)


def _require_allowed(place: Path | Address, settings: Settings) -> None:
    try:
        roots = [parse_root(root) for root in ROOT.findall(settings.image_roots)]
    except WrongUse as error:
        raise WrongUse(f"The setting IMAGE_ROOTS cannot be used: {error}") from error
    if not roots or any(_lies_in(place, root) for root in roots):
        return
    what = "folder" if isinstance(place, Path) else "store"
    raise WrongUse(f"The {what} '{place}' is outside of IMAGE_ROOTS ({settings.image_roots}).")


def _lies_in(place: Path | Address, root: Path | Address) -> bool:
    if isinstance(place, Path) and isinstance(root, Path):
        return place.is_relative_to(root.resolve())
    return type(place) is type(root) and f"{place}/".startswith(f"{root}/")
