"""Say what a product is, and its attributes, by the texts that its image is most like."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.classify.head import CATEGORY, Head, HeadName, require_features
from pipeline.classify.head_store import HeadStore
from pipeline.classify.labels import Labels, Prompts
from pipeline.embed.embed_images import VectorCache
from pipeline.embed.fingerprint import Fingerprint
from pipeline.evaluate.calibration import softmax

Vectors = NDArray[np.float32]

UNKNOWN = "unknown"
ZERO_SHOT = "zero-shot"
TRAINED = "trained"

Question = tuple[str | None, str]  # the category that prompts name, and the attribute
CATEGORIES: Question = (None, "")


class TextEncoder(Protocol):
    """The text side of a dual encoder: `pipeline.embed.clip.Clip`, or a test's toy."""

    @property
    def has_words(self) -> bool: ...

    @property
    def logit_scale(self) -> float: ...

    def embed_texts(self, texts: Sequence[str]) -> Vectors: ...

    def text_warnings(self, texts: Sequence[str]) -> list[str]: ...


@dataclass(frozen=True)
class Guess:
    """The likeliest label and its probability, `certain` from the threshold on."""

    label: str
    confidence: float
    certain: bool

    def to_json(self) -> dict[str, Any]:
        """Return label and confidence; a doubtful label is `unknown`, and stands as best_guess."""
        if self.certain:
            return {"label": self.label, "confidence": self.confidence}
        return {"label": UNKNOWN, "confidence": self.confidence, "best_guess": self.label}


class ZeroShot:
    """Classifies image vectors against labels; asks the model for each text once in its life."""

    def __init__(
        self, encoder: TextEncoder, labels: Labels, cache: VectorCache, min_confidence: float
    ) -> None:
        self._encoder = encoder
        self._labels = labels
        self._kept = cache
        self._min_confidence = min_confidence
        self._matrices: dict[Question, Vectors] = {}
        self._warnings: dict[Question, list[str]] = {}

    @property
    def has_words(self) -> bool:
        """Whether the model can answer at all: an image encoder alone cannot."""
        return self._encoder.has_words

    def classify(self, vector: Vectors) -> dict[str, Any]:
        """Classify one (d,) unit image vector; return the classify object of the contract.

        An attribute's prompts name the category that was found, or "product" where none was.

        Raises:
            SetupError: the model has no words.
        """
        category = self.category(vector)
        answer = {"category": category.to_json(), "attributes": self.attributes(vector, category)}
        known = self.known(category)
        questions = [CATEGORIES, *((known, name) for name in self.names(category))]
        return self.with_warnings(answer, questions)

    def with_warnings(
        self, answer: dict[str, Any], questions: Sequence[Question]
    ) -> dict[str, Any]:
        """Add what the model did not read of the prompts of some questions, if anything."""
        warnings = [each for question in questions for each in self._warnings.get(question, [])]
        return {**answer, "warnings": list(dict.fromkeys(warnings))} if warnings else answer

    def category(self, vector: Vectors) -> Guess:
        """Guess the category of one (d,) unit image vector."""
        return self._guess(vector, CATEGORIES, self._labels.category_prompts())

    def attributes(self, vector: Vectors, category: Guess) -> list[dict[str, Any]]:
        """Guess the attributes that the category has."""
        return [self.attribute(vector, category, name) for name in self.names(category)]

    def names(self, category: Guess) -> tuple[str, ...]:
        """Return the attributes that the category has."""
        return tuple(self._labels.attributes_of(self.known(category)))

    def attribute(self, vector: Vectors, category: Guess, name: str) -> dict[str, Any]:
        """Guess one attribute."""
        label = self.known(category)
        prompts = self._labels.attribute_prompts(label, name)
        guess = self._guess(vector, (label, name), prompts)
        return {"name": name, **guess.to_json(), "source": ZERO_SHOT}

    def known(self, category: Guess) -> str | None:
        """Return the category that prompts can name; a head may say one that has none."""
        is_known = category.certain and category.label in self._labels.categories
        return category.label if is_known else None

    def _guess(self, vector: Vectors, question: Question, prompts: Prompts) -> Guess:
        # Two threads may both compute a matrix at first; they come to the same one.
        matrix = self._matrices.get(question)
        if matrix is None:
            texts = [text for group in prompts.values() for text in group]
            warnings = self._encoder.text_warnings(texts)
            self._warnings[question] = [f"Labels file: {warning}" for warning in warnings]
            matrix = self._matrices[question] = text_matrix(prompts, self._encoder, self._kept)
        shares = confidences(vector, matrix, self._encoder.logit_scale)
        return best(tuple(prompts), shares, self._min_confidence)


