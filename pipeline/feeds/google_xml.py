"""Items of a Google Merchant feed in XML, RSS 2.0 or Atom, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.parsers import expat

from pipeline.errors import WrongUse
from pipeline.feeds.cells import clean
from pipeline.feeds.records import Problems, Row

CHUNK = 1 << 16
GOOGLE = "http://base.google.com/ns/1.0"
ITEMS = ("item", "entry")  # RSS, Atom
# HTML within a text: what separates no words, and what does.
_INLINE = (
    "a abbr b bdi bdo big cite code del em font i ins kbd mark q s small span strike strong sub "
    "sup tt u var wbr"
)
INLINE = frozenset(_INLINE.split())
_BLOCKS = (
    "article blockquote br center dd div dl dt h1 h2 h3 h4 h5 h6 hr img li ol p pre section table "
    "tbody td th thead tr ul"
)
BLOCKS = frozenset(_BLOCKS.split())
HTML = INLINE | BLOCKS
MAX_ITEM = 1 << 20  # characters
MAX_DEPTH = 50


class _Value:
    """The text of one element of an item, with that of the elements within it."""

    def __init__(self, name: str, text: str = "") -> None:
        self.name = _local(name)
        self.space = _space(name)
        self._depth = 0
        self._own_text = bool(text)
        # Without a namespace a feed means Google's attributes all the same.
        self._may_have_parts = self.space in (GOOGLE, "")
        # Each text with the tag before it, and whether that begins an element.
        self._pieces: list[tuple[str, bool, str]] = [("", False, text)]

    def begin(self, name: str) -> None:
        self._depth += 1
        local = _local(name)
        self._may_have_parts &= _space(name) == self.space and local not in HTML
        self._pieces.append((local, True, ""))

    def end(self, name: str) -> None:
        self._depth -= 1
        self._pieces.append((_local(name), False, ""))

    def add(self, text: str) -> None:
        self._own_text |= not self._depth and bool(text.strip())
        name, begins, before = self._pieces[-1]
        self._pieces[-1] = name, begins, before + text

    def text(self) -> str:
        """Return the text without tags; parts as a table has them: `US:14.95 USD`."""
        if len(self._pieces) > 1 and self._may_have_parts and not self._own_text:
            parts = (":" * begins + text.strip() for _, begins, text in self._pieces)
            return "".join(parts).strip(":")
        joined = ""
        for name, _, text in self._pieces:
            if name and name not in INLINE and not joined.endswith("\n"):
                joined += "\n"
            joined += text
        return joined


class _Reader:
    """Handlers of one parser; `items` holds what was read and not yet taken."""

    def __init__(self, problems: Problems) -> None:
        self.items: list[Row] = []
        self._problems = problems
        self._parser = expat.ParserCreate(namespace_separator=" ")
        # No entity is ever expanded but the five of XML: a feed that declares some is refused.
        self._parser.EntityDeclHandler = _refuse
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text
        self._parser.buffer_text = True
        self._depth = self._item_depth = self._line = self._size = 0
        self._google: dict[str, list[str]] = {}
        self._other: dict[str, list[str]] = {}
        self._value = _Value("")

    def feed(self, data: bytes) -> None:
        self._parser.Parse(data, not data)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise WrongUse(f"line {self._parser.CurrentLineNumber} nests elements too deeply.")
        if not self._item_depth:
            if _local(name) in ITEMS:
                self._item_depth, self._line = self._depth, self._parser.CurrentLineNumber
                self._google, self._other, self._size = {}, {}, 0
        elif self._depth == self._item_depth + 1:
            # Atom: <link href="..."/>
            self._value = _Value(name, attributes.get("href", ""))
        else:
            self._value.begin(name)

    def _text(self, text: str) -> None:
        if self._item_depth and self._depth > self._item_depth:
            self._size += len(text)
            if self._size > MAX_ITEM:
                raise WrongUse(
                    f"the item in line {self._line} has more than {MAX_ITEM:,} characters."
                )
            self._value.add(text)

    def _end(self, name: str) -> None:
        if self._item_depth and self._depth == self._item_depth + 1:
            value = self._value
            cells = self._google if value.space == GOOGLE else self._other
            text = clean(value.text(), value.name, self._line, self._problems)
            cells.setdefault(value.name, []).append(text)
        elif self._item_depth and self._depth > self._item_depth:
            self._value.end(name)
        elif self._depth == self._item_depth:
            cells = {**self._other, **self._google}
            self.items.append(
                Row(
                    self._line,
                    {key: "\n".join(filter(None, texts)) for key, texts in cells.items()},
                )
            )
            self._item_depth = 0
        self._depth -= 1


def xml_rows(file: Path, problems: Problems) -> Iterator[Row]:
    """Yield the items of a feed.

    Raises:
        WrongUse: the file is not well-formed, or declares entities.
    """
    reader = _Reader(problems)
    with file.open("rb") as stream:
        while True:
            data = stream.read(CHUNK)
            try:
                reader.feed(data)
            except expat.ExpatError as error:
                reason = expat.ErrorString(error.code)
                raise WrongUse(
                    f"line {error.lineno} is not well-formed XML ({reason}). Nothing was imported."
                ) from error
            except (LookupError, ValueError) as error:
                raise WrongUse(f"its encoding cannot be read ({error}).") from error
            yield from reader.items
            reader.items.clear()
            if not data:
                return


def _local(name: str) -> str:
    return name.rpartition(" ")[2]


def _space(name: str) -> str:
    return name.rpartition(" ")[0]


def _refuse(*declaration: Any) -> None:
    raise WrongUse("it declares entities, which a product feed does not need. Leave them out.")
