"""Write a query and its matches as one self-contained page."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

from cli.html_page import STYLE, thumbnail_of, write_html
from pipeline.search.shown_facts import shown_facts

QUERY_STYLE = """
.query { display: flex; gap: 1.2rem; align-items: center; margin-bottom: 1.6rem }
.query img { width: 13rem; height: 13rem; border: 1px solid var(--line); border-radius: .6rem }
.bar { height: .3rem; background: var(--line); border-radius: .2rem; margin: .4rem 0 .2rem }
.bar i { display: block; height: 100%; border-radius: .2rem; background: #2a7de1 }
"""
# The first bytes of what browsers draw, and its media type. HEIC, JPEG 2000 and TIFF are none.
MEDIA_TYPES = {
    b"\xff\xd8": "image/jpeg",
    b"\x89PNG": "image/png",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
    b"RIFF": "image/webp",
}


def write_page(
    file: Path, name: str, query: bytes | None, answer: dict[str, Any], thumbnails: dict[str, str]
) -> None:
    """Write the page.

    Args:
        query: the image that was asked with, of a `media_type`, if there was one.
        thumbnails: base64 JPEGs by file name; a match without one shows its name only.
    """
    query_figure = ""
    if query is not None:
        image = base64.b64encode(query).decode()
        query_figure = f'<img src="data:{media_type(query)};base64,{image}" alt="the query image">'
    cards = "\n".join(
        _card(match, thumbnails.get(match["filename"])) for match in answer["matches"]
    )
    title = f"Products like {name}"
    body = f"""<div class="query">{query_figure}
<div><h1>{escape(title)}</h1>
<p>{len(answer["matches"])} matches in index {escape(answer["index_version"])}</p></div></div>
<ol class="matches">
{cards}
</ol>"""
    write_html(file, title, body, STYLE + QUERY_STYLE)


def _card(match: dict[str, Any], thumbnail: str | None) -> str:
    name = escape(match["product_id"])
    image = thumbnail_of(thumbnail, match["product_id"])
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


def media_type(data: bytes) -> str | None:
    """Return the media type of an image that browsers draw; None for one that they do not."""
    return next((kind for start, kind in MEDIA_TYPES.items() if data.startswith(start)), None)
