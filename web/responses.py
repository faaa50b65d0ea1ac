"""What the OpenAPI document says about errors."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from web.problems import MEDIA_TYPE, Problem

EVERYWHERE = (401, 403, 429, 500)  # statuses that any endpoint with a client may return
PROBLEM: dict[str, Any] = {
    "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Document that an endpoint may return these statuses, each with a problem."""
    return {
        status: {"model": Problem, "description": HTTPStatus(status).phrase, **PROBLEM}
        for status in (*EVERYWHERE, *statuses)
    }
