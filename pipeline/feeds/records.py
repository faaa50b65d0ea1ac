"""What a file says: rows, items of products, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.allowed_hosts import Network
from pipeline.feeds.columns import Value

MAX_LISTED = 10_000  # of problems that are listed one by one; all are counted


@dataclass(frozen=True)
class Problem:
    """Something about a line of a file that its owner should know."""

    line: int
    reason: str


@dataclass
class Problems:
    """What was left out of a file or changed, and why.

    Attributes:
        private: networks whose addresses are no problem although they are private.
    """

    bad_rows: int = 0
    bad: list[Problem] = field(default_factory=list)
    n_warnings: int = 0
    warnings: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # about the file as a whole
    private: tuple[Network, ...] = ()

    def refuse(self, line: int, reason: str) -> None:
        """Name a row that is not imported."""
        self.bad_rows += 1
        if len(self.bad) < MAX_LISTED:
            self.bad.append(Problem(line, reason))

    def warn(self, line: int, reason: str) -> None:
        """Name a row of which something was left out or changed."""
        self.n_warnings += 1
        if len(self.warnings) < MAX_LISTED:
            self.warnings.append(Problem(line, reason))

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


@dataclass(frozen=True)
class Unusable:
    """A value that cannot be a fact, and why: "is not text in UTF-8"."""

    reason: str


@dataclass(frozen=True)
class Row:
    """One row of a file: a text for each column; "" where a cell is empty."""

    line: int
    cells: dict[str, str]


@dataclass(frozen=True)
class Item:
    """One row of a file as a statement about a product, or about one variant of it.

    Attributes:
        parent: the id of its product, or another name of it; "" for a product itself.
        alias: another name by which variants call this product.
        images: paths below the products folder.
        urls: addresses of pictures.
    """

    line: int
    item_id: str
    facts: dict[str, str]
    images: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    parent: str = ""
    alias: str = ""


@dataclass(frozen=True)
class Variant:
    """One variant of a product; None stands for a cell that is empty."""

    item_id: str
    facts: dict[str, Value | None]


@dataclass(frozen=True)
class Product:
    """What a file says about a product.

    Attributes:
        line: where it begins in the file.
        facts: None stands for a cell that is empty.
        variants: the rows that it was grouped from; none for a product of one row.
    """

    line: int
    product_id: str
    facts: dict[str, Value | None]
    images: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = ()
