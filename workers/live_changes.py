"""Change the published index without a rebuild, as commands and the HTTP API do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.errors import Conflict, NotFound, WrongUse, quote
from pipeline.images.find import ImageFile
from pipeline.images.new_images import NewImages, open_new_images
from pipeline.index.live_changes import (
    AddedImage,
    ChangedVersion,
    Changes,
    removed_images,
)
from pipeline.index.versions import Version
from pipeline.names import nfc, wrong_product_id
from pipeline.vector_bytes import from_base64
from workers.resources import Resources


def new_images(resources: Resources) -> NewImages:
    """Return what takes images of the published index.

    Raises:
        IndexMissing: nothing was published. WrongUse: nothing can be added where the products are.
    """
    root = str(resources.versions.current().manifest["root"])
    return open_new_images(root, resources.settings)


def require_product_id(product_id: str) -> None:
    """Refuse an id that no product can have.

    Raises:
        WrongUse: naming it, with the reason.
    """
    if why := wrong_product_id(product_id):
        raise WrongUse(f"No product can have the id {quote(product_id)}: {why}.")


def require_owner(resources: Resources, product_id: str, path: str) -> None:
    """Refuse a photo of the index that shows another product.

    Raises:
        Conflict: naming both, with the way to give it to this one.
    """
    current = resources.versions.current()
    if not _changed(current, resources.live_changes.all()).has_path(path):
        return
    catalogue = resources.indexed_catalogues.of(current, at_once=True).catalogue
    owner = catalogue.product_of(path)
    if owner != nfc(product_id):
        raise Conflict(
            f"The photo {path} shows product {quote(owner)} in the index. To have it show "
            f"{quote(product_id)}, import a table with the columns product_id and image."
        )


def add_image(
    resources: Resources, product_id: str, file: ImageFile, answer: dict[str, Any]
) -> None:
    """Add an image that lies below the root of the index.

    Args:
        answer: what `workers.query.image_vector` has returned for it.

    Raises:
        WrongUse: no product can have this id.
    """
    require_product_id(product_id)
    resources.live_changes.add(
        AddedImage(
            file.path,
            nfc(product_id),
            file.size,
            file.mtime_ns,
            file.sha256,
            answer["fingerprint"],
            from_base64(answer["vector"]),
        ),
        resources.versions.current(),
    )


def remove_images(
    resources: Resources, product_id: str, listed: Sequence[str], filename: str | None = None
) -> tuple[str, list[str]]:
    """Remove a product's images from the published index, or one of them.

    Returns the name of the version, and the paths that were removed.

    Args:
        listed: the product's images as they were a moment ago; changes since are looked up.

    Raises:
        NotFound: there is no such product or image.
    """
    changes = resources.live_changes.all()
    version = _changed(resources.versions.current(), changes)
    product_id = nfc(product_id)
    paths = _images_of(product_id, listed, version, changes)
    if not paths:
        raise NotFound(f"Index {version.name} has no product {quote(product_id)}.")
    if filename is not None:
        # The disk may have the name decomposed, as a Mac writes it.
        named = [path for path in paths if path == filename]
        named = named or [path for path in paths if nfc(path) == nfc(filename)]
        if not named:
            raise NotFound(f"Product {quote(product_id)} has no image {quote(filename)}.")
        paths = named[:1]
    resources.live_changes.remove(removed_images(version, paths, product_id), version)
    return version.name, paths


def _changed(version: Version, changes: Changes) -> Version:
    later = changes.since(version)
    return ChangedVersion(version, later) if later.images else version


def _images_of(
    product_id: str, listed: Sequence[str], version: Version, changes: Changes
) -> list[str]:
    """Return a product's images as they are now."""
    paths = {path for path in listed if version.has_path(path)}
    for each in changes.since(version).images:
        if isinstance(each, AddedImage) and each.product_id == product_id:
            paths.add(each.path)
        elif each.path in paths:
            paths.discard(each.path)
    return sorted(paths)
