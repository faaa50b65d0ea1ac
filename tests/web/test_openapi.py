"""The OpenAPI document holds: a tool that reads it finds no answer that is not in it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from live_stack import LiveStack
from web_stand import WebServer, start_web

pytestmark = pytest.mark.long

# What a tool of fuzzing cannot know: an id may be valid and name nothing, a body may fit its schema
# and contradict itself ("name an image"). `use_after_free` and such concern what is created.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "ignored_auth",
    "unsupported_method",
)


@pytest.mark.parametrize(
    "phases",
    # The first takes each parameter to its bounds; the other draws at random, for minutes.
    ["examples,coverage", pytest.param("fuzzing", marks=pytest.mark.slow)],
)
def test_schemathesis_finds_no_answer_that_is_not_documented(
    stack: LiveStack, tmp_path: Path, phases: str
) -> None:
    key = stack.answer("keys", "create", "fuzz", "--scope", "admin")["key"]
    server = start_web(stack, RATE_LIMIT="0", WEB_TIMEOUT_S="10")
    command = [
        *(str(Path(sys.executable).parent / "schemathesis"), "run", f"{server.url}/openapi.json"),
        *("--header", f"Authorization: Bearer {key}", "--checks", ",".join(CHECKS)),
        *("--max-examples", "8", "--phases", phases, "--seed", "7"),
        *("--generation-database", "none", "--no-shrink", "--max-time", "240"),
        *("--suppress-health-check", "all", "--request-timeout", "30", "--no-color"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=280, check=False
    )
    report = "\n".join(line[:200] for line in (done.stdout + done.stderr).splitlines())
    assert done.returncode == 0, report[-20_000:]
    assert re.search(r"\d{3,} ", done.stdout), done.stdout[-3000:]
    assert "Traceback" not in server.log.read_text()
    assert server.stop() == 0


def test_the_document_names_every_status_with_a_problem(web: WebServer) -> None:
    document = web.get("/openapi.json").json
    for path, item in document["paths"].items():
        for operation in item.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400 and path != "/readyz":
                    assert list(response["content"]) == ["application/problem+json"], (path, status)


def test_the_page_about_the_api_loads_nothing_from_elsewhere(web: WebServer) -> None:
    page = web.get("/docs")
    assert page.headers["Content-Type"].startswith("text/html")
    text = page.body.decode()
    assert "<script" not in text
    assert re.findall(r'(?:src|href)="(?:https?:)?//', text) == []
    for path in web.get("/openapi.json").json["paths"]:
        assert path in text
    assert web.get("/static/docs.css").headers["Content-Type"].startswith("text/css")
