"""Commands that record feedback on matches, and judge rankings by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.output import echo_err, json_option, print_fields, print_json, print_table
from cli.wiring import Wiring, pass_wiring
from pipeline.errors import ImgrecError, NotFound, WrongUse
from workers.routes import QUERY

if TYPE_CHECKING:
    from workers.resources import Resources


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
    """Record feedback on matches, and judge rankings by it.

    imgrec feedback QUERY_ID PRODUCT_ID --like
    """


@feedback.command()
@click.argument("query_id")
@click.argument("product_id")
@click.option("--like", "actions", flag_value="like", multiple=True, help="The user liked it.")
@click.option(
    "--dislike", "actions", flag_value="dislike", multiple=True, help="The user disliked it."
)
@click.option(
    "--click", "actions", flag_value="click", multiple=True, help="The user looked at it."
)
@click.option(
    "--purchase", "actions", flag_value="purchase", multiple=True, help="The user bought it."
)
@click.option(
    "--user", default="", help="User who gives the feedback; default: the --user of the query."
)
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
    """Record feedback on one match of a query."""
    if len(actions) != 1:
        raise WrongUse("Give exactly one of --like, --dislike, --click and --purchase.")
    log = wiring.resources.feedback_log
    try:
        query = log.wait_for_query(query_id)
    except NotFound:
        wiring.resources.require_agreement_of_running((QUERY,), "database")
        raise
    entry = log.add(query, product_id, actions[0], user, log.now())
    if as_json:
        print_json(entry.object())
    else:
        by = f" by {entry.user}" if entry.user else ""
        echo_err(f"Recorded: {entry.action}{by} for match {entry.rank} of query {query_id}.")


@feedback.command()
@json_option
@pass_wiring
def report(wiring: Wiring, as_json: bool) -> None:
    """Show how often each rank was taken, and nDCG without and with feedback.

    Covers the newest 20,000 logged queries. A query is logged a moment after it is answered.
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
        ("feedback", counts),
    ]
    if ndcg["queries"]:
        rows.append((f"nDCG@{ndcg['depth']} by similarity alone", f"{ndcg['before']:.4f}"))
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
    echo_err("Each query is re-ranked with the feedback given before it, and judged by its own.")


def _report(resources: Resources) -> dict[str, Any]:
    """Judge the log of the published index's fingerprint; without an index, count only."""
    from pipeline.search.catalogue_filter import IndexedCatalogue
    from pipeline.search.rank import rerank
    from pipeline.search.relevance_feedback import FeedbackIndex
    from pipeline.search.relevance_feedback import report as judge

    log = resources.feedback_log
    try:
        version = resources.versions.current()
    except ImgrecError as error:
        echo_err(f"Rankings are not judged: {error}")
        return judge(log.queries(), log.newest(), lambda query: None)
    indexed = IndexedCatalogue(version, resources.products.catalogue())
    feedback = log.newest(version.fingerprint)
    index, quantiles = FeedbackIndex(feedback), version.random_pairs["quantiles"]
    return judge(
        log.queries(version.fingerprint),
        feedback,
        lambda query: rerank(query, index, indexed, quantiles),
    )
