"""Who may do what: API keys, the cookie of the page, protection against forged requests.

Without any key, everybody who reaches the loopback address is the one person at this machine. From
the first key on, revoked ones included, each request needs one.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Request, Response, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from pipeline.store.api_keys import ApiKey
from web.context import Web, web_of
from web.problems import Refusal

COOKIE = "imgrec_key"
COOKIE_LIFE_S = 30 * 86_400
CSRF_HEADER = "X-CSRF-Token"
CSRF_FIELD = "csrf_token"
SAFE = ("GET", "HEAD", "OPTIONS")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# What proxies add to a request, by default or because their documentation says so.
PROXY_HEADERS = (
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
)
LOCAL_CSRF = "local"  # without keys there is no secret to derive one from; `Origin` protects

bearer = HTTPBearer(
    auto_error=False,
    description="An API key of `imgrec keys create`. The page sends it as a cookie.",
)


@dataclass(frozen=True)
class Client:
    """Who sends a request: a key, or the person at this machine."""

    key: ApiKey | None = None
    by_cookie: bool = False

    @property
    def id(self) -> str:
        return self.key.id if self.key else ""

    @property
    def name(self) -> str:
        return self.key.name if self.key else "local"

    def allows(self, scope: str) -> bool:
        return self.key is None or self.key.allows(scope)


async def find_client(
    request: Request, credentials: HTTPAuthorizationCredentials | None = None
) -> Client | None:
    """Return who sends a request; None for nobody that may.

    Raises:
        ServerUnavailable: the database does not answer and no key was read yet.
        Refusal: without keys, the request comes from elsewhere or through a proxy.
    """
    web = web_of(request)
    ring = await asyncio.to_thread(web.resources.key_ring.get)
    if not ring.keys:
        _require_local(request, web)
        return Client()
    text, by_cookie = (credentials.credentials if credentials else ""), False
    if not text:
        text, by_cookie = request.cookies.get(COOKIE, ""), True
    key = ring.find(text)
    return Client(key, by_cookie) if key else None


def require(scope: str) -> Any:
    """Return the dependency of an endpoint that needs a scope; it yields the client."""

    async def client(
        request: Request,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)],
    ) -> Client:
        web = web_of(request)
        client = await find_client(request, credentials)
        if client is None:
            host = request.client.host if request.client else ""
            await web.limiter.take(f"failed:{host}", web.settings.rate_limit)
            raise Refusal(
                401,
                "unauthorized",
                "A valid API key is required: send 'Authorization: Bearer KEY'. 'imgrec keys "
                "create NAME' makes one.",
                {"WWW-Authenticate": 'Bearer realm="imgrec"'},
            )
        if client.key is not None and not client.key.allows(scope):
            raise Refusal(
                403,
                "forbidden",
                f"The key '{client.name}' has the scope '{client.key.scope}'; this needs "
                f"'{scope}'.",
            )
        require_own_page(request, client)
        request.state.client = client
        if client.key is not None:
            await web.limiter.take(f"key:{client.id}", web.settings.rate_limit)
        return client

    return Depends(client)


Searcher = Annotated[Client, require("search")]
Rater = Annotated[Client, require("feedback")]
Keeper = Annotated[Client, require("catalogue")]
Admin = Annotated[Client, require("admin")]


# -- the page --------------------------------------------------------------------------------------


def log_in(request: Request, response: Response, key_text: str) -> None:
    """Keep a key that was checked with `check_key` in the page's cookie."""
    response.set_cookie(
        COOKIE,
        key_text,
        max_age=COOKIE_LIFE_S,
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


def log_out(response: Response) -> None:
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")


async def check_key(request: Request, key_text: str) -> ApiKey | None:
    """Return the active key of a text, e.g. of the form to log in; None for a wrong one."""
    web = web_of(request)
    key = (await asyncio.to_thread(web.resources.key_ring.get)).find(key_text.strip())
    if key is None:
        host = request.client.host if request.client else ""
        await web.limiter.take(f"failed:{host}", web.settings.rate_limit)
    return key


def csrf_token(request: Request) -> str:
    """Return the token that forms and scripts of the page send back."""
    text = request.cookies.get(COOKIE, "")
    if not text:
        return LOCAL_CSRF
    return hmac.new(text.encode(), b"csrf", hashlib.sha256).hexdigest()


def require_csrf(request: Request, token: str) -> None:
    """Refuse a form of the page whose token is wrong.

    Raises:
        Refusal: it is.
    """
    if not hmac.compare_digest(token.encode(), csrf_token(request).encode()):
        raise Refusal(
            403, "forged", "The form is out of date, or not of this page: load the page again."
        )


def require_own_page(request: Request, client: Client) -> None:
    """Refuse a change that another site's page makes a browser send.

    A key in the `Authorization` header is proof enough: no browser adds that by itself.

    Raises:
        Refusal: the request comes from elsewhere, or with the cookie alone.
    """
    if request.method in SAFE or (client.key is not None and not client.by_cookie):
        return
    require_same_origin(request)
    if client.by_cookie:
        require_csrf(request, request.headers.get(CSRF_HEADER, ""))


def require_same_origin(request: Request) -> None:
    """Refuse a request that a browser sends for another site's page.

    Raises:
        Refusal: it does.
    """
    site = request.headers.get("sec-fetch-site", "none")
    origin = request.headers.get("origin")
    own = origin is None or _netloc(origin) == request.headers.get("host", "")
    if site not in ("none", "same-origin") or not own:
        raise Refusal(403, "forged", "The request comes from a page of another site.")


def _netloc(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


def _named_loopback(host: str) -> bool:
    """Tell whether a `Host` header names this machine as only programs on it do."""
    try:
        return (urlsplit(f"//{host}").hostname or "") in LOOPBACK
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Tell whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _require_local(request: Request, web: Web) -> None:
    """Without keys, answer only programs on this machine that call it by a loopback name.

    A page of another site can point its own name at 127.0.0.1 (DNS rebinding). A proxy on this
    machine forwards the world, and may send `Host: 127.0.0.1`, as nginx and Apache do by default.
    nginx adds no header, but speaks HTTP/1.0, which programs seldom do. A proxy with neither mark
    cannot be told from a program here.
    """
    if web.public:
        raise Refusal(
            401,
            "unauthorized",
            "There is no API key yet: 'imgrec keys create NAME --scope admin' makes one.",
            {"WWW-Authenticate": 'Bearer realm="imgrec"'},
        )
    proxied = any(name in request.headers for name in PROXY_HEADERS)
    proxied = proxied or request.scope["http_version"] == "1.0"
    from_here = request.client is not None and is_loopback(request.client.host)
    if proxied or not from_here or not _named_loopback(request.headers.get("host", "")):
        raise Refusal(
            403,
            "forbidden",
            "Without API keys only this machine is answered, at http://127.0.0.1 and without a "
            "proxy: 'imgrec keys create NAME --scope admin' makes a key.",
        )
