"""Read what classification can say: categories, their attributes, and the prompts to ask with."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import WrongUse

PACKAGED = Path(__file__).parent / "labels.toml"
# Labels are printed, and are names of folders where heads are trained.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _-]{0,63}")
ANY_PRODUCT = "product"  # what a thing of unknown category is called in a prompt

Prompts = dict[str, tuple[str, ...]]  # label -> the texts whose mean stands for it


@dataclass(frozen=True)
class Attribute:
    """A question about a product; `{}` in a template is the class, `{category}` the product."""

    templates: tuple[str, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Category:
    """What people call a category, and its attributes by name."""

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
        """Return the attributes that a category has; all of them where it is unknown (None)."""
        return self.attributes if category is None else self.categories[category].attributes

    def attribute_prompts(self, category: str | None, attribute: str) -> Prompts:
        """Return the prompts of each class of an attribute, as asked within a category."""
        words = (ANY_PRODUCT,) if category is None else self.categories[category].words
        asked = self.attributes_of(category)[attribute]
        return {
            label: tuple(
                template.replace("{}", label).replace("{category}", word)
                for template in asked.templates
                for word in words
            )
            for label in asked.classes
        }


def load_labels(labels_file: str = "") -> Labels:
    """Read a labels file; without a name, the one that comes with imgrec.

    Raises:
        WrongUse: it cannot be read or used; the sentence names the file and the line.
    """
    file = Path(labels_file).expanduser() if labels_file else PACKAGED
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise WrongUse(f"The labels file {file} cannot be read: {reason}.") from error
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:  # its message ends with line and column
        raise WrongUse(f"The labels file {file} is no TOML: {error}.") from error
    return _Reader(file, text).labels(content)


class _Reader:
    """Turns parsed TOML into labels; keeps the text to tell the line of a mistake."""

    def __init__(self, file: Path, text: str) -> None:
        self._file = file
        self._lines = text.splitlines()

    def labels(self, content: dict[str, Any]) -> Labels:
        self._only(content, {"templates", "attributes", "categories"}, "")
        templates = self._templates(content, "", ("{}",))
        attributes = {
            name: self._attribute(table, f"attributes.{name}")
            for name, table in self._tables(content, "attributes").items()
        }
        if reserved := attributes.keys() & {"words", "attributes"}:
            name = min(reserved)
            raise self._mistake(f"attributes.{name}", "", f"no attribute can be called '{name}'")
        tables = self._tables(content, "categories")
        if len(tables) < 2:
            raise self._mistake("categories", "", "there must be two categories or more")
        categories = {
            name: self._category(name, table, attributes) for name, table in tables.items()
        }
        return Labels(templates, attributes, categories)

    def _attribute(self, table: dict[str, Any], place: str) -> Attribute:
        self._only(table, {"templates", "classes"}, place)
        templates = self._templates(table, place, ("{}", "{category}"))
        return Attribute(templates, self._classes(table, place, "classes"))

    def _category(
        self, name: str, table: dict[str, Any], attributes: Mapping[str, Attribute]
    ) -> Category:
        place = f"categories.{name}"
        self._only(table, {"words", "attributes", *attributes}, place)
        words = self._texts(table, place, "words") if "words" in table else (name,)
        names = tuple(attributes)
        if "attributes" in table:
            names = self._texts(table, place, "attributes", least=0)
        for attribute in names:
            if attribute not in attributes:
                known = ", ".join(attributes) or "none"
                reason = f"there is no attribute '{attribute}' (there are: {known})"
                raise self._mistake(place, "attributes", reason)
        own = {}
        for attribute in names:
            shared = attributes[attribute]
            classes = shared.classes
            if attribute in table:
                classes = self._classes(table, place, attribute)
            own[attribute] = Attribute(shared.templates, classes)
        return Category(words, own)

    def _tables(self, content: dict[str, Any], key: str) -> dict[str, dict[str, Any]]:
        tables = content.get(key, {})
        if not isinstance(tables, dict):
            raise self._mistake("", key, f"'{key}' must be a table, as in [{key}.name]")
        for name, table in tables.items():
            place = f"{key}.{name}"
            if not isinstance(table, dict):
                raise self._mistake(key, name, f"'{name}' must be a table, as in [{place}]")
            self._check_name(name, place, "")
        return tables

    def _classes(self, table: dict[str, Any], place: str, key: str) -> tuple[str, ...]:
        classes = self._texts(table, place, key, least=2)
        for label in classes:
            self._check_name(label, place, key)
        if len(set(classes)) < len(classes):
            raise self._mistake(place, key, "a class stands there twice")
        return classes

    def _templates(
        self, table: dict[str, Any], place: str, parts: tuple[str, ...]
    ) -> tuple[str, ...]:
        templates = self._texts(table, place, "templates")
        for template in templates:
            for part in parts:
                if part not in template:
                    reason = f"the template '{template}' lacks {part}"
                    raise self._mistake(place, "templates", reason)
        return templates

    def _texts(
        self, table: dict[str, Any], place: str, key: str, least: int = 1
    ) -> tuple[str, ...]:
        texts = table.get(key)
        if not isinstance(texts, list) or not all(isinstance(t, str) and t.strip() for t in texts):
            raise self._mistake(place, key, f"'{key}' must be a list of texts")
        if len(texts) < least:
            raise self._mistake(place, key, f"'{key}' needs {least} or more")
        return tuple(texts)

    def _check_name(self, name: str, place: str, key: str) -> None:
        if not NAME.fullmatch(name) or name == "unknown":
            reason = f"'{name}' cannot be a name: up to 64 letters, digits, spaces, - and _"
            if name == "unknown":
                reason = "'unknown' is what a doubtful answer is called, it cannot be a label"
            raise self._mistake(place, key, reason)

    def _only(self, table: dict[str, Any], known: set[str], place: str) -> None:
        for key in table:
            if key not in known:
                names = ", ".join(sorted(known))
                raise self._mistake(place, key, f"'{key}' is not known here (known: {names})")

    def _mistake(self, place: str, key: str, reason: str) -> WrongUse:
        line = self._line(place, key)
        return WrongUse(f"The labels file {self._file} cannot be used: line {line}: {reason}.")

    def _line(self, place: str, key: str) -> int:
        """Find the line of a key, else of its table's header, else the first (tomllib keeps none).

        A dotted spelling or an inline table is found by its header's line or not at all.
        """
        header, found, table = 1, 0, ""
        for number, line in enumerate(self._lines, start=1):
            bare = line.strip().replace('"', "").replace("'", "")
            if bare.startswith("[") and not line.startswith(" "):
                table = bare.split("#")[0].strip().strip("[]").strip()
                if table == place:
                    header = number
                elif table == f"{place}.{key}" and not found:
                    found = number
            elif table == place and re.match(rf"{re.escape(key)}\s*=", bare) and key:
                return number
        return found or header
