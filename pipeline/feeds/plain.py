"""A plain table: a column that identifies a product, pictures, and facts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from pipeline.errors import WrongUse, quote
from pipeline.feeds.cells import REPLACEMENT
from pipeline.feeds.columns import PLACEHOLDERS
from pipeline.feeds.names import ID_ORDER, is_picture_column, normalize
from pipeline.feeds.picture_urls import canonical_url, is_address, split_pictures
from pipeline.feeds.records import Item, Problems, Row
from pipeline.images.path_length import too_long

_PATH_COLUMN = re.compile(r"images?(_?[0-9]{1,2})?")  # after normalize(): image, image.2, images
_URL_WORD = re.compile(r"(^|_)(urls?|links?|src)(_|$)")
# 2.1E+11 and 2.000000001036E12. The largest number of a spreadsheet is about 1E+308.
LOST_DIGITS = re.compile(r"[0-9][.,](?:[0-9]+E\+|[0-9]{4,}E)[0-9]{1,3}")


@dataclass
class PathColumns:
    """The columns that name images below the products folder, by what their cells hold.

    Attributes:
        addresses: a column `image` may hold addresses instead.
    """

    paths: set[str] = field(default_factory=set)
    empty: set[str] = field(default_factory=set)
    addresses: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        """Tell whether the file says which images its products have, if only that they have none.

        Empty cells of a column of addresses say nothing of images below the folder.
        """
        return bool(self.paths or self.empty - self.addresses)


def id_column(columns: Iterable[str], chosen: str = "") -> str:
    """Choose the column that identifies a product.

    Raises:
        WrongUse: there is none.
    """
    columns = list(columns)
    if chosen:
        if chosen not in columns:
            raise WrongUse(f"it has no column {quote(chosen)}. Its columns: {', '.join(columns)}.")
        return chosen
    for wanted in ID_ORDER:
        for name in columns:
            if normalize(name) == wanted:
                return name
    raise WrongUse(
        "no column identifies a product: name it 'product_id', or choose one with --id-column. "
        f"The file has: {', '.join(columns)}."
    )


def plain_items(
    rows: Iterable[Row], name: str, path_columns: PathColumns, problems: Problems
) -> Iterator[Item]:
    """Make an item of each row.

    Args:
        name: the column that identifies a product.
        path_columns: those of the rows are added.
    """
    for row in rows:
        product_id = product_id_of(row, name, problems)
        if not product_id:
            continue
        images, urls, facts = list[str](), list[str](), dict[str, str]()
        for column, text in row.cells.items():
            if column == name:
                continue
            if is_picture_column(column) and holds_pictures(
                column, text, row.line, images, urls, path_columns, problems
            ):
                continue
            facts[column] = text
        yield Item(row.line, product_id, facts, unique(images), unique(urls))


def product_id_of(row: Row, name: str, problems: Problems) -> str:
    """Return the id of a row, "" for one that has none."""
    product_id = row.cells.get(name, "")
    if not product_id:
        problems.refuse(row.line, f"has no {name}")
    elif REPLACEMENT in product_id:
        problems.refuse(row.line, f"the {name} {quote(product_id)} is not valid text")
        return ""
    elif LOST_DIGITS.fullmatch(product_id):
        problems.refuse(
            row.line,
            f"the {name} {quote(product_id)} was shortened by a spreadsheet: its digits are lost",
        )
        return ""
    return product_id


def holds_pictures(
    column: str,
    text: str,
    line: int,
    images: list[str],
    urls: list[str],
    path_columns: PathColumns,
    problems: Problems,
) -> bool:
    """Add the pictures of a cell; return False where the column holds other things."""
    name = normalize(column)
    has_address = "//" in text and any(is_address(part) for part in split_pictures(text))
    if has_address or _URL_WORD.search(name):
        add_urls(column, text, line, urls, problems)
        path_columns.addresses.add(column)
        return True
    if not _PATH_COLUMN.fullmatch(name):
        return False
    if not text or text.casefold() in PLACEHOLDERS:
        path_columns.empty.add(column)
    for part in [text] if name == "image" else split_pictures(text):
        if not part:
            continue
        path = PurePosixPath(part.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            reason = "it is not below the products folder"
        elif part.casefold() in PLACEHOLDERS:
            reason = "it names no image"
        elif size := too_long(str(path)):
            reason = f"its path has {size}"
        else:
            images.append(str(path))
            path_columns.paths.add(column)
            continue
        problems.warn(line, f"the image {quote(part)} was left out: {reason}")
    return True


def add_urls(column: str, text: str, line: int, urls: list[str], problems: Problems) -> None:
    """Add the addresses of a cell; those that cannot be fetched are named."""
    for part in split_pictures(text):
        try:
            urls.append(canonical_url(part, problems.private))
        except ValueError as error:
            problems.warn(line, f"the address {quote(part)} of '{column}' was left out: {error}")


def unique(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))
