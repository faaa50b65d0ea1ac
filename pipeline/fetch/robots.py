"""Directives by which a site refuses that its images are used.

The header X-Robots-Tag holds directives for all programs, or for one that it names:
`noai, noimageai` or `imgrec: noai`. It is read as img2dataset does, which set the convention
(https://github.com/rom1504/img2dataset, "Opt-out directives").
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.outbound import USER_AGENT

# Directives with a value of their own, in which a colon names no program.
VALUED = ("max-snippet", "max-image-preview", "max-video-preview", "unavailable_after")


def refused_by(values: Iterable[str], directives: frozenset[str]) -> str:
    """Return the first directive that refuses, "" where none does.

    Args:
        values: of the headers X-Robots-Tag.
        directives: those that are honoured, in lower case.
    """
    for value in values:
        program = ""
        for part in value.lower().split(","):
            name, colon, rest = (piece.strip() for piece in part.partition(":"))
            if colon and name not in VALUED:
                program, name = name, rest
            if name in directives and program in ("", "*", USER_AGENT):
                return name
    return ""
