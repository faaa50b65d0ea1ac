"""What can be asked of the index in one query."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from pipeline.errors import WrongUse
from pipeline.search.product_catalogue import Condition

AUTO = "auto"
MAX_TEXT = 1000  # characters; a model reads 77 tokens or less
MAX_CONDITIONS = 20


@dataclass(frozen=True)
class Query:
    """The words of a query; its picture travels beside them.

    Attributes:
        text: look for this; with a picture or product, change it this way.
        without: look away from this.
        weight: share of `text` and `without` beside a picture or product, 0 to 1.
        product: ask with the images of this product in place of a picture.
        where: conditions on the products' facts; all must hold.
        diverse: 0 ranks by likeness alone, 1 by unlikeness to what ranks before (MMR's 1 - lambda).
        min_score: matches below are left out; "auto": below what random pairs reach.
        user: rank for this person's history.
        feedback: let products sink that many disliked.
        explain: tell the parts of each rank's value.
    """

    top_k: int
    text: str = ""
    without: str = ""
    weight: float = 0.5
    product: str = ""
    where: tuple[str, ...] = ()
    diverse: float = 0.0
    min_score: float | str | None = None
    user: str = ""
    feedback: bool = False
    explain: bool = False

    def __post_init__(self) -> None:
        """Check everything: a question may come from anybody who reaches Redis.

        Raises:
            WrongUse: naming the option.
        """
        _require(
            isinstance(self.top_k, int) and _is_number(self.top_k, 1, 1000),
            f"top_k is {self.top_k}; it can be 1 to 1000",
        )
        for name in ("text", "without", "product", "user"):
            value = getattr(self, name)
            _require(isinstance(value, str), f"{name} is no text")
            _require("\0" not in value, f"{name} holds a NUL")  # PostgreSQL stores none
            _require(len(value) <= MAX_TEXT, f"{name} has more than {MAX_TEXT} characters")
        for name in ("weight", "diverse"):
            value = getattr(self, name)
            _require(_is_number(value, 0, 1), f"{name} is {value}; it can be 0 to 1")
        score = self.min_score
        _require(
            score is None or score == AUTO or _is_number(score, -1, 1),
            f"min_score is {score}; it can be -1 to 1, or auto",
        )
        for name in ("feedback", "explain"):
            _require(isinstance(getattr(self, name), bool), f"{name} is neither true nor false")
        _require(
            isinstance(self.where, tuple) and all(isinstance(w, str) for w in self.where),
            "where is no list of texts",
        )
        _require(
            all(len(condition) <= MAX_TEXT for condition in self.where),
            f"a condition has more than {MAX_TEXT} characters",
        )
        _require(len(self.where) <= MAX_CONDITIONS, f"there are over {MAX_CONDITIONS} conditions")
        _ = self.conditions

    @classmethod
    def from_message(cls, top_k: int, options: Mapping[str, Any] | None) -> Query:
        """Read what `options` has made.

        Raises:
            WrongUse: an option is unknown or cannot be used.
        """
        _require(options is None or isinstance(options, Mapping), "its options are no table")
        known = {each.name for each in fields(cls)} - {"top_k"}
        given = dict(options or {})
        for name in given:
            _require(name in known, f"there is no option '{name}' (a newer imgrec has sent this)")
        if isinstance(given.get("where"), list):
            given["where"] = tuple(given["where"])
        return cls(top_k, **given)

    @property
    def options(self) -> dict[str, Any]:
        """What differs from a plain query, for a message."""
        plain = Query(self.top_k)
        return {k: v for k, v in asdict(self).items() if k != "top_k" and v != getattr(plain, k)}

    @property
    def conditions(self) -> tuple[Condition, ...]:
        return tuple(Condition.parse(text) for text in self.where)

    @property
    def uses_feedback(self) -> bool:
        return self.feedback or bool(self.user)

    def key(self) -> str:
        """Name this question in a cache."""
        return json.dumps(asdict(self), sort_keys=True)

    def require_subject(self, has_picture: bool) -> None:
        """Refuse a question about nothing, or about two things.

        Raises:
            WrongUse: with what to add or leave out.
        """
        if has_picture and self.product:
            raise WrongUse("Ask with an image or with --product, not with both.")
        if not (has_picture or self.product or self.text):
            raise WrongUse("Name an image, or ask with --text or --product.")
        if self.min_score == AUTO and (self.text or self.without):
            raise WrongUse(
                "--min-score auto compares pictures with pictures: give a number beside --text and "
                "--not."
            )


def _is_number(value: Any, low: float, high: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and low <= value <= high


def _require(good: bool, reason: str) -> None:
    if not good:  # the reason may quote a message of megabytes
        raise WrongUse(f"The query cannot be used: {reason[:300]}.")
