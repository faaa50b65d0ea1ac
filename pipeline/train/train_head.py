"""Train a linear head on frozen image vectors; read from top to bottom.

The images are split once. What is held out is judged at the end and decides nothing: --auto
chooses the learning rate and the epochs on a part of the training images, and the temperature is
fitted on logits of training images that were out of the fold which gave them.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from pipeline.classify.head import Head
from pipeline.embed.fingerprint import Fingerprint
from pipeline.errors import WrongUse
from pipeline.evaluate.calibration import calibration_error, fit_temperature, per_class, softmax
from pipeline.evaluate.retrieval import confusion
from pipeline.train.loss_curve import draw_curves
from pipeline.train.training_set import TrainingSet

Rows = NDArray[np.int64]
Vectors = NDArray[np.float32]

# What --auto tries. Adam's step is about the learning rate itself in every weight; from 0.01 on, a
# few images a class were learnt by heart before the hold-out could tell (drawn products).
RATES = (3e-4, 1e-3, 3e-3)
MAX_EPOCHS = 200
PATIENCE = 20  # epochs without a new low of the loss on the inner hold-out: the rate is at its end
NEW_LOW = 1e-3  # nats; where all is right the loss falls for ever, and nobody gains by it
INNER = 0.2  # share of the training images that --auto chooses on
MAX_BATCHES = 8  # an epoch under --auto: larger sets get larger batches, not longer trainings
FOLDS = 5  # of the temperature


@dataclass(frozen=True)
class Recipe:
    """The hyper-parameters; the defaults are those that imgrec's users know."""

    epochs: int = 10  # passes over the training images; --auto chooses
    learning_rate: float = 1e-4  # of Adam; --auto chooses
    batch_size: int = 8  # images in a step
    held_out: float = 0.2  # share of each class that is only judged
    seed: int = 0  # of the splits and the order of the images
    auto: bool = False  # standardise, weight classes, choose learning rate and epochs


@dataclass(frozen=True)
class Fit:
    """A head's weight (c, d) and bias (c,) on plain vectors, and its loss after each epoch."""

    weight: Vectors
    bias: Vectors
    losses: list[float]  # mean over the epoch's batches
    watched: list[float]  # on images that were watched only; may be empty

    def logits(self, vectors: Vectors) -> NDArray[np.float64]:
        values: NDArray[np.float64] = vectors.astype(np.float64) @ self.weight.T + self.bias
        return values


@dataclass(frozen=True)
class Training:
    """A trained head, and how good it is on the images that were held out."""

    head: Head
    recipe: Recipe  # as it was used: with what --auto chose
    trained: int
    held_out: int
    counts: Rows  # (c, c) confusion: true classes by predicted ones
    ece: float
    ece_before: float  # at temperature 1
    temperature_fitted: bool  # False where every class has one training image only
    curves: dict[str, list[float]]

    def report(self) -> dict[str, Any]:
        """Return the figures as JSON's types."""
        return {
            "classes": list(self.head.classes),
            "images": self.head.images,
            "train": self.trained,
            "held_out": self.held_out,
            "accuracy": self.head.accuracy,
            "per_class": per_class(self.head.classes, self.counts),
            "confusion": {"classes": list(self.head.classes), "counts": self.counts.tolist()},
            "ece": round(self.ece, 4),
            "ece_before": round(self.ece_before, 4),
            "temperature": round(self.head.temperature, 6),
            "learning_rate": self.recipe.learning_rate,
            "epochs": self.recipe.epochs,
            "auto": self.recipe.auto,
        }

    def loss_curve(self) -> bytes:
        """Return the loss over the epochs as a PNG."""
        buffer = io.BytesIO()
        draw_curves(self.curves, 1).save(buffer, "PNG")
        return buffer.getvalue()


def train(examples: TrainingSet, recipe: Recipe, made_by: Fingerprint) -> Training:
    """Split, choose (--auto), fit, calibrate, judge.

    Raises:
        WrongUse: --auto has no class with an image to spare.
    """
    count = len(examples.classes)
    rng = np.random.default_rng(recipe.seed)
    train_rows, held_rows = split(examples.truth, recipe.held_out, rng)
    vectors, truth = examples.vectors[train_rows], examples.truth[train_rows]  # (n, d), (n,)
    unseen, answers = examples.vectors[held_rows], examples.truth[held_rows]
    if recipe.auto:
        recipe = choose(vectors, truth, count, recipe, rng)

    # The hold-out is watched for the image of the loss only: nothing is decided by it.
    fit = fit_head(vectors, truth, count, recipe, watched=(unseen, answers))
    logits, rows = out_of_fold(vectors, truth, count, recipe, rng)
    temperature = fit_temperature(logits, truth[rows]) if len(rows) else 1.0

    held_logits = fit.logits(unseen)
    predicted = held_logits.argmax(axis=1)
    names = np.array(examples.classes)
    counts = confusion(list(examples.classes), names[answers], names[predicted])
    head = Head(
        weight=fit.weight,
        bias=fit.bias,
        temperature=temperature,
        classes=examples.classes,
        fingerprint=made_by.id,
        made_with=made_by.summary,
        accuracy=round(float((predicted == answers).mean()), 4),
        images=len(examples.truth),
    )
    return Training(
        head=head,
        recipe=recipe,
        trained=len(train_rows),
        held_out=len(held_rows),
        counts=counts,
        ece=calibration_error(softmax(held_logits / temperature), answers),
        ece_before=calibration_error(softmax(held_logits), answers),
        temperature_fitted=len(rows) > 0,
        curves={"training": fit.losses, "held out": fit.watched},
    )


