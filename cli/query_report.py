"""Write a query and its matches as one self-contained page."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

from cli.facts import shown_facts
from pipeline.atomic_files import write_atomic

STYLE = """
:root { color-scheme: light dark; --line: #8883; --muted: #777; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem; padding: 0 1rem }
h1 { font-size: 1.3rem; margin: 0 0 .2rem } p { color: var(--muted); margin: 0 0 1.2rem }
.query { display: flex; gap: 1.2rem; align-items: center; margin-bottom: 1.6rem }
.query img { width: 13rem; height: 13rem }
.matches { display: grid; grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr));
  gap: 1rem; padding: 0; margin: 0; list-style: none }
.matches li { border: 1px solid var(--line); border-radius: .6rem; overflow: hidden }
img, .gone { object-fit: contain; background: #fff; display: block; width: 100%; height: 11.5rem }
.query img { border: 1px solid var(--line); border-radius: .6rem }
.gone { display: grid; place-items: center; color: #777 }
.text { padding: .6rem .7rem } .name { overflow-wrap: anywhere; font-weight: 600 }
.bar { height: .3rem; background: var(--line); border-radius: .2rem; margin: .4rem 0 .2rem }
.bar i { display: block; height: 100%; border-radius: .2rem; background: #2a7de1 }
.fact { color: var(--muted); font-size: .85rem; overflow-wrap: anywhere }
.score { color: var(--muted); font-variant-numeric: tabular-nums }
"""


def write_page(
    file: Path, name: str, query: bytes | None, answer: dict[str, Any], thumbnails: dict[str, str]
) -> None:
    """Write the page; no script, no request to anywhere.

    Args:
        query: the image that was asked with, as image bytes, if there was one.
        thumbnails: base64 JPEGs by file name; a match without one shows its name only.
    """
    query_figure = ""
    if query is not None:
        image = base64.b64encode(query).decode()
        query_figure = f'<img src="data:{_type(query)};base64,{image}" alt="the query image">'
    cards = "\n".join(
        _card(match, thumbnails.get(match["filename"])) for match in answer["matches"]
    )
    page = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Products like {escape(name)}</title>
<style>{STYLE}</style>
<div class="query">{query_figure}
<div><h1>Products like {escape(name)}</h1>
<p>{len(answer["matches"])} matches in index {escape(answer["index_version"])}</p></div></div>
<ol class="matches">
{cards}
</ol>
</html>
"""
    write_atomic(file, page.encode())


def _card(match: dict[str, Any], thumbnail: str | None) -> str:
    name = escape(match["product_id"])
    image = (
        f'<img src="data:image/jpeg;base64,{thumbnail}" alt="{name}">'
        if thumbnail
        else '<div class="gone">no image</div>'
    )
    width = max(0.0, min(1.0, match["score"])) * 100
    return (
        f'<li>{image}<div class="text"><div class="name">{match["rank"]}. {name}</div>'
        f'<div class="bar"><i style="width:{width:.1f}%"></i></div>'
        f'<div class="score">score {match["score"]:.4f}</div>{_facts(match)}</div></li>'
    )


def _facts(match: dict[str, Any]) -> str:
    """List what is known about the product, and the parts of its rank where they were asked for."""
    parts = {name: f"{value:+.4f}" for name, value in match.get("explain", {}).items()}
    facts = {**shown_facts(match), **parts}
    return "".join(
        f'<div class="fact">{escape(name)}: {escape(value)}</div>' for name, value in facts.items()
    )


def _type(data: bytes) -> str:
    """Name an image's media type by its first bytes; a browser needs no more."""
    if data.startswith(b"\x89PNG"):
        return "image/png"
    if data.startswith(b"GIF8"):
        return "image/gif"
    if data.startswith(b"BM"):
        return "image/bmp"
    if data.startswith(b"RIFF"):
        return "image/webp"
    return "image/jpeg"
