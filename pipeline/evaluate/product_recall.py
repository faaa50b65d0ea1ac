"""Judge models by a shop's own photos: is the right product among the first k?"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.embed.embed_images import Embedder, embed_shard
from pipeline.embed.shards import ShardVectors
from pipeline.errors import WrongUse, quote
from pipeline.evaluate.retrieval import RESAMPLES, ROWS_AT_ONCE, NoCache, rounded
from pipeline.feeds.encoding import open_text, valid_text
from pipeline.images.failure import Failure
from pipeline.images.find import ImageFile
from pipeline.images.source import ImageFolder
from pipeline.names import nfc

Vectors = NDArray[np.float32]
COLUMNS = ("photo", "product_id")


@dataclass(frozen=True)
class Photo:
    """A photo whose product is known, and the line of the table that says so."""

    file: Path
    product_id: str
    line: int


NOT_FOUND = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Ranks:
    """Where the right product stood, from 1, for each photo.

    ranks: (q,) int64, NOT_FOUND beyond any. products: (q,) the right product, by which photos are
    resampled.
    """

    ranks: NDArray[np.int64]
    products: NDArray[np.str_]

    def hits(self, k: int) -> NDArray[np.float64]:
        return (self.ranks <= k).astype(np.float64)


@dataclass(frozen=True)
class Variant:
    """One model with background removal on or off, and how it did."""

    model: str
    bg_removal: bool
    ranks: Ranks
    skipped: int = 0

    @property
    def name(self) -> str:
        return f"{self.model} with background removal {'on' if self.bg_removal else 'off'}"

    def report(self, ks: Sequence[int]) -> dict[str, Any]:
        """Return the recall at each k with its 95 % interval, as --json shows it."""
        recall = {str(k): round(float(self.ranks.hits(k).mean()), 4) for k in ks}
        intervals = {str(k): rounded(interval(self.ranks.hits(k), self.ranks.products)) for k in ks}
        return {
            "model": self.model,
            "bg_removal": self.bg_removal,
            "photos": len(self.ranks.ranks),
            "products": len(set(self.ranks.products.tolist())),
            "skipped": self.skipped,
            "recall": recall,
            "intervals": intervals,
        }


@dataclass(frozen=True)
class Advice:
    """The variant to take.

    `difference` is how much lower recall@1 of the next one is, with its 95 % interval.
    """

    best: Variant
    next: Variant | None = None
    difference: float = 0.0
    bounds: tuple[float, float] = field(default=(0.0, 0.0))

    @property
    def is_clear(self) -> bool:
        return self.next is not None and self.bounds[0] > 0

    def object(self) -> dict[str, Any]:
        return {
            "model": self.best.model,
            "bg_removal": self.best.bg_removal,
            "difference": round(self.difference, 4),
            "interval": rounded(self.bounds),
            "clear": self.is_clear,
        }

    def sentence(self) -> str:
        """Say which variant to take, and how sure that is."""
        if self.next is None:
            return f"Only {self.best.name} was measured."
        low, high = self.bounds
        figures = f"{self.difference:.3f} [{low:.3f} to {high:.3f}]"
        if self.is_clear:
            return (
                f"Take {self.best.name}: recall@1 of the next best, {self.next.name}, is {figures} "
                "lower."
            )
        return (
            f"Take {self.best.name}, or {self.next.name}: the difference in recall@1, {figures}, "
            "may be chance. More photos would tell."
        )


def read_photos(table: Path) -> list[Photo]:
    """Read a CSV file with the columns `photo` and `product_id`.

    A photo's path is relative to the table's folder.

    Raises:
        WrongUse: a column, a value or a photo is missing; the sentence names the line.
    """
    try:
        stream, _ = open_text(table)
        with stream, valid_text(stream):
            return _photos(table, csv.DictReader(stream, skipinitialspace=True))
    except WrongUse as error:
        raise WrongUse(f"'{table}': {error}") from None
    except csv.Error as error:  # a quotation mark that is never closed
        raise WrongUse(f"'{table}' cannot be read as CSV: {error}.") from error


def _photos(table: Path, rows: csv.DictReader[str]) -> list[Photo]:
    names = [name.strip() for name in rows.fieldnames or []]
    if missing := [name for name in COLUMNS if name not in names]:
        raise WrongUse(
            f"there is no column {quote(missing[0])}; the first line must be {','.join(COLUMNS)}."
        )
    rows.fieldnames = names
    photos = []
    for row in rows:
        name, product_id = ((row[column] or "").strip() for column in COLUMNS)
        if not name and not product_id:
            continue
        where = f"line {rows.line_num}"
        if not name or not product_id:
            raise WrongUse(f"{where} needs a photo and a product_id.")
        file = table.parent / name
        if not _is_file(file):
            raise WrongUse(f"{where} names '{file}', which is no file.")
        photos.append(Photo(file, nfc(product_id), rows.line_num))
    if not photos:
        raise WrongUse("it names no photo.")
    return photos


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # a name that no file system takes
        return False


def require_products(photos: Sequence[Photo], products: Sequence[str], table: Path) -> None:
    """Refuse photos of products that the catalogue has no image of.

    Raises:
        WrongUse: naming the first one's line.
    """
    known = set(products)
    for photo in photos:
        if photo.product_id not in known:
            raise WrongUse(
                f"'{table}', line {photo.line}: no image of the catalogue belongs to product "
                f"{quote(photo.product_id)}. A product's id is the path of its image below the "
                "products folder without the suffix, or the imported id."
            )


def measure(
    photos: Sequence[Photo],
    folder: Path,
    images: Sequence[ImageFile],
    products: Sequence[str],
    embedder: Embedder,
    advance: Callable[[int], None],
) -> tuple[Ranks, list[Failure]]:
    """Embed photos and a catalogue, and rank the products for each photo.

    Args:
        images, products: of the catalogue in `folder`, one product an image.

    Returns the ranks of the photos that could be read, and what could not.

    Raises:
        WrongUse: no photo, or no image of the catalogue, can be used.
    """
    root = Path(photos[0].file.resolve().anchor)
    files = [ImageFile(photo.file.resolve().relative_to(root).as_posix(), 0, 0) for photo in photos]
    shots, bad = _embed(root, files, embedder, advance)
    known, bad_images = _embed(folder, images, embedder, lambda n: advance(len(photos) + n))
    same = [np.flatnonzero(known.sha256 == digest) for digest in shots.sha256]
    ranks = rank_products(
        shots.vectors,
        [photos[at].product_id for at in shots.positions],
        known.vectors,
        [products[at] for at in known.positions],
        same,
    )
    return ranks, bad + bad_images


def _embed(
    folder: Path,
    images: Sequence[ImageFile],
    embedder: Embedder,
    advance: Callable[[int], None],
) -> tuple[ShardVectors, list[Failure]]:
    result = embed_shard(ImageFolder(folder), images, embedder, NoCache(), check=advance)
    if not len(result.vectors.positions):
        reason = f": {result.failures[0].reason}" if result.failures else ""
        raise WrongUse(f"No image below '{folder}' can be used{reason}.")
    return result.vectors, result.failures


def rank_products(
    queries: Vectors,
    truth: Sequence[str],
    catalogue: Vectors,
    products: Sequence[str],
    same_content: Sequence[NDArray[np.int64]],
) -> Ranks:
    """Rank products by their best image, by exact search.

    Args:
        queries, catalogue: (q, d) and (n, d) unit vectors.
        truth: the right product of each query.
        products: the product of each image of the catalogue.
        same_content: for each query, rows of the catalogue with its bytes: they are left out, for
            to find a file again is no feat.
    """
    names, number_of = np.unique(np.asarray(products), return_inverse=True)
    order = np.argsort(number_of, kind="stable")
    starts = np.searchsorted(number_of[order], np.arange(len(names)))
    right = np.minimum(np.searchsorted(names, np.asarray(truth)), len(names) - 1)
    has_image = names[right] == np.asarray(truth)  # not where none of its images could be read
    ranks = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, len(queries))
        scores = queries[start:stop] @ catalogue.T
        for at, rows in enumerate(same_content[start:stop]):
            scores[at, rows] = -np.inf
        best = np.maximum.reduceat(scores[:, order], starts, axis=1)
        own = best[np.arange(stop - start), right[start:stop]]
        # Products of the same score share a rank in the middle, so that ties favor nobody.
        above = (best > own[:, None]).sum(axis=1)
        equal = (best == own[:, None]).sum(axis=1) - 1
        ranks[start:stop] = 1 + above + equal // 2
        ranks[start:stop][(own == -np.inf) | ~has_image[start:stop]] = NOT_FOUND
    return Ranks(ranks, np.asarray(truth))


def interval(scores: NDArray[np.float64], products: NDArray[np.str_]) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean.

    Products are resampled with all their photos: photos of one product are not independent.
    """
    _, number_of = np.unique(products, return_inverse=True)
    sums, counts = np.bincount(number_of, scores), np.bincount(number_of)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def advise(variants: Sequence[Variant]) -> Advice:
    """Choose the variant with the highest recall@1, then recall@5 and recall@10."""

    def figures(variant: Variant) -> tuple[float, ...]:
        # Where all is equal, what needs no background removal is faster.
        recall = (float(variant.ranks.hits(k).mean()) for k in (1, 5, 10))
        return (*recall, float(not variant.bg_removal))

    best, *others = sorted(variants, key=figures, reverse=True)
    if not others:
        return Advice(best)
    # The same photos: the difference of each is what is resampled.
    difference = best.ranks.hits(1) - others[0].ranks.hits(1)
    bounds = interval(difference, best.ranks.products)
    return Advice(best, others[0], float(difference.mean()), bounds)
