"""The SQL of the job table, as titled statements in queries.sql."""

from __future__ import annotations

import re
from importlib.resources import files


def _load(name: str) -> dict[str, str]:
    """Read a file of statements, each under a line `-- name: its_name`."""
    text = files("pipeline.store").joinpath(name).read_text(encoding="utf-8")
    parts = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)
    return {
        title: re.sub(r"--.*", "", body).strip().rstrip(";")
        for title, body in zip(parts[1::2], parts[2::2], strict=True)
    }


QUERIES = _load("queries.sql")
