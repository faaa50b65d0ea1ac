"""Addresses of products: ids may hold slashes, spaces, percent signs, dots, any script."""

from __future__ import annotations

from urllib.parse import quote, unquote_to_bytes

from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.errors import NotFound

PREFIX = "/v1/products/"
ACTIONS = ("similar", "image", "images")


def product_url(product_id: str, action: str = "") -> str:
    """Return the path of a product; a slash in its id is written %2F."""
    path = PREFIX + quote(product_id, safe="")
    return f"{path}/{action}" if action else path


def product_id_of(segment: str) -> str:
    """Return the id that a segment of a path stands for.

    Raises:
        NotFound: no id can be written so.
    """
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise NotFound("The product's id is not UTF-8.") from None


class ProductPaths:
    """Keep the id in a product's path percent-encoded until the endpoint reads it.

    Servers decode paths before they route them: %2F in an id would look like a slash between two
    segments. Plain slashes in an id are accepted where it does not end like an action.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(PREFIX):
            raw = scope.get("raw_path") or quote(scope["path"]).encode()
            scope["path"] = routed_path(raw.decode("ascii", "replace"))
        await self._app(scope, receive, send)


def routed_path(raw_path: str) -> str:
    """Return the path to route by: the id is one segment, percent-encoded."""
    if not raw_path.startswith(PREFIX):
        return raw_path
    segments = raw_path.removeprefix(PREFIX).split("/")
    action = segments.pop() if len(segments) > 1 and segments[-1] in ACTIONS else ""
    return f"{PREFIX}{'%2F'.join(segments)}{f'/{action}' if action else ''}"
