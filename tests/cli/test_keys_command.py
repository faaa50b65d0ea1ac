"""Keys of the HTTP API: shown once, listed without their secret, revoked for good."""

from __future__ import annotations

from typing import Any

import pytest
from inline_worker import InlineWorker

from pipeline.store.api_keys import KEY, KeyRing

Run = Any


def ring(inline_worker: InlineWorker) -> KeyRing:
    return inline_worker.resources.api_keys.key_ring()


def test_a_key_is_shown_once_and_only_its_digest_is_stored(
    imgrec: Run, inline_worker: InlineWorker
) -> None:
    done = imgrec("keys", "create", "shop", "--scope", "feedback")
    text = done.out.strip()
    assert (done.code, KEY.fullmatch(text) is not None) == (0, True)
    key = ring(inline_worker).find(text)
    assert key is not None
    assert (key.name, key.scope) == ("shop", "feedback")
    assert [key.allows(scope) for scope in ("search", "feedback", "admin")] == [True, True, False]
    listed = imgrec("keys", "list").out + str(imgrec("keys", "list", "--json").object)
    assert text.split("_", 2)[2] not in listed
    assert key.sha256 not in listed


def test_no_other_text_finds_a_key(imgrec: Run, inline_worker: InlineWorker) -> None:
    text = imgrec("keys", "create", "shop").out.strip()
    other = imgrec("keys", "create", "other").out.strip()
    mixed = "_".join([*text.split("_", 2)[:2], other.split("_", 2)[2]])
    for wrong in ("", text[:-1], text + "x", text.upper(), mixed, f" {text}"):
        assert ring(inline_worker).find(wrong) is None


def test_a_revoked_key_never_works_again_and_its_name_is_free(
    imgrec: Run, inline_worker: InlineWorker
) -> None:
    text = imgrec("keys", "create", "shop").out.strip()
    done = imgrec("keys", "create", "shop")
    assert (done.code, "'imgrec keys revoke shop'" in done.err) == (2, True)
    assert imgrec("keys", "revoke", "shop").code == 0
    assert ring(inline_worker).find(text) is None
    assert imgrec("keys", "revoke", "shop").code == 2
    again = imgrec("keys", "create", "shop").out.strip()
    assert ring(inline_worker).find(again) is not None
    assert ring(inline_worker).find(text) is None
    states = [key["revoked_at"] is None for key in imgrec("keys", "list", "--json").object["keys"]]
    assert states == [False, True]


@pytest.mark.parametrize("name", ["", " x", "a\nb", "x" * 65, "a/b"])
def test_a_name_that_would_confuse_a_list_is_refused(imgrec: Run, name: str) -> None:
    done = imgrec("keys", "create", name)
    assert (done.code, "Invalid name of a key" in done.err) == (2, True)
