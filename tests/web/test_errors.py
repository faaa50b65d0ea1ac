"""Errors: a page for who looks at it, a problem for programs, and never what went wrong inside."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError
from web_stand import HttpClient, serve_here

from pipeline import errors
from pipeline.settings import Settings
from pipeline.store.api_keys import ApiKeys
from pipeline.store.database import Database
from web.context import Web
from web.problems import describe, invalid_sentence, public_sentence
from web.schemas import SearchBody
from workers.dispatch import CeleryDispatcher
from workers.resources import Resources

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
SECRET = "password=hunter2 in /srv/shop/secret.txt"


@pytest.fixture
def served(settings: Settings) -> Iterator[tuple[HttpClient, Web]]:
    settings.data_dir.mkdir()
    with serve_here(Resources(settings, CeleryDispatcher(settings.redis_url))) as served:
        yield served


def page(client: HttpClient, path: str, status: int, **headers: str) -> str:
    answer = client.get(path, headers={**BROWSER, **headers})
    assert answer.status == status
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["Cache-Control"] == "no-store"
    return answer.body.decode()


@pytest.mark.parametrize("path", ["/nothing", "/static/none.css", "/jobs/x/y", "/%00"])
def test_a_browser_sees_a_page_where_there_is_nothing(
    served: tuple[HttpClient, Web], path: str
) -> None:
    client, _ = served
    text = page(client, path, 404)
    assert "<h1>Not found</h1>" in text
    assert "No page has this address" in text
    assert 'href="/jobs"' in text  # the local person is an admin
    assert "There is nothing at this address" in client.get(path).detail


def test_a_page_says_which_job_there_is_not(served: tuple[HttpClient, Web]) -> None:
    assert "There is no job &#39;x&#39;" in page(served[0], "/jobs/x", 404)


def test_the_api_answers_a_browser_with_a_problem(served: tuple[HttpClient, Web]) -> None:
    client, _ = served
    for path in ("/v1/nothing", "/v1/jobs/x", "/v1/products/%2e%2e"):
        answer = client.get(path, headers=BROWSER)
        assert answer.status in (404, 503)
        assert answer.detail


def test_a_stranger_sees_an_error_page_without_the_links_of_others(
    served: tuple[HttpClient, Web], settings: Settings
) -> None:
    client, web = served
    _, key = ApiKeys(Database(settings.database_url)).create("shop", "search")
    web.resources.key_ring.get()
    text = page(client, "/nothing", 404)
    assert 'href="/jobs"' not in text
    assert "Log out" not in text
    text = page(client, "/jobs", 403, Cookie=f"imgrec_key={key}")
    assert "<h1>Not allowed</h1>" in text
    assert "has the scope &#39;search&#39;" in text
    assert "<h1>Not allowed</h1>" in page(client, "/metrics", 401)


@pytest.mark.parametrize("path", ["/v1/index", "/index"])
def test_a_bug_tells_nothing_of_itself(
    served: tuple[HttpClient, Web], monkeypatch: pytest.MonkeyPatch, path: str, caplog: Any
) -> None:
    client, web = served

    def fail() -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(web.resources.versions, "current", fail)
    monkeypatch.setattr(web.resources.versions, "current_name", fail)
    if path == "/index":
        text = page(client, path, 500)
        assert "<h1>This did not work</h1>" in text
    else:
        answer = client.get(path)
        assert (answer.status, answer.headers["X-Content-Type-Options"]) == (500, "nosniff")
        text = answer.detail
    assert "the log of the server says why" in text
    assert "hunter2" not in text
    assert "/srv" not in text
    assert SECRET in caplog.text  # once, with its traceback
    assert caplog.text.count("Traceback") == 1
    seen = {key[1:] for key in web.metrics.requests._metrics}
    assert (path, "500") in seen


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_cannot_be_used_is_a_sentence_and_no_bug(
    served: tuple[HttpClient, Web], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    client, web = served
    file = web.settings.data_dir / "current"
    file.touch()

    def fail(*args: Any) -> None:
        raise OSError(code, os.strerror(code), str(file))

    for name in ("current", "current_name", "is_published"):
        monkeypatch.setattr(web.resources.versions, name, fail)
    monkeypatch.setattr("web.health.has_heads", fail)
    answer = client.get("/v1/index")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    assert answer.json["type"] == "urn:imgrec:problem:folder-unavailable"
    assert "DATA_DIR (data) cannot be" in answer.detail
    assert os.strerror(code) in answer.detail
    assert str(web.settings.data_dir.parent) not in answer.detail
    assert "<h1>Not available</h1>" in page(client, "/index", 503)
    ready = client.get("/readyz")
    assert ready.status == 503
    assert {"same_data", "index"} <= set(ready.json["missing"])


@pytest.mark.parametrize(
    ("referer", "link"),
    [
        ("{url}/jobs/x?offset=50", "/jobs/x?offset=50"),
        ("", "/"),
        ("http://evil.example/jobs", "/"),
        ("{url}//evil.example/", "/"),
        ("http://[", "/"),
    ],
)
def test_after_a_form_failed_the_page_that_it_is_on_is_tried_again(
    served: tuple[HttpClient, Web], monkeypatch: pytest.MonkeyPatch, referer: str, link: str
) -> None:
    client, web = served

    def fail(job_id: str) -> None:
        raise errors.ServerUnavailable("The database does not answer.")

    monkeypatch.setattr(web.resources.jobs, "get", fail)
    body = b"csrf_token=local"
    headers = {**BROWSER, "Content-Type": "application/x-www-form-urlencoded"}
    headers["Referer"] = referer.format(url=client.url)
    answer = client.post("/jobs/x/cancel", body=body, headers=headers)
    assert answer.status == 503
    assert f'href="{link}">Try again</a>' in answer.body.decode()
    text = page(client, "/jobs/x?offset=50", 503)
    assert 'href="">Try again</a>' in text  # the address itself


@pytest.mark.parametrize(
    ("values", "beginning"),
    [
        ({"min_score": "x"}, "Invalid min_score 'x': "),
        ({"box": "x"}, "Invalid box 'x': "),
        ({"box": [0, 0, "x", 1]}, "Invalid box.2 'x': "),
        ({"image_url": 5}, "Invalid image_url 5: "),
        ({"image_base64": [5]}, "Invalid image_base64"),
        ({"products": {"": 1}}, "Invalid products. '': "),
        ({"products": {"shoe": "x"}}, "Invalid products.shoe 'x': "),
        ({"where": ["a=b", 5]}, "Invalid where.1 5: "),
        ({"colour": "red"}, "Invalid colour 'red': unknown name"),
    ],
)
def test_an_invalid_value_is_named_as_the_client_knows_it(
    values: dict[str, Any], beginning: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        SearchBody.model_validate(values)
    sentence = invalid_sentence(caught.value)
    assert sentence.startswith(beginning)
    assert not re.search(r"\[|constrained", sentence)


KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.ImgrecError)
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_has_the_status_of_its_exit_code(kind: type[errors.ImgrecError]) -> None:
    status, name, sentence = describe(kind("The disk is full."))
    assert sentence == "The disk is full."
    assert name == name.lower()
    if kind.exit_code == 2:
        assert 400 <= status < 500
    elif kind.exit_code in (3, 4) or kind is errors.Overloaded:
        assert status == 503
    else:
        assert status == (504 if kind is errors.TimedOut else 500)


@pytest.mark.parametrize(
    ("sentence", "public"),
    [
        ("No such file: '/srv/shop/a.jpg'.", "No such file: 'a.jpg'."),
        ("It is sqlite:////srv/shop/app.db on vm.", "It is sqlite:///app.db on vm."),
        ("It is /srv/data on vm (id 1a2b).", "It is data on vm (id 1a2b)."),
        ("See http://cdn.example/a/b/c.jpg.", "See http://cdn.example/a/b/c.jpg."),
        ("The product kind0/a/b is unknown.", "The product kind0/a/b is unknown."),
        ("postgresql://me:pw@db/shop", "postgresql://me:***@db/shop"),
        ("Name an image, or query with --text.", "Name an image, or query with 'text'."),
        ("--min-score auto: not with --exclude-text", "'min_score' auto: not with 'not'"),
        ("'imgrec query --text hat' and --full", "'imgrec query --text hat' and --full"),
        ("a--text, --texts, '--text'", "a--text, --texts, '--text'"),
    ],
)
def test_a_sentence_is_about_the_request_and_tells_no_path_and_no_password(
    sentence: str, public: str
) -> None:
    assert public_sentence(sentence) == public


def test_pages_of_allowed_origins_may_call_the_api(settings: Settings) -> None:
    settings.data_dir.mkdir()
    settings = settings.model_copy(update={"cors_origins": "https://shop.example"})
    asks = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    with serve_here(Resources(settings, CeleryDispatcher(settings.redis_url))) as (client, _):
        for origin, allowed in (("https://shop.example", True), ("https://evil.example", False)):
            headers = {"Origin": origin}
            preflight = client.send("OPTIONS", "/v1/search", headers={**headers, **asks})
            answer = client.get("/v1/jobs", headers=headers)
            for each in (preflight, answer):
                granted = each.headers.get("Access-Control-Allow-Origin")
                assert granted == (origin if allowed else None)
                assert "Access-Control-Allow-Credentials" not in each.headers  # no cookies
            assert client.post("/v1/jobs/x/cancel", headers=headers).status == 403  # without a key


def test_an_error_of_a_server_that_is_away_is_a_page_to_come_back_to(
    served: tuple[HttpClient, Web],
) -> None:
    client, _ = served  # nobody listens where Redis should be
    answer = client.get("/?text=shoe", headers=BROWSER)
    assert answer.status == 503
    assert "Redis does not answer" in answer.body.decode()
    problem = client.get("/v1/system")
    assert (problem.status, problem.headers["Retry-After"]) == (503, "5")
    assert "Redis does not answer" in problem.detail
