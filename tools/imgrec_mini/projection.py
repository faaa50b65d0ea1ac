"""Compute the visual projection in closed form from views of many products.

An embedding has two parts, both linear in the 1,280 pooled features of the image side:

    words     the space of the texts, as training taught it; texts are zero in the other part
    instance  what tells two products apart: features are divided by how much they differ between
              views of one product (within-class covariance normalisation, Hatch et al., 2006), then
              cut to their principal components

In the second part, the directions in which drawn categories and colours differ count more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
Labels = NDArray[np.str_]

# Chosen on photos and drawn products that training has not seen; the model card has the figures.
WORDS_DIM = 64
WORDS_WEIGHT = 0.65  # mean length of the part for words; the other part has 1
WORDS_RIDGE, VIEWS_RIDGE, LABELS_RIDGE = 0.01, 0.02, 0.3  # of the mean variance
DRAWN_WEIGHT = 0.25  # of drawn products beside photos
DRAWN_CATEGORY, PHOTO_COLOR, DRAWN_COLOR = 2.6, 1.3, 1.75  # stretch factors
LEAST = 0.05  # of the largest singular value: less is noise


@dataclass(frozen=True)
class Views:
    """Features of several views of each product.

    features: (n, views, 1280); the first view shows the whole product.
    words: (n, d), what is said of the product: where training puts the whole view and its caption.
    categories: (n,).
    colors: names (n,) of drawn products, mean Lab colours (n, 3) of photos.
    weight: of each view in the regression of words.
    """

    features: Matrix
    words: Matrix
    categories: Labels
    colors: NDArray[Any]
    weight: float = 1.0

    @property
    def whole(self) -> Matrix:
        return self.features[:, 0]

    @property
    def flat(self) -> Matrix:
        return self.features.reshape(-1, self.features.shape[-1])

    def repeated(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return each product's value once for each of its views, as the rows of `flat`."""
        return np.repeat(values, self.features.shape[1], axis=0)


def fit(
    photos: Views, drawn: Views, more: Sequence[Views], texts: Matrix, dim: int
) -> tuple[Matrix, Matrix]:
    """Return the visual projection (dim, 1280) and the basis (WORDS_DIM, d) of the words' part.

    Args:
        more: whole views of other products, to learn words from.
        texts: (t, d) embeddings of captions as trained.
        dim: of the whole embedding.
    """
    basis = principal(np.concatenate([photos.words, drawn.words, texts]), WORDS_DIM)
    words = learn_words([photos, drawn, *more], basis)
    instance = stretch(invariant(photos, drawn, dim - WORDS_DIM), photos, drawn)
    parts = [
        part * np.float32(weight / np.linalg.norm(photos.whole @ part.T, axis=1).mean())
        for part, weight in ((words, WORDS_WEIGHT), (instance, 1.0))
    ]
    return np.concatenate(parts), basis


def learn_words(parts: Sequence[Views], basis: Matrix) -> Matrix:
    """Regress what is said of the whole product on the features of each of its views.

    Not centred: transformers' visual projection has no bias.
    """
    features = np.concatenate([each.flat for each in parts])
    targets = np.concatenate([each.repeated(each.words @ basis.T) for each in parts])
    weights = np.concatenate([np.full(len(each.flat), each.weight) for each in parts])
    weighted = features * (weights / weights.sum()).astype(np.float32)[:, None]
    moments = weighted.T @ features
    size = np.float32(WORDS_RIDGE * features.var(axis=0).mean())
    moments += size * np.eye(len(moments), dtype=np.float32)
    joint = weighted.T @ targets
    return np.asarray(np.linalg.solve(moments, joint).T, np.float32)


