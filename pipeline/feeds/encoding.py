"""Bytes of a file -> text, in the encodings that spreadsheets and shops write."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import WrongUse, quote

CHUNK = 1 << 20
MARKS = (  # the longest first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
SPREADSHEET = "is a spreadsheet file. Save it as CSV (UTF-8) and import that"
SIGNATURES = {
    b"PK\x03\x04": SPREADSHEET,
    b"\xd0\xcf\x11\xe0": SPREADSHEET,
    b"\x1f\x8b": "is compressed. Decompress it and import the result",
}
CONTROL = re.compile(rb"[\0-\x08\x0b\x0e-\x1f\x7f]")
ESCAPED = re.compile("[\udc80-\udcff]")  # bytes that are not valid in the encoding
BEYOND_ASCII = re.compile("[^\0-\x7f]")


def open_text(file: Path, encoding: str = "") -> tuple[io.TextIOWrapper, str]:
    """Open a text file; return it with the name of its encoding.

    Bytes that the encoding does not have become lone surrogates, which readers of rows report.

    Args:
        encoding: in place of the one that is found by looking at the bytes.

    Raises:
        WrongUse: it cannot be read, or is not a text file.
    """
    try:
        name = encoding or _encoding(file)
        stream = file.open(encoding=name, errors="surrogateescape", newline="")
    except OSError as error:
        raise WrongUse(f"it cannot be read: {error.strerror}.") from error
    except LookupError as error:
        raise WrongUse(f"unknown encoding {quote(encoding)}. Use e.g. utf-8 or cp1252.") from error
    return stream, name


@contextmanager
def valid_text(stream: io.TextIOWrapper) -> Iterator[None]:
    """Say that what `open_text` has opened is damaged; UTF-16 cannot keep a byte for itself.

    Raises:
        WrongUse: it is.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        name = encoding_name(stream.encoding)
        raise WrongUse(f"it is not valid {name} ({error.reason}); it may be cut off.") from error


def encoding_name(encoding: str) -> str:
    return {"cp1252": "Windows-1252", "utf-16": "UTF-16"}.get(encoding, encoding.upper())


def _encoding(file: Path) -> str:
    with file.open("rb") as stream:
        head = stream.read(4096)
    for signature, reason in SIGNATURES.items():
        if head.startswith(signature):
            raise WrongUse(f"it {reason}.")
    for mark, name in MARKS:
        if head.startswith(mark):
            return name
    # Text of western languages in UTF-16: every second byte is 0.
    zeros = head[1::2].count(0), head[::2].count(0)
    if max(zeros) > 0.4 * (len(head) // 2) and min(zeros) * 10 < max(zeros):
        return "utf-16-le" if zeros[0] > zeros[1] else "utf-16-be"
    if len(CONTROL.findall(head)) > 8 + 0.05 * len(head):
        raise WrongUse("it is not a text file.")
    valid, invalid = _utf8_letters(file)
    # A damaged file in UTF-8 is still one: Windows-1252 would read each of its letters as two.
    return "cp1252" if invalid > valid else "utf-8"


def _utf8_letters(file: Path) -> tuple[int, int]:
    """Count the letters beyond ASCII that are valid UTF-8, and the bytes that are not."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    letters = invalid = 0
    with file.open("rb") as stream:
        while True:
            data = stream.read(CHUNK)
            text = decoder.decode(data, final=not data)
            if not text.isascii():
                letters += len(BEYOND_ASCII.findall(text))
                invalid += len(ESCAPED.findall(text))
            if not data:
                return letters - invalid, invalid
