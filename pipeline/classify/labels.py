"""Read the labels file: the categories, their attributes, and the prompts for both."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from pipeline.embed.unread_text import has_words
from pipeline.errors import WrongUse, first_invalid
from pipeline.names import nfc, wrong_name

PACKAGED = Path(__file__).parent / "labels.toml"
ANY_PRODUCT = "product"  # the word for a product of unknown category in a prompt
RESERVED = ("words", "attributes")  # keys of a category beside its attributes

Prompts = dict[str, tuple[str, ...]]  # label -> the texts whose mean embedding represents it


def _name(name: str) -> str:
    if name == "unknown":
        raise ValueError("'unknown' is what an uncertain answer is called, it cannot be a label")
    reason = wrong_name(nfc(name))
    if reason:
        raise ValueError(f"'{name}' is not a name: {reason}")
    return nfc(name)


def _not_reserved(name: str) -> str:
    if name in RESERVED:
        raise ValueError(f"an attribute cannot be called '{name}'")
    return name


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def _readable(text: str) -> str:
    if not has_words(text):
        raise ValueError(f"'{text}' contains no word: it has no letter, digit or pictogram")
    return text


def _distinct(classes: tuple[str, ...]) -> tuple[str, ...]:
    for label in classes:
        if classes.count(label) > 1:
            raise ValueError(f"'{label}' is listed twice")
    return classes


def _with_placeholders(*placeholders: str) -> AfterValidator:
    def check(template: str) -> str:
        for placeholder in placeholders:
            if placeholder not in template:
                raise ValueError(f"the template '{template}' lacks {placeholder}")
        return template

    return AfterValidator(check)


Name = Annotated[str, AfterValidator(_name)]
Text = Annotated[str, AfterValidator(_not_blank)]
Words = Annotated[Text, AfterValidator(_readable)]
Classes = Annotated[tuple[Name, ...], Field(min_length=2), AfterValidator(_distinct)]


class Attribute(BaseModel, extra="forbid", frozen=True):
    """A question about a product; `{}` in a template is the class, `{category}` the product."""

    templates: Annotated[
        tuple[Annotated[Text, _with_placeholders("{}", "{category}")], ...], Field(min_length=1)
    ]
    classes: Classes


@dataclass(frozen=True)
class Category:
    """The words for a category, and its attributes by name."""

    words: tuple[str, ...]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True)
class Labels:
    """A labels file; everything keeps its order."""

    templates: tuple[str, ...]
    attributes: Mapping[str, Attribute]
    categories: Mapping[str, Category]

    def category_prompts(self) -> Prompts:
        """Return the prompts of each category."""
        return {
            name: tuple(t.replace("{}", word) for t in self.templates for word in category.words)
            for name, category in self.categories.items()
        }

    def attributes_of(self, category: str | None) -> Mapping[str, Attribute]:
        """Return the attributes of a category; all of them if it is unknown (None)."""
        return self.attributes if category is None else self.categories[category].attributes

    def attribute_prompts(self, category: str | None, attribute: str) -> Prompts:
        """Return the prompts of each class of an attribute within a category."""
        words = (ANY_PRODUCT,) if category is None else self.categories[category].words
        within = self.attributes_of(category)[attribute]
        return {
            label: tuple(
                template.replace("{}", label).replace("{category}", word)
                for template in within.templates
                for word in words
            )
            for label in within.classes
        }


class _Category(BaseModel, extra="allow"):
    """A category; its other keys are attributes with classes of their own."""

    __pydantic_extra__: dict[str, Classes]

    words: Annotated[tuple[Words, ...], Field(min_length=1)] | None = None
    attributes: tuple[str, ...] | None = None


class _File(BaseModel, extra="forbid"):
    templates: Annotated[tuple[Annotated[Text, _with_placeholders("{}")], ...], Field(min_length=1)]
    attributes: dict[Annotated[Name, AfterValidator(_not_reserved)], Attribute] = {}
    categories: Annotated[dict[Name, _Category], Field(min_length=2)]


def load_labels(labels_file: str = "") -> Labels:
    """Read a labels file; by default, the one that comes with imgrec.

    Raises:
        WrongUse: it cannot be read or is invalid; the sentence names the file and the key.
    """
    file = Path(labels_file).expanduser() if labels_file else PACKAGED
    try:
        text = file.read_text(encoding="utf-8-sig")  # Notepad begins UTF-8 with a mark
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise WrongUse(f"The labels file {file} cannot be read: {reason}.") from error
    try:
        content = _File.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:  # its message ends with line and column
        raise WrongUse(f"The labels file {file} is not valid TOML: {error}.") from error
    except ValidationError as error:
        path, reason, _ = first_invalid(error)
        raise WrongUse(f"The labels file {file} is invalid: {_key(path)}: {reason}.") from error
    try:
        return _labels(content)
    except ValueError as error:
        raise WrongUse(f"The labels file {file} is invalid: {error}.") from error


def _labels(content: _File) -> Labels:
    """Give each category its attributes.

    Raises:
        ValueError: a category names an attribute that does not exist.
    """
    shared = content.attributes
    existing = f"(attributes: {', '.join(shared) or 'none'})"
    categories = {}
    for name, category in content.categories.items():
        own = category.__pydantic_extra__
        for key in own:
            if key not in shared:
                raise ValueError(f"categories.{name}.{key}: unknown name {existing}")
        attributes = {}
        for key in shared if category.attributes is None else category.attributes:
            if key not in shared:
                raise ValueError(
                    f"categories.{name}.attributes: there is no attribute '{key}' {existing}"
                )
            classes = own.get(key, shared[key].classes)
            attributes[key] = shared[key].model_copy(update={"classes": classes})
        categories[name] = Category(category.words or (name,), attributes)
    return Labels(content.templates, shared, categories)


def _key(path: tuple[int | str, ...]) -> str:
    """Write a path as TOML does, with the place in a list: `categories.shoe.words[1]`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path]
    return "".join(parts).removeprefix(".").removesuffix(".[key]")
