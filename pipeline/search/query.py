"""The parameters of one query."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, ModelWrapValidatorHandler, ValidationError
from pydantic import model_validator as validate_model

from pipeline.embed.unread_text import has_words
from pipeline.errors import WrongUse, first_invalid, quote
from pipeline.names import nfc
from pipeline.search.product_catalogue import Condition

AUTO = "auto"
MAX_TEXT = 1000  # characters; a model reads 77 tokens or less
MAX_CONDITIONS = 20
# The command line's names of fields that are called otherwise in messages.
OPTIONS = {
    "without": "exclude-text",
    "diverse": "diversity",
    "feedback": "demote-disliked",
    "min_score": "min-score",
    "top_k": "top-k",
    "index_version": "index-version",
}
MAX_OFFSET = 10_000
MAX_PRODUCTS = 20
MAX_IMAGES = 8


def _between(low: float, high: float) -> AfterValidator:
    def check(value: float) -> float:
        if not low <= value <= high:  # NaN is not, either
            raise ValueError(f"must be between {low} and {high}")
        return value

    return AfterValidator(check)


def _score(value: float | str | None) -> float | str | None:
    if value is None or value == AUTO or (isinstance(value, float) and -1 <= value <= 1):
        return value
    raise ValueError(f"must be between -1 and 1, or {AUTO}")


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain a NUL character")  # PostgreSQL cannot store one
    return text


def _condition(text: str) -> str:
    Condition.parse(text)
    return text


def _not_blank(text: str) -> str:
    if text and not has_words(text):
        raise ValueError("contains no word: it has no letter, digit or pictogram")
    return text


def _box(value: tuple[float, ...]) -> tuple[float, ...]:
    x, y, width, height = value
    inside = x >= 0 and y >= 0 and x + width <= 1 + 1e-6 and y + height <= 1 + 1e-6
    if not (inside and width > 0 and height > 0):  # NaN is none of it
        raise ValueError("must be x,y,width,height inside the image, each between 0 and 1")
    return value


def _sort_column(text: str) -> str:
    if text in ("-", "+"):
        raise ValueError("must be a column, or a column with '-' before it")
    return text


Text = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_no_nul)]
Words = Annotated[Text, AfterValidator(_not_blank)]
Share = Annotated[float, _between(0, 1)]
Box = Annotated[tuple[float, float, float, float], AfterValidator(_box), Field(strict=False)]
BoxOrAuto = Annotated[Box | Literal["auto"], Field(union_mode="left_to_right")]


class Query(BaseModel, frozen=True, strict=True, extra="forbid"):
    """What is searched for and how it is ranked; the query's image travels beside it.

    Attributes:
        text: search for this; beside an image or product, modify it this way.
        without: search away from this.
        weight: share of `text` and `without` beside an image or product.
        product: query with the images of this product.
        products: query with these products and their weights, beside an image, too.
        box: search for this part of the image only: x, y, width and height as fractions of it;
            "auto": for the largest object that background removal finds.
        where: conditions on the products' facts; all must hold.
        diverse: 0 ranks by similarity alone, 1 by difference from better matches (MMR).
        min_score: matches below are left out; "auto": below what random pairs reach.
        user: personalize for this user.
        feedback: demote products that many users disliked.
        explain: return the parts of each match's value.
        offset: skip so many matches.
        sort: rank the best matches by this column of the products' facts; descending after `-`.
        fields: return these columns only; None returns all.
        total: count all matches, where that is possible.
        collapse: "duplicates" shows one image of each group of duplicates.
        index_version: ask this version; empty: the published one.

    Raises:
        WrongUse: a value is invalid; the sentence names its option.
    """

    top_k: Annotated[int, _between(1, 1000)]
    text: Words = ""
    without: Words = ""
    weight: Share = 0.5
    product: Text = ""
    where: Annotated[
        tuple[Annotated[Text, AfterValidator(_condition)], ...],
        Field(max_length=MAX_CONDITIONS, strict=False),  # a message has a list in place of a tuple
    ] = ()
    diverse: Share = 0.0
    min_score: Annotated[float | str | None, AfterValidator(_score)] = None
    user: Text = ""
    feedback: bool = False
    explain: bool = False
    products: Annotated[
        dict[Annotated[Text, Field(min_length=1)], Annotated[float, _between(-1, 1)]],
        Field(max_length=MAX_PRODUCTS),
    ] = Field(default_factory=dict)
    box: BoxOrAuto | None = None
    offset: Annotated[int, _between(0, MAX_OFFSET)] = 0
    sort: Annotated[Text, AfterValidator(_sort_column)] = ""
    fields: Annotated[tuple[Text, ...] | None, Field(max_length=100, strict=False)] = None
    total: bool = False
    collapse: Literal["", "duplicates"] = ""
    index_version: Annotated[Text, Field(max_length=20)] = ""

    @validate_model(mode="wrap")
    @classmethod
    def _raise_sentences(cls, fields: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(fields)
        except ValidationError as error:
            path, reason, value = first_invalid(error)
            option = OPTIONS.get(str(path[0]), str(path[0]))
            # Anybody who reaches Redis may have sent it: the value is quoted, and cut off.
            raise WrongUse(f"Invalid --{option} {quote(value)}: {reason}.") from None

    @classmethod
    def from_message(cls, top_k: Any, options: Any) -> Query:
        """Read `top_k` and `options` of a message.

        Raises:
            WrongUse: an option is unknown or invalid.
        """
        if options is not None and not isinstance(options, Mapping):
            raise WrongUse("The options of a query must be an object.")
        return cls.model_validate({**(options or {}), "top_k": top_k})

    @property
    def options(self) -> dict[str, Any]:
        """The fields that differ from a plain query's, for a message."""
        return self.model_dump(mode="json", exclude={"top_k"}, exclude_defaults=True)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        return tuple(Condition.parse(text) for text in self.where)

    @property
    def uses_feedback(self) -> bool:
        return self.feedback or bool(self.user)

    @property
    def own_products(self) -> frozenset[str]:
        """The products that the query is made of, which are no matches of it."""
        return frozenset(map(nfc, {self.product, *self.products} - {""}))

    def require_subject(self, n_images: int) -> None:
        """Refuse a query that names no subject, or two.

        Raises:
            WrongUse: with what to add or leave out.
        """
        if n_images > MAX_IMAGES:
            raise WrongUse(f"A query takes at most {MAX_IMAGES} images; these are {n_images}.")
        if n_images and self.product:
            raise WrongUse("Query with an image or with --product, not with both.")
        if not (n_images or self.own_products or self.text):
            raise WrongUse("Name an image, or query with --text or --product.")
        if self.box and not n_images:
            raise WrongUse("--box is a part of an image: name one.")
        if self.box and self.box != AUTO and n_images > 1:
            raise WrongUse(
                "--box x,y,width,height is a part of one image: name one, or use --box auto."
            )
        if self.sort and (self.diverse or self.feedback or self.user):
            raise WrongUse(
                "--sort orders by a column: leave out --diversity, --user and --demote-disliked."
            )
        if self.min_score == AUTO and (self.text or self.without):
            raise WrongUse(
                "--min-score auto applies to images only: give a number with --text or "
                "--exclude-text."
            )
