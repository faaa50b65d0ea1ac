"""The arithmetic of feedback, its log in both databases, and a report that does not flatter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import WrongUse
from pipeline.search.relevance_feedback import (
    Feedback,
    FeedbackIndex,
    LoggedQuery,
    ndcg,
    penalties,
    report,
    rocchio,
)
from pipeline.store.database import Database
from pipeline.store.feedback import FeedbackLog

X, Y, Z = np.eye(3, dtype=np.float32)


def logged(
    query_id: str = "q1", at: float = 10.0, user: str = "", vector: np.ndarray = X
) -> LoggedQuery:
    matches = (("a", 0.9), ("b", 0.8), ("c", 0.7))
    return LoggedQuery(query_id, at, user, "v0001", "kind", matches, vector)


def feedback(
    query: LoggedQuery, product: str, action: str, user: str = "", at: float = 11.0
) -> Feedback:
    rank = [name for name, _ in query.matches].index(product) + 1
    return Feedback(query.query_id, product, user, action, at, rank, "v0001", "kind", query.vector)


def test_rocchio_adds_three_quarters_of_the_liked_and_takes_away_some_of_the_disliked() -> None:
    moved = rocchio(X, Y, Z)
    np.testing.assert_allclose(moved, np.array([1, 0.75, -0.15]) / np.sqrt(1 + 0.5625 + 0.0225))
    np.testing.assert_allclose(rocchio(X, None, None), X)


def test_sinking_counts_people_and_weighs_likes_against() -> None:
    query = logged()
    three = [feedback(query, "a", "dislike", user) for user in ("u", "v", "w")]
    assert penalties(three, 0.2) == {"a": pytest.approx(0.5 * 0.8 * 3 / (3 + 0 + 3))}
    liked = [*three, *(feedback(query, "a", "like", user) for user in ("x", "y", "z"))]
    assert penalties(liked, 0.2)["a"] == pytest.approx(0.5 * 0.8 * 3 / 9)
    assert penalties([feedback(query, "a", "dislike", "u")] * 9, 0.2) == {}  # one person


def test_only_feedback_on_like_queries_and_from_before_counts() -> None:
    near, far = logged("near", vector=X), logged("far", vector=Y)
    index = FeedbackIndex([feedback(far, "a", "like", at=1), feedback(near, "b", "like", at=5)])
    assert [one.product_id for one in index.similar_to(X, 0.9)] == ["b"]
    assert index.similar_to(X, 0.9, before=5) == []
    assert FeedbackIndex([]).similar_to(X, 0.0) == []


def test_ndcg_is_one_for_the_best_order_and_by_hand_for_another() -> None:
    assert ndcg([3, 2, 0]) == pytest.approx(1)
    assert ndcg([0, 1]) == pytest.approx(1 / np.log2(3))
    assert ndcg([0, 0]) is None


def test_a_query_is_logged_once_and_comes_back_whole(database: Database) -> None:
    log = FeedbackLog(database)
    query = logged(user="ann", vector=np.array([0.6, 0.8, 0.0], np.float32))
    log.put_queries([query, query])
    log.put_queries([query])
    (back,) = log.queries()
    assert (back.query_id, back.user, back.matches) == ("q1", "ann", query.matches)
    np.testing.assert_array_equal(back.vector, query.vector)
    assert log.queries("another kind") == []
    log.forget_queries(days=90)
    assert log.query("q1") is None


def test_feedback_counts_once_and_the_last_of_like_and_dislike_holds(database: Database) -> None:
    log, query = FeedbackLog(database), logged(user="ann")
    log.put_queries([query])
    start = log.revision()
    for at, action in enumerate(("click", "like", "like", "dislike")):
        log.add(query, "b", action, "", float(at))
    entries = log.newest("kind")
    assert sorted(one.action for one in entries) == ["click", "dislike"]
    assert {(one.user, one.rank, one.index_version) for one in entries} == {("ann", 2, "v0001")}
    log.add(query, "b", "like", "bob", 9.0)
    assert len(log.newest("kind")) == 3
    assert log.revision() == start + 5
    log.forget_queries(days=90)
    assert len(log.newest("kind")) == 3  # feedback outlives the log
    with pytest.raises(WrongUse, match=r"has no match 'z'\. Its matches: a, b, c"):
        log.add(query, "z", "like", "", 1.0)


def test_the_report_counts_by_rank_and_never_uses_feedback_on_its_own_query() -> None:
    queries = [logged("q1", 10), logged("q2", 20), logged("q3", 30)]
    entries = [
        feedback(queries[0], "c", "like", at=11),
        feedback(queries[1], "c", "click", at=21),
        feedback(queries[1], "c", "purchase", at=22),
        feedback(queries[2], "a", "dislike", at=31),
    ]
    index, seen = FeedbackIndex(entries), []

    def rerank(query: LoggedQuery) -> list[float]:
        similar = index.similar_to(query.vector, 0.9, before=query.asked_at)
        seen.append([one.query_id for one in similar])
        liked = {one.product_id for one in similar}
        return [score + (1 if product in liked else 0) for product, score in query.matches]

    answer = report(queries, entries, rerank)
    assert seen == [[], ["q1"]]  # q3 has nothing that is worth a rank
    assert answer["actions"] == {"like": 1, "purchase": 1, "click": 1, "dislike": 1}
    assert (answer["queries"], answer["with_feedback"]) == (3, 3)
    assert [(row["shown"], row["taken"]) for row in answer["by_rank"]] == [(3, 0), (3, 0), (3, 2)]
    assert answer["by_rank"][2]["rate"] == pytest.approx(2 / 3, abs=1e-4)
    third = 1 / np.log2(4)
    assert answer["ndcg"]["queries"] == 2
    assert answer["ndcg"]["before"] == pytest.approx(third, abs=1e-4)
    assert answer["ndcg"]["after"] == pytest.approx((third + 1) / 2, abs=1e-4)


def test_a_rank_that_was_never_shown_has_no_rate() -> None:
    """Somebody opened the first page and the third, and one beyond the last match."""
    pages = [logged("q1", 10), replace(logged("q2", 20), first_rank=7)]
    beyond = replace(logged("q3", 30), first_rank=10_001, matches=())
    answer = report([*pages, beyond], [feedback(pages[1], "a", "like", at=21)], lambda query: [])
    ranks = [(row["rank"], row["shown"], row["taken"]) for row in answer["by_rank"]]
    assert ranks == [(1, 1, 0), (2, 1, 0), (3, 1, 0), (7, 1, 1), (8, 1, 0), (9, 1, 0)]


def test_an_empty_log_is_a_report_of_nothing() -> None:
    answer = report([], [], lambda query: [])
    assert answer["by_rank"] == []
    assert answer["ndcg"] == {"queries": 0, "depth": 10, "before": None, "after": None}
