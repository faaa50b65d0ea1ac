"""The root of a rebuild: a folder or the address of a store, as far as IMAGE_ROOTS allows it."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.errors import WrongUse
from pipeline.images.fetched import feed_name, fetched_store
from pipeline.images.source import ImageFolder, ImageReader, ImageSource
from pipeline.settings import Settings
from pipeline.storage.address import Address, is_address

# Folders and addresses separated by colons; an address has colons of its own.
ROOT = re.compile(r"[a-z][a-z0-9+.-]*://[^:]*(?::\d+(?=[/:]|$)[^:]*)?|[^:]+", re.IGNORECASE)


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


def open_reader(root: str | Path | Address, settings: Settings) -> ImageReader:
    """Return what reads the images of a root, which may also be feed:NAME.

    Raises:
        WrongUse: see `open_source`.
    """
    if isinstance(root, str) and feed_name(root) is not None:
        return fetched_store(settings)
    return open_source(root, settings)


def _require_utf8(folder: Path) -> None:
    """Refuse a folder whose path no database and no JSON can hold."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise WrongUse(f"The name of the folder '{folder}' is not UTF-8: rename it.") from None


def open_source(root: str | Path | Address, settings: Settings) -> ImageSource:
    """Return the images below a folder or an address, where IMAGE_ROOTS allows it.

    Raises:
        WrongUse: outside of IMAGE_ROOTS, or an address that names no store.
    """
    place = parse_root(root)
    if isinstance(place, Path):
        place = place.resolve()
        _require_utf8(place)
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
    if not roots and settings.image_roots:
        raise WrongUse(
            f"The setting IMAGE_ROOTS ({settings.image_roots!r}) names no folder and no store: "
            "name one, or leave it empty to allow all."
        )
    if not roots or any(_lies_in(place, root) for root in roots):
        return
    what = "folder" if isinstance(place, Path) else "store"
    raise WrongUse(f"The {what} '{place}' is outside of IMAGE_ROOTS ({settings.image_roots}).")


def _lies_in(place: Path | Address, root: Path | Address) -> bool:
    if isinstance(place, Path) and isinstance(root, Path):
        return place.is_relative_to(root.resolve())
    return type(place) is type(root) and f"{place}/".startswith(f"{root}/")
