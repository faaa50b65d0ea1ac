"""What a trained head is: a linear classifier of image vectors, and the question it answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.embed.fingerprint import Fingerprint
from pipeline.errors import FingerprintMismatch, HeadBroken, WrongUse
from pipeline.evaluate.calibration import softmax
from pipeline.names import child, nfc, wrong_name

Vectors = NDArray[np.float32]

CATEGORY_HEAD = "category_head"


@dataclass(frozen=True)
class HeadName:
    """Which question a head answers: an attribute of a category, or (None) the category itself."""

    category: str | None
    attribute: str

    @classmethod
    def parse(cls, category: str, attribute: str) -> HeadName:
        """Check both names: they become folders.

        Raises:
            WrongUse: a name has a part of a path in it, or is taken.
        """
        return cls(validate_name("category", category), validate_name("attribute", attribute))

    @property
    def folder(self) -> Path:
        """The head's folder below MODELS_DIR."""
        return Path(CATEGORY_HEAD) if self.category is None else Path(self.category, self.attribute)

    def place(self, root: Path) -> Path:
        """Return the head's folder below a root, in whichever form the disk has its name."""
        if self.category is None:
            return root / CATEGORY_HEAD
        return child(child(root, self.category), self.attribute)

    @property
    def command(self) -> str:
        """The command that trains it."""
        if self.category is None:
            return "imgrec train --category-head"
        category, attribute = quoted(self.category), quoted(self.attribute)
        return f"imgrec train --category {category} --attribute {attribute}"


CATEGORY = HeadName(None, "category")


@dataclass(frozen=True)
class Head:
    """A linear classifier of unit image vectors: softmax((weight @ vector + bias) / temperature).

    weight: (c, d) float32. bias: (c,) float32. fingerprint, made_with: the features that it was
    trained on. accuracy: on images held out of its training. images: all, held out or not.
    """

    weight: Vectors
    bias: Vectors
    temperature: float
    classes: tuple[str, ...]
    fingerprint: str
    made_with: str
    accuracy: float
    images: int
    trained_at: str = ""  # set when it is saved

    def logits(self, vectors: Vectors) -> NDArray[np.float64]:
        """Return the (n, c) logits of (n, d) vectors, before the temperature."""
        weight, bias = self.weight.astype(np.float64), self.bias.astype(np.float64)
        values: NDArray[np.float64] = vectors.astype(np.float64) @ weight.T + bias
        return values

    def confidences(self, vector: Vectors) -> NDArray[np.float64]:
        """Return the (c,) probabilities of one (d,) unit vector."""
        return softmax(self.logits(vector[None])[0] / self.temperature)


def validate_name(kind: str, name: str) -> str:
    """Return a name that can be a folder's and a label.

    Raises:
        WrongUse: it cannot; nothing with a part of a path in it passes.
    """
    name = nfc(name)
    reason = wrong_name(name)
    if reason:
        raise WrongUse(f"The {kind} {name!r} cannot be used: {reason}.")
    if name == "unknown":
        raise WrongUse(
            f"The {kind} cannot be called 'unknown', which is reserved for uncertain answers."
        )
    if kind == "category" and name == CATEGORY_HEAD:
        raise WrongUse(
            f"The category cannot be called '{CATEGORY_HEAD}': the head that tells categories "
            "apart has that folder."
        )
    return name


def quoted(name: str) -> str:
    return f"'{name}'" if " " in name else name


def require_features(head: Head, name: HeadName, mine: Fingerprint, dim: int) -> None:
    """Check that a head was trained on the kind of (dim,) vectors that this process makes.

    Raises:
        FingerprintMismatch: it was not. HeadBroken: it says so, and has another width.
    """
    if head.fingerprint != mine.id:
        raise FingerprintMismatch(
            f"The trained head {name.folder.as_posix()} was trained on {head.made_with}, but this "
            f"process uses {mine.summary}: set the settings back, or train it again with "
            f"'{name.command}'."
        )
    if head.weight.shape[1] != dim:
        raise HeadBroken(
            f"The trained head {name.folder.as_posix()} takes vectors of {head.weight.shape[1]} "
            f"dimensions, but the model's have {dim}: train it again with '{name.command}'."
        )
