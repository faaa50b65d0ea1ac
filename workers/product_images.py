"""Products of the published index, and images as JPEG: of matches, products and failures."""

from __future__ import annotations

import base64
import contextlib
import logging
from dataclasses import replace
from typing import Any

from pipeline.errors import BadImage, NotFound, WrongUse, quote
from pipeline.images.decode import WORK_SIDE, Limits, decode, encode_jpeg
from pipeline.images.find import ImageFile
from pipeline.images.roots import open_reader
from pipeline.index.versions import Version
from pipeline.search.catalogue_filter import IndexedCatalogue
from workers.dispatch import require_names
from workers.resources import Resources

log = logging.getLogger(__name__)

THUMBNAIL_SIDE = 256  # pixels of a match's image on the result page
MAX_THUMBNAILS = 100
JPEG_END = b"\xff\xd9"  # behind a JPEG that is cut off, it makes the rest gray


def thumbnails(resources: Resources, version: str, filenames: list[str]) -> dict[str, str]:
    """Return small JPEGs, base64, of products in an index version; what is gone is left out.

    Opens only files that this version names, below the folder that it was built from.
    """
    if not isinstance(version, str) or not isinstance(filenames, list | tuple):
        raise WrongUse("Invalid request for thumbnails: name an index version and a list of files.")
    opened = resources.searched_index().version
    if opened.name != version:
        opened = resources.versions.open(version)
    names = {name for name in filenames[:MAX_THUMBNAILS] if isinstance(name, str)}
    return _jpegs(resources, opened, sorted(names), THUMBNAIL_SIDE)


def _jpegs(
    resources: Resources, version: Version, filenames: list[str], side: int
) -> dict[str, str]:
    source = open_reader(version.manifest["root"], resources.settings)
    files = [version.image(name) for name in filter(version.has_path, filenames)]
    limits, jpegs = resources.limits, {}
    with source.reading(files, limits) as read:
        for file in files:
            try:
                jpegs[file.path] = _jpeg(resources, read(file), limits, side)
            except BadImage as error:
                log.info("No thumbnail of %s: %s", file.path, error)
    return jpegs


def _jpeg(resources: Resources, data: bytes, limits: Limits, side: int) -> str:
    """Return an image as a small JPEG, base64."""
    image = decode(data, limits, resources.settings.preprocess_bg_color, side)
    image.thumbnail((side, side))
    return base64.b64encode(encode_jpeg(image, 85)).decode()


def product(resources: Resources, product_id: str) -> dict[str, Any]:
    """Return a product of the published index: its images and what was imported about it.

    Raises:
        NotFound: the index has no such product.
    """
    indexed = _indexed(resources)
    return {
        "product_id": product_id,
        "index_version": indexed.version.name,
        "filenames": _filenames(indexed, product_id),
        "product": indexed.catalogue.facts(product_id),
    }


def product_image(resources: Resources, product_id: str, side: int) -> dict[str, str]:
    """Return the first image of a product as JPEG, base64, `side` pixels on its longer side.

    Raises:
        NotFound: the index has no such product, or its file is gone.
    """
    _require_side(side)
    indexed = _indexed(resources)
    filename = _filenames(indexed, product_id)[0]
    jpegs = _jpegs(resources, indexed.version, [filename], side)
    if filename not in jpegs:
        raise NotFound(f"The image of product {quote(product_id)} cannot be read.")
    return {"filename": filename, "jpeg": jpegs[filename]}


def failure_image(resources: Resources, job_id: str, path: str, side: int) -> dict[str, str | None]:
    """Return an image that a rebuild left out or warned about as JPEG, base64.

    Opens only files that the job's failures name, below the job's folder. `jpeg` is None for one
    that still cannot be read.

    Raises:
        NotFound: there is no such job, or it has no such failure.
    """
    _require_side(side)
    require_names(job_id)
    job = resources.jobs.get(job_id)
    if path not in {failure.path for failure in resources.jobs.failures(job_id)}:
        raise NotFound(f"Job {job_id} has no failure of {quote(path)}.")
    return {"jpeg": _preview(resources, job.root, path, side)}


def _preview(resources: Resources, root: str, path: str, side: int) -> str | None:
    """Return what can be seen of an image that failed, also of one that is tiny or cut off."""
    limits = replace(resources.limits, min_side=1)
    file = ImageFile(path, 0, 0)
    with (
        contextlib.suppress(BadImage),
        open_reader(root, resources.settings).reading([file], limits) as read,
    ):
        data = read(file)
        for attempt in (data, data + JPEG_END):
            with contextlib.suppress(BadImage):
                return _jpeg(resources, attempt, limits, side)
    return None


def _require_side(side: Any) -> None:
    if not isinstance(side, int) or not 16 <= side <= WORK_SIDE:
        raise WrongUse(f"Invalid size of an image: it must be between 16 and {WORK_SIDE}.")


def _indexed(resources: Resources) -> IndexedCatalogue:
    return resources.indexed_catalogues.of(resources.searched_index().version)


def _filenames(indexed: IndexedCatalogue, product_id: Any) -> list[str]:
    names = indexed.filenames_of(product_id) if isinstance(product_id, str) else []
    if not names:
        raise NotFound(f"Index {indexed.version.name} has no product {quote(product_id)}.")
    return names
