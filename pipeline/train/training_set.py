"""Read labelled images to train a head on: list, embed, leave out copies, check what is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.classify.head import HeadName, validate_name
from pipeline.embed.embed_images import Embedder, VectorCache, embed_shard
from pipeline.errors import WrongUse
from pipeline.evaluate.retrieval import class_of, is_class, list_folder
from pipeline.images.failure import Failure
from pipeline.images.find import ImageFile
from pipeline.images.source import ImageFolder

MIN_IMAGES = 2  # images of a class: one to train on, one to judge with


@dataclass(frozen=True)
class Listing:
    """The images of a folder of class folders, before any is opened."""

    root: Path
    classes: tuple[str, ...]
    images: list[ImageFile]
    failures: list[Failure]


@dataclass(frozen=True)
class TrainingSet:
    """n distinct images: (n,) numbers of their classes, (n, d) unit vectors.

    failures: what was left out, and warnings about what was not. copies: images that lie in
    their class more than once; they count once.
    """

    classes: tuple[str, ...]
    truth: NDArray[np.int64]
    vectors: NDArray[np.float32]
    failures: list[Failure]
    copies: int

    @property
    def skipped(self) -> int:
        return sum(not failure.warning for failure in self.failures)


def list_training(training: Path, name: HeadName) -> Listing:
    """List the images for a head, below training/<category>/<attribute>/<class>.

    For the category head, every image below training/<category> is one of that category.

    Raises:
        WrongUse: no such folder, another layout, fewer than two classes or images of a class.
    """
    root = training if name.category is None else name.place(training)
    layout = f"{root}/<class>/<image>.jpg"
    if name.category is None:
        layout = f"{root}/<category>/<image>.jpg, or in folders below"
    if not root.is_dir():
        raise WrongUse(f"No such file or directory: '{root}': put images into {layout}.")
    # The listing leaves out the same folders.
    classes = sorted({class_of(f"{entry.name}/") for entry in root.iterdir() if is_class(entry)})
    for label in classes:
        validate_name("class" if name.category else "category", label)
    images, failures = list_folder(root)
    loose = [image.path for image in images if "/" not in image.path]
    if loose:
        raise WrongUse(
            f"The image '{root / loose[0]}' is not in a class folder; the layout is {layout}."
        )
    if len(classes) < 2:
        has = f"has only one class, '{classes[0]}'" if classes else "has no class"
        raise WrongUse(f"'{root}' {has}, but at least two are required: {layout}.")
    _require_images(root, Counter(class_of(image.path) for image in images), classes)
    return Listing(root, tuple(classes), images, failures)


def embed_training(
    listing: Listing, embedder: Embedder, cache: VectorCache, advance: Callable[[int], None]
) -> TrainingSet:
    """Embed the images that can be used, each content once.

    Raises:
        WrongUse: the same image lies in two classes, or a class has fewer than two left.
    """
    result = embed_shard(ImageFolder(listing.root), listing.images, embedder, cache, check=advance)
    paths = [listing.images[position].path for position in result.vectors.positions]
    rows, first = [], dict[bytes, str]()
    contradictions = []
    for row, (path, digest) in enumerate(zip(paths, result.vectors.sha256.tolist(), strict=True)):
        if digest not in first:
            first[digest] = path
            rows.append(row)
        elif class_of(first[digest]) != class_of(path):
            contradictions.append((first[digest], path))
    if contradictions:
        # Not a warning: whichever class is chosen is a guess, and the image could be trained on
        # under one name and judged under the other.
        one, other = contradictions[0]
        more = f" ({len(contradictions)} such pairs)" if len(contradictions) > 1 else ""
        raise WrongUse(
            f"'{listing.root / one}' and '{listing.root / other}' are the same image in two "
            f"classes{more}: keep the one that is right."
        )
    labels = [class_of(paths[row]) for row in rows]
    _require_images(listing.root, Counter(labels), listing.classes)
    return TrainingSet(
        listing.classes,
        np.array([listing.classes.index(label) for label in labels]),
        result.vectors.vectors[rows],
        listing.failures + result.failures,
        len(paths) - len(rows),
    )


def _require_images(root: Path, counts: Counter[str], classes: Sequence[str]) -> None:
    for label in classes:
        if counts[label] < MIN_IMAGES:
            raise WrongUse(
                f"The class '{label}' has {counts[label]} different image"
                f"{'' if counts[label] == 1 else 's'} that can be used; at least {MIN_IMAGES} are "
                f"required: add some to '{root / label}', or remove that folder."
            )
