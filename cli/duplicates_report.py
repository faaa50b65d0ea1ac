"""Write groups of duplicates as one self-contained page."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from cli.output import counted, echo_err
from cli.query_client import PendingQuery
from cli.query_report import STYLE
from cli.wiring import Wiring
from pipeline.atomic_files import write_atomic
from workers.routes import PICTURES

MAX_GROUPS = 200  # with their images, some megabytes
IMAGES_AT_ONCE = 100  # that a worker makes small for one message
TIMEOUT_S = 60.0


def write_duplicates(wiring: Wiring, file: Path, answer: dict[str, Any], local: bool) -> None:
    """Write the page; no script, no request to anywhere.

    Query workers make the images small, or this process.
    """
    groups = answer["groups"][:MAX_GROUPS]
    names = [image["filename"] for group in groups for image in group["images"]]
    thumbnails: dict[str, str] = {}
    for start in range(0, len(names), IMAGES_AT_ONCE):
        args = (answer["index_version"], names[start : start + IMAGES_AT_ONCE])
        thumbnails |= PendingQuery(wiring, PICTURES, args, TIMEOUT_S, local).answer()
    if len(groups) < len(answer["groups"]):
        echo_err(f"The page shows the first {MAX_GROUPS} of {len(answer['groups']):,} groups.")
    title = f"Duplicates in index {answer['index_version']}"
    parts = "\n".join(_group(number, group, thumbnails) for number, group in enumerate(groups, 1))
    page = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(title)}</title>
<style>{STYLE}h2 {{ font-size: 1rem; margin: 1.6rem 0 .6rem }}</style>
<h1>{escape(title)}</h1>
<p>{counted(len(answer["groups"]), "group")} among {answer["images"]:,} images. The first image of a
group is the best one: most pixels, then the sharpest.</p>
{parts}
</html>
"""
    write_atomic(file, page.encode())


def _group(number: int, group: dict[str, Any], thumbnails: dict[str, str]) -> str:
    cards = "\n".join(_card(image, thumbnails) for image in group["images"])
    return f'<h2>Group {number}</h2>\n<ol class="matches">\n{cards}\n</ol>'


def _card(image: dict[str, Any], thumbnails: dict[str, str]) -> str:
    name = escape(image["filename"])
    thumbnail = thumbnails.get(image["filename"])
    picture = (
        f'<img src="data:image/jpeg;base64,{thumbnail}" alt="{name}">'
        if thumbnail
        else '<div class="gone">no image</div>'
    )
    kind = "best" if image["kind"] is None else f"{image['kind']}, score {image['score']:.4f}"
    facts = "" if image["width"] is None else f"{image['width']} x {image['height']} pixels"
    return (
        f'<li>{picture}<div class="text"><div class="name">{name}</div>'
        f'<div class="score">{escape(kind)}</div><div class="fact">{facts}</div></div></li>'
    )
