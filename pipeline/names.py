"""Names of products, labels and their folders: in any script, and never a part of a path."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

MAX_NAME = 64  # characters
MAX_NAME_BYTES = 240  # in UTF-8; a file system allows 255
MAX_PRODUCT_ID = 4096  # characters
# Control characters, line ends, marks that change the direction of text, lone surrogates. Joiners,
# which emoji and Persian need, are none.
CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def printable(text: str) -> str:
    """Return a text whose control characters are escaped: a file's name must not steer a terminal.

    One line becomes one line.
    """
    return CONTROL.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def nfc(name: str) -> str:
    """Return a name in the one form in which names are compared: macOS writes another on disk."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def wrong_name(name: str) -> str | None:
    """Say why a name cannot be a label's and its folder's; None if it can."""
    if not name.strip():
        return "it is empty"
    if len(name) > MAX_NAME or len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        return f"a name has up to {MAX_NAME} characters"
    if name != name.lstrip() or name.startswith("."):
        return "a name does not begin with a space or a dot"
    if "/" in name or "\\" in name or name.startswith("~") or name[1:2] == ":":
        return "a name is no part of a path: no / or \\, no ~ or drive at its start"
    if CONTROL.search(name):
        return "a name does not contain control characters"
    return None


def wrong_product_id(product_id: str) -> str | None:
    """Say why an id cannot be a product's; None if it can."""
    if not product_id.strip():
        return "it is empty"
    if len(product_id) > MAX_PRODUCT_ID:
        return f"an id has up to {MAX_PRODUCT_ID:,} characters"
    if CONTROL.search(product_id):
        return "an id does not contain control characters"
    return None


def child(folder: Path, name: str) -> Path:
    """Return what a folder holds under a name, in whichever form the disk has it."""
    place = folder / name
    if name.isascii() or place.exists():
        return place
    try:
        same = [entry for entry in folder.iterdir() if nfc(entry.name) == nfc(name)]
    except OSError:
        return place
    return same[0] if same else place
