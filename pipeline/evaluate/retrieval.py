"""Judge a model on labelled images: retrieval and zero-shot, by exact search.

Definitions follow information retrieval's usual ones (Manning, Raghavan, Schuetze, "Introduction
to Information Retrieval", chapter 8): a match is relevant when it has its query's class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.embed.embed_images import Embedder, embed_shard
from pipeline.errors import WrongUse
from pipeline.images.failure import Failure
from pipeline.images.find import SYSTEM_FOLDERS, ImageFile, find_images
from pipeline.images.source import ImageFolder
from pipeline.names import nfc

Vectors = NDArray[np.float32]
Labels = NDArray[np.str_]
Scores = NDArray[np.float64]
"""(q,) one figure a query; NaN where the figure is undefined for it."""

ROWS_AT_ONCE = 256  # queries ranked together: bounds memory at 256 times the catalogue
RESAMPLES = 1000  # of the bootstrap


@dataclass(frozen=True)
class Labelled:
    """Embedded images: n paths below `root`, (n,) classes, (n, d) unit vectors."""

    root: Path
    paths: list[str]
    labels: Labels
    vectors: Vectors
    failures: list[Failure] = field(default_factory=list)


@dataclass(frozen=True)
class Retrieval:
    """What the search found for each query, a figure a query.

    precision, recall: by k; average_precision: over the whole ranking; first: the row of the best
    match.
    """

    precision: dict[int, Scores]
    recall: dict[int, Scores]
    average_precision: Scores
    first: NDArray[np.int64]


@dataclass(frozen=True)
class ZeroShot:
    """`predicted` is one of `names` for each query."""

    names: list[str]
    predicted: Labels


class NoCache:
    """Knows no vector: what is measured is the model."""

    def get(self, digest: str) -> None:
        return None

    def put(self, vectors: dict[str, Vectors]) -> None:
        pass


def list_folder(root: Path) -> tuple[list[ImageFile], list[Failure]]:
    """List the images of a folder and what cannot be listed of it.

    Raises:
        WrongUse: no such folder.
    """
    if not root.is_dir():
        raise WrongUse(f"No such folder: '{root}'.")
    images: list[ImageFile] = []
    failures: list[Failure] = []
    for image in find_images(root):
        if isinstance(image, ImageFile):
            images.append(image)
        else:
            failures.append(image)
    return images, failures


def list_classes(root: Path) -> tuple[list[ImageFile], list[Failure]]:
    """List the images of a folder that holds one folder a class.

    Raises:
        WrongUse: no folder, images outside of class folders, or fewer than two classes.
    """
    layout = f"'{root}' needs one folder for each class: {root}/<class>/<image>.jpg"
    images, failures = list_folder(root)
    loose = [image.path for image in images if "/" not in image.path]
    if loose:
        raise WrongUse(f"The image '{loose[0]}' is not in a class folder; {layout}.")
    classes = {class_of(image.path) for image in images}
    if len(classes) < 2:
        raise WrongUse(f"{layout}, and at least two classes; it has {len(classes)}.")
    return images, failures


def class_of(path: str) -> str:
    return nfc(path.split("/", 1)[0])


def is_class(entry: Path) -> bool:
    """Tell whether an entry is a folder that the listing enters."""
    name = entry.name
    return entry.is_dir() and not name.startswith(".") and name.casefold() not in SYSTEM_FOLDERS


def embed_folder(
    root: Path, embedder: Embedder, advance: Callable[[int], None]
) -> tuple[list[str], Vectors, list[Failure]]:
    """Embed all images of a folder -> paths, (n, d) vectors, what could not be used."""
    images, failures = list_folder(root)
    result = embed_shard(ImageFolder(root), images, embedder, NoCache(), check=advance)
    paths = [images[position].path for position in result.vectors.positions]
    return paths, result.vectors.vectors, failures + result.failures


def embed_labelled(root: Path, embedder: Embedder, advance: Callable[[int], None]) -> Labelled:
    """Embed all images of a folder of class folders; bad ones are listed as failures.

    Raises:
        WrongUse: no image can be used.
    """
    paths, vectors, failures = embed_folder(root, embedder, advance)
    if not paths:
        raise WrongUse(f"No image below '{root}' can be used: {failures[0].reason}.")
    return Labelled(root, paths, np.array([class_of(path) for path in paths]), vectors, failures)


def retrieve(queries: Labelled, catalogue: Labelled | None, ks: Sequence[int]) -> Retrieval:
    """Rank the catalogue for each query; without one, the other queries are the catalogue.

    Recall and average precision are NaN for a query that has no relevant image at all.
    """
    others = catalogue or queries
    count = len(queries.labels)
    precision = {k: np.zeros(count) for k in ks}
    recall = {k: np.zeros(count) for k in ks}
    average = np.zeros(count)
    first = np.zeros(count, np.int64)
    places = np.arange(1, len(others.labels) + (catalogue is not None))
    if not len(places):
        raise WrongUse("At least two images are required.")
    for start in range(0, count, ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, count))
        scores = queries.vectors[rows] @ others.vectors.T
        if catalogue is None:
            scores[np.arange(len(rows)), rows] = -np.inf  # itself comes last and is cut off
        # Equal scores keep the catalogue's order, so that a run can be repeated.
        order = np.argsort(-scores, axis=1, kind="stable")[:, : len(places)]
        hits = others.labels[order] == queries.labels[rows, None]
        n_hits = hits.cumsum(axis=1)
        total = np.where(n_hits[:, -1] > 0, n_hits[:, -1], np.nan)
        for k in ks:
            # Fewer than k images are a shorter list, and still a list of k: as in trec_eval.
            upto = n_hits[:, min(k, len(places)) - 1]
            precision[k][rows] = upto / k
            recall[k][rows] = upto / total
        average[rows] = (hits * n_hits / places).sum(axis=1) / total
        first[rows] = order[:, 0]
    return Retrieval(precision, recall, average, first)


def zero_shot(
    queries: Labelled, embed_texts: Callable[[Sequence[str]], Vectors], prompts: Sequence[str]
) -> ZeroShot:
    """Classify each query by the nearest class name, averaged over the prompts ("a photo of a {}").

    The choices are the classes of the queries' folders.
    """
    names = sorted(set(queries.labels.tolist()))
    texts = np.mean(
        [embed_texts([prompt.replace("{}", name) for name in names]) for prompt in prompts], axis=0
    )
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    return ZeroShot(names, np.array(names)[(queries.vectors @ texts.T).argmax(axis=1)])


def confusion(names: list[str], truth: Labels, predicted: Labels) -> NDArray[np.int64]:
    """Return the (c, c) counts: rows are the true classes, columns the predicted ones."""
    matrix = np.zeros((len(names), len(names)), np.int64)
    place = {name: number for number, name in enumerate(names)}
    for (true, guess), count in Counter(
        zip(truth.tolist(), predicted.tolist(), strict=True)
    ).items():
        matrix[place[true], place[guess]] = count
    return matrix


def interval(scores: Scores) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean (Efron 1979), over the queries."""
    finite = scores[~np.isnan(scores)]
    if not len(finite):
        return float("nan"), float("nan")
    rng = np.random.default_rng(0)
    means = [finite[rng.integers(0, len(finite), len(finite))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def report(queries: Labelled, retrieval: Retrieval, shot: ZeroShot | None) -> dict[str, Any]:
    """Return all figures as JSON's types; null where a figure is undefined."""
    right = None if shot is None else (shot.predicted == queries.labels).astype(float)
    figures: dict[str, Any] = {
        "queries": len(queries.labels),
        "skipped": sum(not failure.warning for failure in queries.failures),
        "precision": _by_k(retrieval.precision),
        "recall": _by_k(retrieval.recall),
        "map": _mean(retrieval.average_precision),
        "zero_shot_accuracy": None if right is None else _mean(right),
        "intervals": {
            "precision": intervals_by_k(retrieval.precision),
            "recall": intervals_by_k(retrieval.recall),
            "map": rounded_interval(retrieval.average_precision),
            "zero_shot_accuracy": None if right is None else rounded_interval(right),
        },
        "per_class": {},
        "confusion": None,
    }
    for name in sorted(set(queries.labels.tolist())):
        own = queries.labels == name
        figures["per_class"][name] = {
            "queries": int(own.sum()),
            "precision": _by_k({k: scores[own] for k, scores in retrieval.precision.items()}),
            "recall": _by_k({k: scores[own] for k, scores in retrieval.recall.items()}),
            "map": _mean(retrieval.average_precision[own]),
            "zero_shot_accuracy": None if right is None else _mean(right[own]),
        }
    if shot is not None:
        matrix = confusion(shot.names, queries.labels, shot.predicted)
        figures["confusion"] = {"classes": shot.names, "counts": matrix.tolist()}
    return figures


def recall_of_index(
    search: Callable[[Vectors, int], NDArray[np.int64]],
    vectors: Vectors,
    queries: Vectors,
    ks: Sequence[int],
) -> dict[int, Scores]:
    """Return recall@k of a search, a figure a query: the share of the true k nearest that it found.

    Args:
        search: (queries, k) -> (q, k) row numbers; -1 where it found nothing.
        vectors: (n, d), what the index was built from.

    A found row counts as true when its score reaches that of the true k-th: images that are
    stored twice have equal scores, and either of them is right.
    """
    deepest = min(max(ks), len(vectors))
    recall = {k: np.zeros(len(queries)) for k in ks}
    for start in range(0, len(queries), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        scores = queries[rows] @ np.asarray(vectors).T
        best = -np.sort(-scores, axis=1)[:, :deepest]
        neighbours = search(np.ascontiguousarray(queries[rows]), deepest)
        neighbour_scores = np.take_along_axis(scores, np.maximum(neighbours, 0), axis=1)
        neighbour_scores[neighbours < 0] = -np.inf
        for k in ks:
            upto = min(k, deepest)
            # Sums of another order differ in the last digits of float32.
            enough = neighbour_scores[:, :upto] >= best[:, upto - 1 : upto] - 1e-5
            recall[k][rows] = enough.mean(axis=1)
    return recall


def _mean(scores: Scores) -> float | None:
    finite = scores[~np.isnan(scores)]
    return round(float(finite.mean()), 4) if len(finite) else None


def _by_k(scores: dict[int, Scores]) -> dict[str, float | None]:
    return {str(k): _mean(values) for k, values in scores.items()}


def intervals_by_k(scores: dict[int, Scores]) -> dict[str, list[float] | None]:
    return {str(k): rounded_interval(values) for k, values in scores.items()}


def rounded_interval(scores: Scores) -> list[float] | None:
    """Return the 95 % interval of the mean, for a report; None if all scores are undefined."""
    bounds = interval(scores)
    return None if np.isnan(bounds[0]) else rounded(bounds)


def rounded(bounds: tuple[float, float]) -> list[float]:
    return [round(bound, 4) for bound in bounds]
