"""The page that shows the API: the OpenAPI document as HTML, without a script.

A viewer such as Swagger UI would be a megabyte of scripts of others with inline styles; the page's
Content-Security-Policy would have to be weaker for it.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader

router = APIRouter(include_in_schema=False)


@router.get("/docs", response_class=HTMLResponse)
def docs(request: Request) -> str:
    """Show the API."""
    environment = Environment(
        loader=PackageLoader("web"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("docs.html").render(document=request.app.openapi())
