"""A look at a store that is repeated."""

from __future__ import annotations

import threading

import pytest
from live_stack import until

from pipeline.errors import ServerUnavailable
from pipeline.storage.follower import Follower


class Looker:
    def __init__(self) -> None:
        self.looks = 0
        self.fails = False
        self.follower = Follower("a looker", self.look, 0.005)

    def look(self) -> None:
        self.looks += 1
        if self.fails:
            raise ServerUnavailable("The store does not answer.")


def threads() -> int:
    return sum(thread.name == "a looker" for thread in threading.enumerate())


def test_a_look_is_repeated_until_nobody_holds_the_looker() -> None:
    held = [Looker()]
    for _ in range(3):
        held[0].follower.start()
    until(lambda: held[0].looks > 5, "the looks are repeated", 20)
    assert threads() == 1
    held.clear()
    until(lambda: threads() == 0, "the thread ends", 20)


def test_trouble_is_told_once_and_outlived(caplog: pytest.LogCaptureFixture) -> None:
    looker = Looker()
    looker.fails = True
    with caplog.at_level("INFO"):
        looker.follower.start()
        until(lambda: looker.looks > 5, "the looks are repeated", 20)
        looker.fails = False
        until(lambda: "can be read again" in caplog.text, "the end of the trouble is told", 20)
    assert caplog.text.count("The store does not answer.") == 1
