"""The log of queries is beside the queries: nothing about it can stop or lose an answer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from live_stack import until

from pipeline.errors import ServerUnavailable
from pipeline.search.relevance_feedback import LoggedQuery
from pipeline.store.database import Database
from pipeline.store.feedback import FeedbackLog
from workers import query_log
from workers.query_log import QueryLog
from workers.watchdog import Watchdog


def shown(number: int) -> LoggedQuery:
    vector = np.array([1, 0], np.float32)
    return LoggedQuery(f"q{number}", 1e12 + number, "", "v0001", "kind", (("a", 0.5),), vector)


class Fragile(FeedbackLog):
    """A log whose database goes away and comes back, and that cannot store one query."""

    away = False
    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def put_queries(self, queries: list[LoggedQuery]) -> None:  # type: ignore[override]
        self.meanwhile()
        if self.away:
            raise ServerUnavailable("The database does not answer.")
        if any(query.query_id == "q13" for query in queries):
            raise ValueError("no database stores this")
        super().put_queries(queries)


def query_log_of(fragile: Fragile, days: int) -> QueryLog:
    return QueryLog(fragile, days, Watchdog(), hung_after_s=600)


@pytest.fixture
def fragile(database: Database) -> Fragile:
    return Fragile(database)


def test_queries_are_written_soon_by_themselves(fragile: Fragile) -> None:
    log = query_log_of(fragile, days=1)
    for number in range(5):
        log.put(shown(number))
    until(lambda: len(fragile.queries()) == 5, "five queries are logged", 20)


def test_an_outage_of_the_database_loses_nothing_and_keeps_the_order(
    fragile: Fragile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QueryLog, "_run", lambda self: None)  # this test is the thread
    log = query_log_of(fragile, days=1)
    fragile.away = True
    log.put(shown(0))
    with pytest.raises(ServerUnavailable):
        log.flush()
    log.put(shown(1))
    fragile.away = False
    log.flush()
    assert [query.query_id for query in fragile.queries()] == ["q0", "q1"]
    log.flush()
    assert len(fragile.queries()) == 2


def test_a_long_outage_loses_the_oldest_queries(
    fragile: Fragile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QueryLog, "_run", lambda self: None)
    monkeypatch.setattr(query_log, "MOST", 3)
    log = query_log_of(fragile, days=1)
    fragile.away = True
    for number in (0, 1, 2):
        log.put(shown(number))
    fragile.meanwhile = lambda: [log.put(shown(number)) for number in (3, 4)]
    with pytest.raises(ServerUnavailable):
        log.flush()
    fragile.meanwhile = lambda: None
    log.put(shown(5))
    fragile.away = False
    log.flush()
    assert [query.query_id for query in fragile.queries()] == ["q3", "q4", "q5"]


def test_a_query_that_cannot_be_stored_does_not_block_the_others(
    fragile: Fragile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QueryLog, "_run", lambda self: None)
    log = query_log_of(fragile, days=1)
    log.put(shown(13))
    with pytest.raises(ValueError, match="no database"):
        log.flush()
    log.put(shown(1))
    log.flush()
    assert [query.query_id for query in fragile.queries()] == ["q1"]


def test_old_queries_are_forgotten_and_zero_days_keep_none(
    fragile: Fragile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QueryLog, "_run", lambda self: None)
    monkeypatch.setattr(query_log.time, "time", lambda: 1e12 + 2 * 86_400 + 5)
    log = query_log_of(fragile, days=2)
    log.put(shown(0))
    log.put(shown(9))
    log.flush()
    assert [query.query_id for query in fragile.queries()] == ["q9"]
    none = query_log_of(fragile, days=0)
    none.put(shown(11))
    none.flush()
    assert len(fragile.queries()) == 1