def split(truth: Rows, share: float, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Split stratified -> (rows to train on, rows held out), at least one of each class in both.

    A class with one image only stays in the training part.
    """
    held_out = []
    for label in np.unique(truth):
        own = rng.permutation(np.flatnonzero(truth == label))
        if len(own) > 1:
            held_out.append(own[: min(max(1, round(share * len(own))), len(own) - 1)])
    held_rows = np.sort(np.concatenate(held_out)) if held_out else np.zeros(0, np.int64)
    return np.setdiff1d(np.arange(len(truth)), held_rows), held_rows


def choose(
    vectors: Vectors, truth: Rows, count: int, recipe: Recipe, rng: np.random.Generator
) -> Recipe:
    """Return the recipe with the learning rate and epochs of the least loss on an inner hold-out.

    Raises:
        WrongUse: no class has an image to spare for it.
    """
    inner, judge = split(truth, INNER, rng)
    if not len(judge):
        raise WrongUse("--auto needs a class with at least three images.")
    recipe = replace(
        recipe, epochs=MAX_EPOCHS, batch_size=max(recipe.batch_size, -(-len(truth) // MAX_BATCHES))
    )
    candidates = []
    for rate in RATES:
        tried = replace(recipe, learning_rate=rate)
        watched = (vectors[judge], truth[judge])
        fit = fit_head(vectors[inner], truth[inner], count, tried, watched, PATIENCE)
        epochs = int(np.argmin(fit.watched)) + 1
        candidates.append((fit.watched[epochs - 1], replace(tried, epochs=epochs)))
    return min(candidates, key=lambda each: each[0])[1]


def fit_head(
    vectors: Vectors,
    truth: Rows,
    count: int,
    recipe: Recipe,
    watched: tuple[Vectors, Rows] | None = None,
    patience: int | None = None,
) -> Fit:
    """Minimise the cross-entropy of `count` classes with Adam.

    Args:
        vectors, truth: (n, d) and (n,), to train on.
        watched: (m, d) and (m,), whose loss is noted after each epoch.
        patience: stop after so many epochs in which the watched loss came to no new low.
    """
    mean, scale = np.zeros(vectors.shape[1]), np.ones(vectors.shape[1])
    weights = None
    if recipe.auto:
        mean, scale = vectors.mean(axis=0), vectors.std(axis=0)
        # A feature that hardly varies among few images would shout on the next one.
        scale = np.maximum(scale, max(0.1 * float(scale.mean()), 1e-6))
        # As many images' worth of weight for each class; absent ones (of a fold) have no loss.
        own = np.bincount(truth, minlength=count)
        weights = torch.from_numpy(len(truth) / (count * np.maximum(own, 1))).float()

    def tensors(rows: Vectors, labels: Rows) -> tuple[Tensor, Tensor]:
        return torch.from_numpy((rows - mean) / scale).float(), torch.from_numpy(labels)

    x, y = tensors(vectors, truth)  # (n, d), (n,)
    order = torch.Generator().manual_seed(recipe.seed)
    # The loss is convex: a random start could only be a worse one.
    weight = torch.zeros(count, x.shape[1], requires_grad=True)
    bias = torch.zeros(count, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=recipe.learning_rate)
    losses: list[float] = []
    watched_losses: list[float] = []
    for _ in range(recipe.epochs):
        batches = torch.split(torch.randperm(len(x), generator=order), recipe.batch_size)
        total = 0.0
        for rows in batches:
            loss = cross_entropy(x[rows] @ weight.T + bias, y[rows], weight=weights)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item()
        losses.append(total / len(batches))
        if watched is not None:
            with torch.no_grad():
                rows_x, rows_y = tensors(*watched)
                watched_losses.append(
                    cross_entropy(rows_x @ weight.T + bias, rows_y, weights).item()
                )
        if (
            patience is not None
            and len(watched_losses) > patience
            and min(watched_losses[-patience:]) > min(watched_losses[:-patience]) - NEW_LOW
        ):
            break

    # Standardisation is linear, so it goes into the weights: w (x - mean) / scale + b.
    plain = weight.detach().double().numpy() / scale
    shift = bias.detach().double().numpy() - plain @ mean
    return Fit(plain.astype(np.float32), shift.astype(np.float32), losses, watched_losses)


def out_of_fold(
    vectors: Vectors, truth: Rows, count: int, recipe: Recipe, rng: np.random.Generator
) -> tuple[NDArray[np.float64], Rows]:
    """Return logits (m, c) of training images from heads that did not see them, and rows (m,).

    Folds are stratified. A class with one image gives none: without it, no head knew the class.
    """
    folds = np.full(len(truth), -1)
    for label in np.unique(truth):
        own = rng.permutation(np.flatnonzero(truth == label))
        if len(own) > 1:
            folds[own] = (np.arange(len(own)) + label) % FOLDS
    logits = np.zeros((len(truth), count))
    for fold in range(FOLDS):
        out = folds == fold
        if out.any():
            logits[out] = fit_head(vectors[~out], truth[~out], count, recipe).logits(vectors[out])
    rows = np.flatnonzero(folds >= 0)
    return logits[rows], rows


def clearly_better(accuracy: float, than: float, n_images: int) -> bool:
    """Tell whether an accuracy on the same images is more than luck with one of them."""
    return accuracy - than >= max(0.01, 1.5 / n_images)
