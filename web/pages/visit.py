"""Who visits a page: log in, log out, and what is shown when something goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any
from urllib.parse import quote, urlsplit, urlunsplit

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute
from starlette.datastructures import UploadFile

from pipeline.errors import ImgrecError
from pipeline.names import printable
from web.access import (
    CSRF_FIELD,
    CSRF_HEADER,
    SAFE,
    Client,
    check_key,
    find_client,
    log_in,
    log_out,
    require_csrf,
    require_same_origin,
)
from web.context import web_of
from web.pages.view import is_fragment, render
from web.problems import Refusal, describe

MAX_FIELDS = 200  # of a form: two for each column that can be filtered by
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class LoginNeeded(Exception):
    """Nobody is logged in."""


def sentence_of(error: ImgrecError, values: str = "") -> tuple[int, str]:
    """Return the status and the sentence of an error; see `problems.describe`."""
    status, _, sentence = describe(error, values)
    return status, printable(sentence)


class PageRoute(APIRoute):
    """Has errors shown as pages, and shows who is not logged in the form to do so."""

    def get_route_handler(self) -> Handler:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            request.state.page = True
            try:
                return await handler(request)
            except LoginNeeded:
                if is_fragment(request):
                    return Response(status_code=401)
                return RedirectResponse(
                    f"/login?next={quote(address_of_page(request), safe='')}", 303
                )

        return handle


def visitor(scope: str) -> Any:
    """Return the dependency of a page that needs a scope; it yields the client.

    A form must carry its token as a field, a script's request as a header.
    """

    async def client(request: Request) -> Client:
        web = web_of(request)
        client = await find_client(request)
        if client is None:
            raise LoginNeeded
        request.state.client = client
        if not client.allows(scope):
            assert client.key is not None
            raise Refusal(
                403,
                "forbidden",
                f"The key '{client.name}' has the scope '{client.key.scope}'; this page needs "
                f"'{scope}'.",
            )
        if request.method not in SAFE:
            require_same_origin(request)
            require_csrf(request, request.headers.get(CSRF_HEADER) or await _field(request))
        if client.key is not None:
            await web.limiter.take(f"key:{client.id}", web.settings.rate_limit)
        return client

    return Depends(client)


async def fields(request: Request) -> tuple[dict[str, str], UploadFile | None]:
    """Return the fields of a form, the last one of each name, and its file `image`."""
    form = await request.form(max_files=1, max_fields=MAX_FIELDS)
    image = form.get("image")
    texts = {name: value for name, value in form.multi_items() if isinstance(value, str)}
    return texts, image if isinstance(image, UploadFile) else None


async def _field(request: Request) -> str:
    texts, _ = await fields(request)
    return texts.get(CSRF_FIELD, "")


SearchVisitor = Annotated[Client, visitor("search")]
AdminVisitor = Annotated[Client, visitor("admin")]

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/login")
async def login_page(request: Request, next: str = "/") -> Response:
    """Ask for a key; who has none to give goes on."""
    if await find_client(request) is not None:
        return RedirectResponse(own_address(next), 303)
    return render(request, "login.html", None, next=own_address(next), error="")


@router.post("/login")
async def login(request: Request) -> Response:
    """Keep a valid key in the cookie."""
    require_same_origin(request)
    texts, _ = await fields(request)
    address = own_address(texts.get("next", "/"))
    key = await check_key(request, texts.get("key", ""))
    if key is None:
        error = "This is not a valid key, or it was revoked."
        return render(request, "login.html", None, 401, next=address, error=error)
    response = RedirectResponse(address, 303)
    log_in(request, response, texts["key"].strip())
    return response


@router.post("/logout")
async def logout(request: Request, client: SearchVisitor) -> Response:
    """Forget the key."""
    response = RedirectResponse("/login", 303)
    log_out(response)
    return response


def own_address(text: str) -> str:
    """Return an address below this server; anything else becomes the front page."""
    try:
        parts = urlsplit(text.replace("\\", "/"))
    except ValueError:
        return "/"
    own = text.startswith("/") and not text.startswith(("//", "/\\"))
    if not own or parts.scheme or parts.netloc or any(ord(letter) < 32 for letter in text):
        return "/"
    return text


def address_of_page(request: Request) -> str:
    """Return where to come back to: the page, or after a form was sent, the page that it is on."""
    if request.method in SAFE:
        query = request.url.query
        return f"{request.url.path}?{query}" if query else request.url.path
    try:
        page = urlsplit(request.headers.get("referer", ""))
    except ValueError:
        return "/"
    if page.netloc != request.headers.get("host"):
        return "/"
    return own_address(urlunsplit(("", "", page.path, page.query, "")))
