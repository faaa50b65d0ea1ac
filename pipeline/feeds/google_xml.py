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
MAX_ITEM = 1 << 20  # characters
MAX_DEPTH = 50


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
        self._parts: list[str] = []

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
            self._parts = [attributes["href"]] if "href" in attributes else []
        elif self._parts:
            self._parts.append(":")  # the parts of g:shipping, as in a table: US:14.95 USD

    def _text(self, text: str) -> None:
        if self._item_depth and self._depth > self._item_depth:
            self._size += len(text)
            if self._size > MAX_ITEM:
                raise WrongUse(
                    f"the item in line {self._line} has more than {MAX_ITEM:,} characters."
                )
            if self._depth == self._item_depth + 1 or text.strip():
                self._parts.append(text)

    def _end(self, name: str) -> None:
        if self._item_depth and self._depth == self._item_depth + 1:
            space = name.rpartition(" ")[0]
            cells = self._google if space == GOOGLE else self._other
            text = clean("".join(self._parts), _local(name), self._line, self._problems)
            cells.setdefault(_local(name), []).append(text.strip(": \n"))
            self._parts = []
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


def _refuse(*declaration: Any) -> None:
    raise WrongUse("it declares entities, which a product feed does not need. Leave them out.")