class Trained:
    """Asks trained heads, and zero-shot for what no head answers."""

    def __init__(
        self, zero_shot: ZeroShot, heads: HeadStore, mine: Fingerprint, min_confidence: float
    ) -> None:
        self._zero_shot = zero_shot
        self._heads = heads
        self._mine = mine
        self._min_confidence = min_confidence

    def classify(self, vector: Vectors) -> dict[str, Any]:
        """Classify one (d,) unit image vector; return the classify object of the contract.

        The category has a source only where a head said it; an attribute always has one. A head
        may answer an attribute that no prompt asks for.

        Raises:
            HeadBroken, FingerprintMismatch: a head is there, and cannot be used.
            SetupError: the model has no words, and no head says the category.
        """
        head, questions = self._heads.category_head(), []
        if head is None:
            questions.append(CATEGORIES)
            category = self._zero_shot.category(vector)
            answer = category.to_json()
        else:
            category = self._ask(head, CATEGORY, vector)
            answer = {**category.to_json(), "source": TRAINED}
        heads = self._heads.of_category(category.label) if category.certain else {}
        names = self._zero_shot.names(category)
        predictions = []
        for name in (*names, *(extra for extra in heads if extra not in names)):
            if name in heads:
                guess = self._ask(heads[name], HeadName(category.label, name), vector)
                predictions.append({"name": name, **guess.to_json(), "source": TRAINED})
            elif self._zero_shot.has_words:
                predictions.append(self._zero_shot.attribute(vector, category, name))
                questions.append((self._zero_shot.known(category), name))
        return self._zero_shot.with_warnings(
            {"category": answer, "attributes": predictions}, questions
        )

    def _ask(self, head: Head, name: HeadName, vector: Vectors) -> Guess:
        require_features(head, name, self._mine, len(vector))
        return best(head.classes, head.confidences(vector), self._min_confidence)


def text_matrix(prompts: Prompts, encoder: TextEncoder, cache: VectorCache) -> Vectors:
    """Return one row a label, (n, d) float32: the normalised mean of its prompts' embeddings.

    The mean of unit vectors is the prompt ensembling of CLIP (https://arxiv.org/abs/2103.00020,
    section 3.1.4). Rows that are kept cost nothing; the others are embedded in one batch.
    """
    rows = {digest: cache.get(digest) for digest in map(_digest, prompts.values())}
    missing = {_digest(texts): texts for texts in prompts.values() if rows[_digest(texts)] is None}
    embedded = encoder.embed_texts([text for texts in missing.values() for text in texts])
    fresh, start = {}, 0
    for digest, texts in missing.items():
        mean = embedded[start : start + len(texts)].mean(axis=0)
        fresh[digest] = (mean / np.linalg.norm(mean)).astype(np.float32)
        start += len(texts)
    cache.put(fresh)
    rows |= fresh
    return np.stack([np.asarray(rows[_digest(texts)]) for texts in prompts.values()])


def confidences(vector: Vectors, matrix: Vectors, logit_scale: float) -> NDArray[np.float64]:
    """Return the softmax over (n, d) text rows for one (d,) image vector -> (n,), sum 1."""
    return softmax(logit_scale * (matrix.astype(np.float64) @ vector.astype(np.float64)))


def best(labels: Sequence[str], shares: NDArray[np.float64], min_confidence: float) -> Guess:
    """Return the likeliest label; the first of several that are alike."""
    at = int(shares.argmax())
    # Four digits: more would pretend to a precision that no such probability has.
    return Guess(labels[at], round(float(shares[at]), 4), bool(shares[at] >= min_confidence))


def _digest(texts: Sequence[str]) -> str:
    # "texts-" was written by versions that gave SigLIP capital letters.
    return "texts2-" + hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
