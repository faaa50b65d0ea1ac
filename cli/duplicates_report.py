"""Write groups of duplicates as one self-contained page."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from cli.html_page import STYLE, thumbnail_of, thumbnails, write_html
from cli.output import counted, echo_err
from cli.wiring import Wiring

MAX_GROUPS = 200  # with their images, some megabytes
TIMEOUT_S = 60.0


def write_duplicates(wiring: Wiring, file: Path, answer: dict[str, Any], local: bool) -> None:
    """Write the page."""
    groups = answer["groups"][:MAX_GROUPS]
    names = [image["filename"] for group in groups for image in group["images"]]
    jpegs = thumbnails(wiring, answer["index_version"], names, TIMEOUT_S, local, quiet=False)
    if len(groups) < len(answer["groups"]):
        echo_err(f"The page shows the first {MAX_GROUPS} of {len(answer['groups']):,} groups.")
    title = f"Duplicates in index {answer['index_version']}"
    parts = "\n".join(_group(number, group, jpegs) for number, group in enumerate(groups, 1))
    body = f"""<h1>{escape(title)}</h1>
<p>{counted(len(answer["groups"]), "group")} among {answer["images"]:,} images. The first image of a
group is the best one: most pixels, then the sharpest.</p>
{parts}"""
    write_html(file, title, body, STYLE + "h2 { font-size: 1rem; margin: 1.6rem 0 .6rem }")


def _group(number: int, group: dict[str, Any], jpegs: dict[str, str]) -> str:
    cards = "\n".join(_card(image, jpegs) for image in group["images"])
    return f'<h2>Group {number}</h2>\n<ol class="matches">\n{cards}\n</ol>'


def _card(image: dict[str, Any], jpegs: dict[str, str]) -> str:
    name = escape(image["filename"])
    picture = thumbnail_of(jpegs.get(image["filename"]), image["filename"])
    kind = "best" if image["kind"] is None else f"{image['kind']}, score {image['score']:.4f}"
    facts = "" if image["width"] is None else f"{image['width']} x {image['height']} pixels"
    return (
        f'<li>{picture}<div class="text"><div class="name">{name}</div>'
        f'<div class="score">{escape(kind)}</div><div class="fact">{facts}</div></div></li>'
    )
