"""The search page without a browser: what its forms mean, and what it says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from web_stand import HttpClient, serve_here

from pipeline.errors import DatabaseFailed
from pipeline.search.product_catalogue import Condition
from pipeline.settings import Settings
from web.context import Web
from web.pages.question import Question
from web.pages.view import facts_of
from workers.dispatch import CeleryDispatcher
from workers.resources import Resources


@pytest.fixture
def served(settings: Settings) -> Iterator[tuple[HttpClient, Web]]:
    settings.data_dir.mkdir()
    with serve_here(Resources(settings, CeleryDispatcher(settings.redis_url))) as served:
        yield served


def test_without_product_data_the_page_names_the_command_that_imports_it(
    served: tuple[HttpClient, Web],
) -> None:
    answer = served[0].get("/")
    assert answer.status == 200
    assert "<code>imgrec import-catalogue FILE</code>" in answer.body.decode()


def test_a_match_shows_what_its_variants_differ_in_and_booleans_as_words() -> None:
    match = {
        "product_id": "shirt",
        "product": {"Title": "Shirt", "size": "S", "price": 9.5, "sale": True, "new": False},
        "variants": {"size": ["S", "M"], "price": [9.5, 12], "new": [False, True]},
    }
    assert facts_of(match) == [
        ("size", "S, M"),
        ("price", "9.50 to 12"),
        ("sale", "yes"),
        ("new", "no, yes"),
    ]
    assert facts_of({"product_id": "shirt"}) == []


@pytest.mark.parametrize("value", ["=L", "<5", ">=2", "!x", '"L"', '"', "a=b", "M"])
@pytest.mark.parametrize("column", ["size", "a<b", 'in "quotes"'])
def test_a_filter_means_the_value_that_was_chosen(column: str, value: str) -> None:
    body = Question.of({"text": "shirt", f"f.{column}": value}).body("local")
    assert [Condition.parse(text) for text in body.where] == [Condition(column, "=", value)]


def test_a_range_keeps_its_bounds() -> None:
    fields = {"text": "shirt", "min.price": "5", "max.price": "7.5"}
    conditions = [Condition.parse(text) for text in Question.of(fields).body("local").where]
    assert conditions == [Condition("price", ">=", "5"), Condition("price", "<=", "7.5")]


def test_an_empty_image_is_refused_with_its_name(served: tuple[HttpClient, Web]) -> None:
    client, _ = served
    answer = client.upload("/results", b"", "shoe.jpg", csrf_token="local")
    assert answer.status == 422
    assert "The image &#39;shoe.jpg&#39; cannot be used: the file is empty" in answer.body.decode()
    # A form sends a field without a name of a file where none was chosen.
    none_chosen = client.upload("/results", b"", "", csrf_token="local")
    assert none_chosen.status == 200
    assert "Find products that look alike" in none_chosen.body.decode()


def test_a_sentence_on_the_page_holds_no_control_character(served: tuple[HttpClient, Web]) -> None:
    answer = served[0].get("/?text=shoe&min.price=%00%E2%80%AE1")
    assert answer.status == 422
    assert r"price &#39;\x00\u202e1&#39;: enter a number" in answer.body.decode()


def test_the_page_searches_while_the_database_refuses_to_tell_what_can_be_filtered_by(
    served: tuple[HttpClient, Web], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, web = served

    def fail() -> None:
        raise DatabaseFailed("The database has no room.")

    monkeypatch.setattr(web.resources.facets, "get", fail)
    answer = client.get("/")
    assert answer.status == 200
    assert "Find products that look alike" in answer.body.decode()
