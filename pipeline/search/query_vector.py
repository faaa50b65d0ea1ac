"""Compute the vector of a query from its image, its product and its texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.embed.embed_images import VectorCache
from pipeline.errors import NotFound, WrongUse
from pipeline.preprocess.prepare import PreparedImage
from pipeline.search.catalogue_filter import IndexedCatalogue
from pipeline.search.query import Query

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class QueryVector:
    """A query's (d,) unit vector, and the weighted unit vectors that it is the sum of."""

    vector: Vector
    terms: tuple[tuple[str, float, Vector], ...]

    def parts(self, product: Vector, score: float) -> dict[str, float]:
        """Split a product's score into what each term adds to it."""
        (first, _, _), *others = self.terms
        parts = {name: weight * float(term @ product) for name, weight, term in others}
        # Not its own product, which float32 rounds otherwise: the parts add up to the score.
        return {first: score - sum(parts.values()), **parts}


def embed_image(
    data: bytes,
    digest: str,
    cache: VectorCache,
    prepare: Callable[[bytes], PreparedImage],
    embed: Callable[[Image.Image], Vector],
) -> tuple[Vector, str | None]:
    """Return an image's (d,) unit vector, the cached one or the model's, and a warning.

    With a warning it is not cached, so that the same query is warned again.

    Args:
        data: the bytes of the file. digest: their SHA-256.
        prepare: decodes and preprocesses them.
        embed: runs the model.
    """
    vector = cache.get(digest)
    if vector is not None:
        return vector, None
    prepared = prepare(data)
    vector = embed(prepared.image)
    if not prepared.warning:
        cache.put({digest: vector})
    return vector, prepared.warning


def mean_vector(vectors: Sequence[Vector]) -> Vector:
    """Return the (d,) unit mean of the images of one product.

    Raises:
        WrongUse: they cancel out.
    """
    if len(vectors) == 1:
        return vectors[0]
    total = np.sum([vector.astype(np.float64) for vector in vectors], axis=0)
    length = float(np.linalg.norm(total))
    if length < 1e-6:
        raise WrongUse("The images of the query cancel each other out.")
    unit: Vector = (total / length).astype(np.float32)
    return unit


def compose(
    query: Query,
    image: Vector | None,
    embed_text: Callable[[str], Vector],
    indexed: IndexedCatalogue,
) -> QueryVector:
    """Compute the query's vector: (1 - w) * image + w * text - w * without, of unit length.

    Without an image or product, the text has all the weight.

    Args:
        query: its subject was checked, see `Query.require_subject`.
        image: the (d,) unit vector of the query's image, if it has one.

    Raises:
        NotFound: the product is not indexed. WrongUse: the vectors cancel out.
    """
    subject = _subject(query, image, indexed)
    terms: list[tuple[str, float, Vector]] = []
    if subject is not None:
        weight = 1.0 - query.weight if query.text or query.without else 1.0
        terms.append(("image", weight, subject))
    if query.text:
        weight = 1.0 if subject is None else query.weight
        terms.append(("text", weight, embed_text(query.text)))
    if query.without:
        terms.append(("not", -query.weight, embed_text(query.without)))
    if len(terms) == 1:
        return QueryVector(terms[0][2], tuple(terms))
    total = np.sum([weight * vector.astype(np.float64) for _, weight, vector in terms], axis=0)
    length = float(np.linalg.norm(total))
    if length < 1e-6:
        raise WrongUse("The query and --exclude-text cancel each other out.")
    return QueryVector(
        (total / length).astype(np.float32),
        tuple((name, weight / length, vector) for name, weight, vector in terms),
    )


def _subject(query: Query, image: Vector | None, indexed: IndexedCatalogue) -> Vector | None:
    """Return the unit vector of the image and the products, each with its weight."""
    weights = {query.product: 1.0} if query.product else dict(query.products)
    terms = [] if image is None else [(1.0, image)]
    terms += [(weight, _product_vector(name, indexed)) for name, weight in weights.items()]
    if not terms:
        return None
    if len(terms) == 1 and terms[0][0] > 0:
        return terms[0][1]
    total = np.sum([weight * vector.astype(np.float64) for weight, vector in terms], axis=0)
    length = float(np.linalg.norm(total))
    if length < 1e-6:
        raise WrongUse("The image and the products of the query cancel each other out.")
    unit: Vector = (total / length).astype(np.float32)
    return unit


def _product_vector(product_id: str, indexed: IndexedCatalogue) -> Vector:
    vector = indexed.vector_of(product_id)
    if vector is None:
        raise NotFound(
            f"Index {indexed.version.name} has no product '{product_id}'. A product's id is the "
            "path of its image below the products folder without the suffix, or the imported id."
        )
    return vector
