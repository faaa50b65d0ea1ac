"""Commands that change the published index without a rebuild: add and remove."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli import query_client
from cli.output import (
    counted,
    echo_err,
    echo_warnings,
    json_option,
    local_option,
    print_json,
    timeout_option,
)
from cli.progress import work_bar
from cli.wiring import Wiring, pass_wiring
from pipeline.errors import BadImage, Conflict, WrongUse, quote
from pipeline.images.decode import Limits, read_image, sha256
from pipeline.images.message_image import message_image
from pipeline.names import nfc
from workers.routes import IMAGE_VECTOR, QUERY

if TYPE_CHECKING:
    from pipeline.images.new_images import NewImages
    from workers.resources import Resources


@click.command()
@click.argument("photos", nargs=-1, required=True, type=click.Path())
@click.option("--product", required=True, help="The product that the photos show.")
@timeout_option
@json_option
@local_option
@pass_wiring
def add(
    wiring: Wiring,
    photos: tuple[str, ...],
    product: str,
    timeout: float,
    as_json: bool,
    local: bool,
) -> None:
    """Add photos to the published index.

    They are copied into the products folder or store, below the product's id, and queries find them
    within two seconds. The next rebuild includes them.
    """
    from workers.live_changes import add_image, new_images, require_product_id

    require_product_id(product)
    resources = wiring.resources
    resources.require_agreement_of_running((QUERY,), "database", "data")
    images = new_images(resources)
    source = _Photos(resources, images, product)
    read = [source.read(photo) for photo in photos]
    if len({each.path for each in read}) < len(read):
        raise WrongUse("Two of the photos have the same name: rename one.")
    answers = list[dict[str, Any]]()
    with work_bar("embedding", len(read), as_json) as report:
        for each in read:
            args = (each.message,)
            answers.append(
                query_client.PendingQuery(wiring, IMAGE_VECTOR, args, timeout, local).answer()
            )
            report(len(answers))
    with work_bar("adding", len(read), as_json) as report:
        for number, (photo, answer) in enumerate(zip(read, answers, strict=True), 1):
            echo_warnings(answer)
            add_image(resources, product, images.put(photo.path, source.data(photo)), answer)
            report(number)
    paths, version = [each.path for each in read], answers[0]["index_version"]
    if as_json:
        print_json({"product_id": nfc(product), "index_version": version, "added": paths})
    else:
        echo_err(f"Added {counted(len(paths), 'photo')} of product {quote(product)} to {version}.")


@click.command()
@click.argument("product")
@click.option("--image", help="Remove only this image of it, e.g. lamp/front.jpg.")
@json_option
@pass_wiring
def remove(wiring: Wiring, product: str, image: str | None, as_json: bool) -> None:
    """Remove a product from the published index.

    Queries no longer find its photos, and later rebuilds leave them out. The files are kept.
    """
    from workers.live_changes import remove_images

    resources = wiring.resources
    resources.require_agreement_of_running((QUERY,), "database", "data")
    current = resources.versions.current()
    listed = resources.indexed_catalogues.of(current, at_once=True).filenames_of(product)
    version, paths = remove_images(resources, product, listed, image)
    if as_json:
        print_json({"product_id": nfc(product), "index_version": version, "removed": paths})
        return
    what = f"product {quote(product)}" if image is None else quote(image)
    echo_err(f"Removed {what} from {version}: {counted(len(paths), 'photo')} left out from now on.")


@dataclass(frozen=True)
class _Photo:
    """A photo that was read: where it is, its path below the products, its message and hash."""

    name: str
    path: str
    message: bytes
    sha256: str


class _Photos:
    """Reads photos of one product, one at a time: they may be many and large."""

    def __init__(self, resources: Resources, images: NewImages, product: str) -> None:
        self._resources, self._images, self._product = resources, images, product
        self._limits = Limits.of(resources.settings)
        self._background = resources.settings.preprocess_bg_color

    def read(self, name: str) -> _Photo:
        """Read and verify a photo.

        Raises:
            BadImage: naming the photo. WrongUse: no file can be named after it or its product.
            Conflict: it shows another product of the index.
        """
        from pipeline.images.new_images import image_path
        from workers.live_changes import require_owner

        try:
            data = self._bytes(name)
            message = message_image(data, self._limits, self._background)
        except BadImage as error:
            raise BadImage(f"The image '{name}' cannot be used: {error}.", error.stage) from error
        path = self._images.path_of(name)
        if path is not None:
            require_owner(self._resources, self._product, path)
        else:
            path = image_path(self._product, Path(name).name, data)
        return _Photo(name, path, message, sha256(data))

    def data(self, photo: _Photo) -> bytes:
        """Read a photo again.

        Raises:
            Conflict: it is another one now.
        """
        data = self._bytes(photo.name)
        if sha256(data) != photo.sha256:
            raise Conflict(f"{photo.name} was changed while it was added: add it again.")
        return data

    def _bytes(self, name: str) -> bytes:
        there = self._images.path_of(name)
        if there is not None:
            return self._images.read(there, self._limits)
        return read_image(Path(name), self._limits)
