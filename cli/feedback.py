"""Commands about what people made of their matches."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from cli.output import echo_err, json_option, print_fields, print_json, print_table
from cli.wiring import Wiring, pass_wiring
from pipeline.errors import ImgrecError, WrongUse

if TYPE_CHECKING:
    from workers.resources import Resources

LOGGED_WITHIN_S = 2.0  # a query is written to the log a moment after its answer


class FeedbackGroup(click.Group):
    """`feedback QUERY_ID PRODUCT_ID --like` is short for `feedback add ...`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["add", *args]
        return super().resolve_command(ctx, args)


@click.group(cls=FeedbackGroup)
def feedback() -> None:
    """Keep what people made of a match; judge rankings.

    imgrec feedback QUERY_ID PRODUCT_ID --like
    """


@feedback.command()
@click.argument("query_id")
@click.argument("product_id")
@click.option("--like", "actions", flag_value="like", multiple=True, help="They liked it.")
@click.option("--dislike", "actions", flag_value="dislike", multiple=True, help="They did not.")
@click.option("--click", "actions", flag_value="click", multiple=True, help="They looked at it.")
@click.option("--purchase", "actions", flag_value="purchase", multiple=True, help="They bought it.")
@click.option("--user", default="", help="Who; default: whom the query was personalized for.")
@json_option
@pass_wiring
def add(
    wiring: Wiring,
    query_id: str,
    product_id: str,
    actions: tuple[str, ...],
    user: str,
    as_json: bool,
) -> None:
    """Keep a verdict about one match of a query."""
    if len(actions) != 1:
        raise WrongUse("Say one of --like, --dislike, --click and --purchase.")
    log = wiring.resources.feedback_log
    deadline = time.monotonic() + LOGGED_WITHIN_S
    while (query := log.query(query_id)) is None:
        if time.monotonic() > deadline:
            raise WrongUse(
                f"There is no query {query_id} in the log: it was not answered, or longer than "
                "QUERY_LOG_DAYS ago."
            )
        time.sleep(0.1)
    given = log.add(query, product_id, actions[0], user, time.time())
    if as_json:
        print_json(
            {
                "query_id": given.query_id,
                "product_id": given.product_id,
                "action": given.action,
                "user": given.who,
                "rank": given.rank,
                "index_version": given.index_version,
            }
        )
    else:
        by = f" by {given.who}" if given.who else ""
        echo_err(f"Kept: {given.action}{by}, rank {given.rank} of query {query_id}.")


@feedback.command()
@json_option
@pass_wiring
def report(wiring: Wiring, as_json: bool) -> None:
    """Show what is taken at which rank, and nDCG without and with feedback.

    Of the newest 20,000 queries in the log.
    """
    answer = _report(wiring.resources)
    if as_json:
        print_json(answer)
        return
    counts = ", ".join(f"{count} {action}" for action, count in answer["actions"].items())
    ndcg = answer["ndcg"]
    rows: list[tuple[str, Any]] = [
        ("queries in the log", answer["queries"]),
        ("with feedback", answer["with_feedback"]),
        ("verdicts", counts),
    ]
    if ndcg["queries"]:
        rows.append((f"nDCG@{ndcg['depth']} by likeness alone", f"{ndcg['before']:.4f}"))
        rows.append((f"nDCG@{ndcg['depth']} with feedback", f"{ndcg['after']:.4f}"))
        rows.append(("over queries", ndcg["queries"]))
    print_fields("Feedback", rows)
    if answer["by_rank"]:
        cells = [[r["rank"], r["shown"], r["taken"], f"{r['rate']:.1%}"] for r in answer["by_rank"]]
        print_table(
            "Taken (liked, clicked or bought), by rank",
            ["rank", "shown", "taken", "rate"],
            cells,
            {"rank", "shown", "taken", "rate"},
        )
    echo_err(
        "Each query is re-ranked with the feedback that was there before it, and judged by its own."
    )


def _report(resources: Resources) -> dict[str, Any]:
    """Judge the log of the published index's kind; without an index, count only."""
    import numpy as np

    from pipeline.search.catalogue_filter import IndexedCatalogue
    from pipeline.search.rank import SIMILAR_QUERY_QUANTILE
    from pipeline.search.relevance_feedback import FeedbackIndex, LoggedQuery, adjust
    from pipeline.search.relevance_feedback import report as judge

    log = resources.feedback_log
    try:
        version = resources.versions.current()
    except ImgrecError as error:
        echo_err(f"No ranking is judged: {error}")
        return judge(log.queries(), log.newest(), lambda query: None)
    shelf = IndexedCatalogue(version, resources.products.catalogue())
    given = log.newest(version.fingerprint)
    opinions, quantiles = FeedbackIndex(given), version.random_pairs["quantiles"]

    def rerank(query: LoggedQuery) -> list[float]:
        similar = opinions.similar_to(
            query.vector, quantiles[SIMILAR_QUERY_QUANTILE], before=query.asked_at
        )
        change = adjust(query.vector, similar, query.who, quantiles["0.5"], shelf.vector_of)
        moved = np.asarray(change.moved, float) - np.asarray(query.vector, float)
        values = []
        for product, score in query.shown:
            vector = shelf.vector_of(product)
            personal = 0.0 if vector is None else float(moved @ vector)
            values.append(score + personal - change.penalties.get(product, 0.0))
        return values

    return judge(log.queries(version.fingerprint), given, rerank)
