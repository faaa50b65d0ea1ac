"""What the OpenAPI document says about errors."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from web.problems import MEDIA_TYPE, Problem
from web.schemas import ClassifyBody, ImageBody, SearchBody

EVERYWHERE = (401, 403, 429, 500)  # statuses that any endpoint with a client may return
PROBLEM: dict[str, Any] = {
    "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Document that an endpoint may return these statuses, each with a problem."""
    return {
        status: {"description": HTTPStatus(status).phrase, **PROBLEM}
        for status in (*EVERYWHERE, *statuses)
    }


def add_schemas(app: FastAPI) -> None:
    """Add to the OpenAPI document the models that no endpoint names by itself."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        document = make()
        models = [(model, "validation") for model in (Problem, SearchBody, ClassifyBody, ImageBody)]
        _, definitions = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for name, schema in definitions["$defs"].items():
            schemas.setdefault(name, schema)
        for name in ("HTTPValidationError", "ValidationError"):  # the framework's own errors
            schemas.pop(name, None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
