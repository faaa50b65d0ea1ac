"""Commands that change the published index without a rebuild: add and remove."""

from __future__ import annotations

import base64
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click

from cli import query_client
from cli.agreement import require_agreement
from cli.output import (
    counted,
    echo_err,
    echo_warnings,
    json_option,
    local_option,
    print_json,
    timeout_option,
)
from cli.wiring import Wiring, pass_wiring
from pipeline.errors import Conflict, NotFound, WrongUse, quote
from pipeline.names import nfc
from workers.routes import IMAGE_VECTOR, QUERY

if TYPE_CHECKING:
    from pipeline.index.live_changes import AddedImage


@click.command()
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--product", required=True, help="The product that the photos show.")
@timeout_option
@json_option
@local_option
@pass_wiring
def add(
    wiring: Wiring,
    photos: tuple[Path, ...],
    product: str,
    timeout: float,
    as_json: bool,
    local: bool,
) -> None:
    """Add photos to the published index.

    They are copied into the products folder, below a folder of the product's name, and found at
    once. The next rebuild takes them in.
    """
    resources = wiring.resources
    require_agreement(resources, (QUERY,), "database", "data")
    root = _products_folder(str(resources.versions.current().manifest["root"]))
    places = {photo: _place(root, nfc(product), photo) for photo in photos}
    if len(set(places.values())) < len(photos):
        raise WrongUse("Two of the photos have the same name: rename one.")
    data = {photo: query_client.message(photo, wiring.settings) for photo in photos}
    answers = {
        photo: query_client.PendingQuery(wiring, IMAGE_VECTOR, (image,), timeout, local).answer()
        for photo, image in data.items()
    }
    for photo, answer in answers.items():
        echo_warnings(answer)
        resources.live_changes.add(_added(photo, places[photo], root, nfc(product), answer))
    paths = [place.relative_to(root).as_posix() for place in places.values()]
    version = next(iter(answers.values()))["index_version"]
    if as_json:
        print_json({"product_id": nfc(product), "index_version": version, "added": paths})
    else:
        echo_err(f"Added {counted(len(paths), 'photo')} of product {quote(product)} to {version}.")


@click.command()
@click.argument("product")
@json_option
@pass_wiring
def remove(wiring: Wiring, product: str, as_json: bool) -> None:
    """Remove a product from the published index.

    Its photos are not found any more, and later rebuilds leave them out. Their files stay where
    they are.
    """
    from pipeline.index.live_changes import removed_images

    resources = wiring.resources
    require_agreement(resources, (QUERY,), "database", "data")
    version = resources.searched_index().version
    paths = resources.indexed_catalogues.of(version, at_once=True).filenames_of(product)
    if not paths:
        raise NotFound(f"Index {version.name} has no product {quote(product)}.")
    resources.live_changes.remove(removed_images(version, paths, nfc(product)))
    if as_json:
        print_json({"product_id": nfc(product), "index_version": version.name, "removed": paths})
    else:
        echo_err(
            f"Removed product {quote(product)} from {version.name}: "
            f"{counted(len(paths), 'photo')} left out from now on."
        )


def _products_folder(root: str) -> Path:
    folder = Path(root)
    if not folder.is_absolute():
        raise WrongUse(
            f"The products are in {root}: put the photo there and rebuild, which embeds only what "
            "is new."
        )
    if not folder.is_dir():
        raise WrongUse(
            f"The products folder {root} is not on this machine: add photos where it is."
        )
    return folder.resolve()


def _place(root: Path, product: str, photo: Path) -> Path:
    """Return where a photo lies in the products folder; one that is in it already stays."""
    there = photo.resolve()
    if there.is_relative_to(root):
        return there
    parts = PurePosixPath(product).parts
    if not parts or any(part in ("..", "/") or part.startswith(".") for part in parts):
        raise WrongUse(f"No folder can be named after the product {quote(product)}.")
    place = root.joinpath(*parts, nfc(photo.name))
    if place.exists() and photo.is_file() and place.read_bytes() != photo.read_bytes():
        raise Conflict(f"{place} is another photo: rename {photo} to add it, too.")
    return place


def _added(
    photo: Path, place: Path, root: Path, product: str, answer: dict[str, Any]
) -> AddedImage:
    """Copy a photo to its place and describe it."""
    import numpy as np

    from pipeline.atomic_files import file_sha256, write_atomic
    from pipeline.index.live_changes import AddedImage

    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, photo.read_bytes())
    facts = os.stat(place)
    return AddedImage(
        place.relative_to(root).as_posix(),
        product,
        facts.st_size,
        facts.st_mtime_ns,
        file_sha256(place),
        answer["fingerprint"],
        np.frombuffer(base64.b64decode(answer["vector"]), "<f4").astype(np.float32),
    )