def invariant(photos: Views, drawn: Views, dim: int) -> Matrix:
    """Return the map to `dim` numbers that differ little between views of one product."""
    total = scatter(photos.flat) + DRAWN_WEIGHT * scatter(drawn.flat)
    of_views = spread_of_views(photos) + DRAWN_WEIGHT * spread_of_views(drawn)
    size = np.float32(VIEWS_RIDGE * np.trace(total) / len(total))
    values, vectors = np.linalg.eigh(of_views + size * np.eye(len(total), dtype=np.float32))
    whitening = (vectors * values**-0.5) @ vectors.T
    components = principal_of(whitening @ total @ whitening, dim)
    return np.asarray(components @ whitening, np.float32)


def stretch(instance: Matrix, photos: Views, drawn: Views) -> Matrix:
    """Let the directions of category and colour count more.

    Those of the photos' categories do not: there, the part for words does enough.
    """
    of_drawn = drawn.flat @ instance.T
    categories = drawn.repeated(drawn.categories)
    same_category = of_drawn - means_of(of_drawn, categories)
    directions = (
        (between_labels(same_category, drawn.repeated(drawn.colors)), DRAWN_COLOR),
        (of_values(photos.whole @ instance.T, photos.colors), PHOTO_COLOR),
        (between_labels(of_drawn, categories), DRAWN_CATEGORY),
    )
    for basis, factor in directions:
        instance = instance + np.float32(factor - 1) * basis.T @ (basis @ instance)
    return instance


def between_labels(vectors: Matrix, labels: Labels) -> Matrix:
    """Return an orthonormal basis of the directions of linear discriminant analysis."""
    means = np.stack([vectors[labels == label].mean(axis=0) for label in np.unique(labels)])
    within = ridged(scatter(vectors - means_of(vectors, labels)), LABELS_RIDGE)
    directions = np.linalg.solve(within, centred(means).T).T
    _, sizes, basis = np.linalg.svd(directions, full_matrices=False)
    return np.asarray(basis[sizes > LEAST * sizes[0]], np.float32)


def of_values(vectors: Matrix, values: Matrix) -> Matrix:
    """Return an orthonormal basis of the directions from which `values` (n, k) can be told."""
    vectors = centred(vectors)
    directions = np.linalg.solve(
        ridged(scatter(vectors), LABELS_RIDGE), vectors.T @ centred(values)
    ).T
    return np.asarray(np.linalg.svd(directions, full_matrices=False)[2], np.float32)


def principal(vectors: Matrix, dim: int) -> Matrix:
    """Return the `dim` directions (dim, d) that keep most of the vectors' length."""
    return principal_of(vectors.T @ vectors, dim)


def principal_of(covariance: Matrix, dim: int) -> Matrix:
    return np.asarray(np.linalg.eigh(covariance)[1][:, ::-1][:, :dim].T, np.float32)


def means_of(vectors: Matrix, labels: Labels) -> Matrix:
    """Return for each row the mean of the rows with its label."""
    names, numbers = np.unique(labels, return_inverse=True)
    return np.stack([vectors[labels == name].mean(axis=0) for name in names])[numbers]


def centred(vectors: Matrix) -> Matrix:
    return np.asarray(vectors - vectors.mean(axis=0), np.float32)


def scatter(vectors: Matrix) -> Matrix:
    """Return the covariance of the rows."""
    vectors = centred(vectors)
    return np.asarray(vectors.T @ vectors / np.float32(len(vectors)), np.float32)


def spread_of_views(views: Views) -> Matrix:
    """Return the covariance of the views of one product, averaged over the products."""
    features = views.features - views.features.mean(axis=1, keepdims=True)
    flat = features.reshape(-1, features.shape[-1])
    freedom = len(features) * (features.shape[1] - 1)
    return np.asarray(flat.T @ flat / np.float32(freedom), np.float32)


def ridged(covariance: Matrix, share: float) -> Matrix:
    """Add `share` of the mean variance to each variance."""
    size = np.float32(share * np.trace(covariance) / len(covariance))
    return np.asarray(covariance + size * np.eye(len(covariance), dtype=np.float32), np.float32)
