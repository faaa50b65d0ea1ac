"""Templates: what they may call, and what every page is told."""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.search.shown_facts import shown_facts
from web.access import Client, csrf_token
from web.product_urls import product_url

FOLDER = Path(__file__).parent.parent
FRAGMENT_HEADER = "X-Fragment"  # scripts ask for a part of a page
TITLES = ("title", "name")  # columns that name a product
STATES = {
    "planned": "Planned",
    "fetching": "Fetching",
    "running": "Embedding",
    "merging": "Building the index",
    "published": "Published",
    "failed": "Failed",
    "cancelled": "Cancelled",
}


def render(
    request: Request, template: str, client: Client | None, status: int = 200, **context: Any
) -> HTMLResponse:
    """Return a page; `client` is None where nobody is logged in."""
    text = (
        _environment()
        .get_template(template)
        .render(
            client=client,
            csrf_token=csrf_token(request),
            path=request.url.path,
            **context,
        )
    )
    return HTMLResponse(text, status)


def is_fragment(request: Request) -> bool:
    """Tell whether a script asks, which puts the answer into the page that it is on."""
    return FRAGMENT_HEADER in request.headers


def title_of(match: dict[str, Any]) -> str:
    """Name a product: its title, or the last part of its id."""
    facts = match.get("product") or {}
    for column, value in facts.items():
        if column.casefold() in TITLES and str(value).strip():
            return str(value)
    return str(match["product_id"]).rpartition("/")[2] or str(match["product_id"])


def facts_of(match: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the facts of a product that are not its title."""
    facts = shown_facts(match)
    return [(name, value) for name, value in facts.items() if name.casefold() not in TITLES]


def duration(seconds: float) -> str:
    """Write a time span: 8 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def ago(at: float) -> str:
    """Write how long ago something was."""
    seconds = max(0.0, time.time() - at)
    for unit, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def iso(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def size(count: float) -> str:
    """Write a number of bytes: 512 B, 3.4 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def number(value: float) -> str:
    """Write a number without needless digits: 12, 12.5, 1,200."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.6g}"


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "title_of": title_of,
        "facts_of": facts_of,
        "duration": duration,
        "ago": ago,
        "iso": iso,
        "size": size,
        "number": number,
        "segment": lambda text: quote(text, safe=""),
    }
    environment.globals |= {"product_url": product_url, "states": STATES}
    return environment
