"""Errors as RFC 9457 problem details, with the same sentence that the command line prints."""

from __future__ import annotations

import logging
import re
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException

from pipeline import errors
from pipeline.errors import ImgrecError, first_invalid, quote
from pipeline.names import printable
from pipeline.urls import without_password
from workers.query_messages import RemoteError

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_S = 5  # Retry-After of what is away or busy
AWAY = (3, 4)  # exit codes: no index yet, a server is away
# The nearest class that an error is of decides.
STATUS: dict[type[BaseException], int] = {
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.ImageTooLarge: 413,
    errors.UnsupportedImage: 415,
    errors.WrongUse: 422,
    errors.Overloaded: 503,
    errors.TimedOut: 504,
    errors.ImgrecError: 500,
}
# A path of this machine: absolute, of two parts or more, neither part of a word nor of a URL but
# that of an SQLite file.
SERVER_PATH = re.compile(r"(?:(?<![\w/:.])|(?<=sqlite:///))(?:/[^\s/'\",;:()]+){2,}/?")

# Options of 'imgrec query' in sentences about a query, by the names that HTTP has for them.
FIELDS = {
    "exclude-text": "not",
    "product": "products",
    "top-k": "limit",
    "min-score": "min_score",
    "demote-disliked": "demote_disliked",
    "diversity": "diverse",
    "index-version": "index_version",
    **{name: name for name in ("text", "where", "user", "box", "sort", "offset", "weight")},
    "collapse": "collapse",
}
OPTION = re.compile(rf"(?<!\S)--({'|'.join(FIELDS)})(?![\w-])")
COMMAND = re.compile(r"('imgrec [^']*')")

# Parts of the place of an invalid value that no client knows: where a request holds it, and which
# of several types pydantic has tried.
NO_NAME = re.compile(
    r"body|query|path|header|constrained-str|str|int|float|\[key\]|(list|tuple|literal)\[.*\]"
)


class Problem(BaseModel):
    """Problem details, RFC 9457."""

    type: str = Field(examples=["urn:imgrec:problem:not-found"])
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["There is no job 'x': 'imgrec jobs' lists them."])


class Refusal(Exception):
    """A request that the web server refuses by itself."""

    def __init__(
        self, status: int, kind: str, detail: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(status, kind, detail, headers)
        self.status, self.kind, self.detail, self.headers = status, kind, detail, headers or {}


def problem_response(
    status: int, kind: str, detail: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """Return a problem; `kind` ends its type, e.g. not-found."""
    body = {
        "type": f"urn:imgrec:problem:{kind}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": printable(detail),  # it may quote a lone surrogate, which UTF-8 cannot write
    }
    headers = dict(headers or {})
    if status == 503:
        headers.setdefault("Retry-After", str(RETRY_S))
    return JSONResponse(body, status, headers, media_type=MEDIA_TYPE)


def problem_of(request: Request, error: Exception) -> JSONResponse:
    """Turn any error of a request into a problem; log those that the server is to blame for."""
    if isinstance(error, Refusal):
        return problem_response(error.status, error.kind, error.detail, error.headers)
    if isinstance(error, ImgrecError):
        status, kind, sentence = describe(error, getattr(request.state, "values", ""))
        if status >= 500:
            log.warning("%s %s: %s", request.method, request.url.path, error)
        return problem_response(status, kind, sentence)
    if isinstance(error, RequestValidationError):
        if any(each["type"] == "json_invalid" for each in error.errors()):
            return problem_response(400, "bad-request", "The body is not valid JSON.")
        return problem_response(422, "wrong-use", invalid_sentence(error))
    if isinstance(error, HTTPException):
        return _http_exception(request, error)
    return _unexpected(request, error)


def describe(error: ImgrecError, request_values: str = "") -> tuple[int, str, str]:
    """Return the status, the kind and the sentence of an error.

    Args:
        request_values: what the client has sent; paths in it are no secret.
    """
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    if error.exit_code in AWAY:
        status = 503
    kind = re.sub(r"(?<!^)(?=[A-Z])", "-", type(error).__name__).lower()
    return status, kind, public_sentence(str(error), request_values)


def public_sentence(sentence: str, request_values: str = "") -> str:
    """Return a sentence as a client of HTTP reads it.

    It names fields of a query in place of the command line's options, and of this server's paths
    the last part alone.
    """
    parts = COMMAND.split(sentence)  # every second part is a command of ours
    parts[::2] = [OPTION.sub(lambda match: f"'{FIELDS[match[1]]}'", part) for part in parts[::2]]
    sentence = "".join(parts)

    def hide(match: re.Match[str]) -> str:
        path = match[0]
        return path if path in request_values else path.rstrip("/").rpartition("/")[2]

    return SERVER_PATH.sub(hide, without_password(sentence))


def invalid_sentence(error: ValidationError | RequestValidationError) -> str:
    """Return a sentence about the first value that a model refuses."""
    first: Any = error
    path, reason, value = (
        first_invalid(first) if isinstance(error, ValidationError) else _first(error)
    )
    name = ".".join(str(part) for part in path if not NO_NAME.fullmatch(str(part)))
    shown = f" {quote(value)}" if isinstance(value, str | int | float | bool) else ""
    return f"Invalid {name or 'request'}{shown}: {reason}."


def _first(error: RequestValidationError) -> tuple[tuple[int | str, ...], str, Any]:
    first = error.errors()[0]
    reason = errors.REASONS.get(first["type"])
    if reason is None:
        message = first["msg"].removeprefix("Value error, ")
        reason = re.sub(r"^\w+ should\b", "must", message)
    return first["loc"], reason, first.get("input")


def _http_exception(request: Request, error: HTTPException) -> JSONResponse:
    """Describe what the framework refuses: an unknown path, a wrong method, a body too large."""
    phrase = HTTPStatus(error.status_code).phrase
    sentences = {
        404: "There is nothing at this address: /docs lists what there is.",
        405: f"{request.method} is not allowed here.",
    }
    sentence = sentences.get(error.status_code, str(error.detail) or phrase)
    headers = dict(error.headers or {})
    return problem_response(error.status_code, phrase.lower().replace(" ", "-"), sentence, headers)


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    """Answer after a bug: its traceback is in the log only."""
    what = f"{request.method} {request.url.path}"
    if isinstance(error, RemoteError):
        log.error("%s: a worker failed unexpectedly: %s", what, without_password(str(error)))
    else:
        log.exception("%s failed unexpectedly.", what, exc_info=error)
    return problem_response(
        500, "unexpected", "The request failed unexpectedly: the log of the server says why."
    )
