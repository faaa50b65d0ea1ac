"""The workers' log without the control characters that names of files may bring into it."""

from __future__ import annotations

import logging

from pipeline.names import printable

_FORMATTER = logging.Formatter()


def escape(record: logging.LogRecord) -> bool:
    """Escape a record's text, line by line; a filter of a log handler."""
    record.msg, record.args = _lines(record.getMessage()), ()
    if record.exc_info and not record.exc_text:
        record.exc_text = _lines(_FORMATTER.formatException(record.exc_info))
    return True


def _lines(text: str) -> str:
    return "\n".join(map(printable, text.splitlines()))
