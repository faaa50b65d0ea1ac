"""Clean the text of one cell, and tell what was changed."""

from __future__ import annotations

import re
from typing import Any

from pipeline.feeds.encoding import ESCAPED
from pipeline.feeds.records import Problems

MAX_TEXT = 10_000  # characters of one value
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_CONTROL = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BLANK = " \t\r\n\f\v\u00a0\ufeff\u200b\u2007\u202f"
_FORMULA_TEXT = re.compile(r'="((?:[^"]|"")*)"')  # ="007" keeps the zeros in Excel
_APOSTROPHE = re.compile(r"'(?=[0-9=+@-])[^']*")  # '007 does the same


def clean(text: str, column: str, line: int, problems: Problems) -> str:
    """Return the value that a cell stands for, "" for none."""
    text = text.strip(_BLANK)
    if not text:
        return ""
    if text[0] == "=" and (match := _FORMULA_TEXT.fullmatch(text)):
        text = match[1].replace('""', '"').strip(_BLANK)
    elif text[0] == "'" and _APOSTROPHE.fullmatch(text):
        text = text[1:]
    if not text.isprintable():
        text = _printable(text, column, line, problems)
    if len(text) > MAX_TEXT:
        problems.warn(line, f"'{column}' has {len(text):,} characters; cut off after {MAX_TEXT:,}")
        text = text[:MAX_TEXT]
    return text


def _printable(text: str, column: str, line: int, problems: Problems) -> str:
    if _CONTROL.search(text):  # no terminal must see them, and PostgreSQL stores no NUL
        problems.warn(line, f"'{column}' contains control characters; they were left out")
        text = _CONTROL.sub("", text)
    if _SURROGATE.search(text):
        what = "bytes that are not valid text" if ESCAPED.search(text) else "half a character"
        problems.warn(line, f"'{column}' contains {what}; replaced by {REPLACEMENT}")
        text = _SURROGATE.sub(REPLACEMENT, text)
    return text


def scalar(value: Any, column: str, line: int, problems: Problems) -> str | None:
    """Return a value of JSON or Parquet as text, None for one that cannot be a fact."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "\n".join(value)
    problems.warn(line, f"'{column}' is not a text, a number or a boolean; it was left out")
    return None
