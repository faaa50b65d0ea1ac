"""No host is asked more often, or on more connections, than its limits allow."""

from __future__ import annotations

from collections import Counter

from pipeline.fetch.turns import SILENT_AFTER, HostLimits, Turn, Turns


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def urls(host: str, count: int) -> list[str]:
    return [f"https://{host}/{number}.jpg" for number in range(count)]


def take(turns: Turns) -> Turn:
    turn, _ = turns.take()
    assert turn is not None
    return turn


def test_a_host_has_no_more_connections_than_allowed_and_others_do_not_wait_for_it() -> None:
    turns = Turns([*urls("a.example", 5), *urls("b.example", 5)], HostLimits(2, 1e6), Clock())
    clock = turns._clock
    taken = []
    for _ in range(4):
        clock.now += 1  # type: ignore[attr-defined]
        taken.append(take(turns))
    clock.now += 1  # type: ignore[attr-defined]
    assert Counter(turn.host for turn in taken) == {"a.example": 2, "b.example": 2}
    assert turns.take() == (None, float("inf"))
    turns.done(taken[0], answered=True)
    assert take(turns).host == taken[0].host


def test_a_host_is_asked_no_more_often_a_second_than_allowed() -> None:
    clock = Clock()
    turns = Turns(urls("a.example", 3), HostLimits(9, 4), clock)
    take(turns)
    assert turns.take() == (None, 0.25)
    clock.now += 0.25
    take(turns)
    clock.now += 10  # a pause saves up nothing
    take(turns)
    assert not turns


def test_an_address_comes_again_after_its_pause_with_its_attempt_counted() -> None:
    clock = Clock()
    turns = Turns(urls("a.example", 1), HostLimits(1, 1000), clock)
    first = take(turns)
    turns.done(first, answered=True)
    turns.again(first, 5)
    assert turns
    assert turns.take() == (None, 5.0)
    clock.now += 5
    again = take(turns)
    assert (again.url, again.attempt) == (first.url, 2)


def test_a_host_that_asks_to_wait_is_left_alone_with_all_of_its_addresses() -> None:
    clock = Clock()
    turns = Turns([*urls("a.example", 2), *urls("b.example", 1)], HostLimits(4, 1000), clock)
    first = take(turns)
    assert first.host == "a.example"
    turns.done(first, answered=True)
    turns.again(first, 30, whole_host=True)
    clock.now += 1
    assert take(turns).host == "b.example"
    assert turns.take() == (None, 29.0)
    clock.now += 29
    assert take(turns).host == "a.example"


def test_a_silent_host_is_given_up_and_one_answer_counts_for_it() -> None:
    clock = Clock()
    turns = Turns(urls("a.example", SILENT_AFTER + 10), HostLimits(1, 1e6), clock)
    for number in range(SILENT_AFTER + 4):
        clock.now += 1
        left = turns.done(take(turns), answered=number == 4)
        assert left == []
    clock.now += 1
    left = turns.done(take(turns), answered=False)
    assert len(left) == 5
    assert not turns
