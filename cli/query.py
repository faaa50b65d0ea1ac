"""Commands that ask the index: query and result."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from cli import query_client
from cli.classify import show_classes
from cli.html_page import PageFile, thumbnails
from cli.output import (
    echo,
    echo_err,
    echo_warnings,
    json_option,
    local_option,
    print_json,
    print_table,
    timeout_option,
    wait_option,
)
from cli.query_options import BoxParameter, QueryCommand, Score
from cli.wiring import Wiring, pass_wiring
from pipeline.errors import NotFound, TimedOut
from pipeline.images.decode import Limits, decode, encode_jpeg
from pipeline.images.message_image import message_images
from pipeline.search.query import Box, Query
from pipeline.search.shown_facts import shown_facts
from pipeline.settings import Settings
from workers.routes import QUERY_IMAGE

SHOWN_FACTS = 5  # columns of the catalogue in the table


@click.command(cls=QueryCommand)
@click.argument(
    "images",
    metavar="[IMAGE]...",
    nargs=-1,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option(
    "--image",
    "more_images",
    multiple=True,
    metavar="IMAGE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Another image of the same product; all are averaged. Can be repeated.",
)
@click.option(
    "--text",
    default="",
    help="Find products that match this text; with an image, move the query towards it.",
)
@click.option(
    "--exclude-text", default="", metavar="TEXT", help="Move the query away from this text."
)
@click.option(
    "--weight",
    default=0.5,
    show_default=True,
    help="Weight of the texts relative to the image, 0 to 1.",
)
@click.option("--product", default="", metavar="ID", help="Query with the images of this product.")
@click.option(
    "--where",
    multiple=True,
    metavar="CONDITION",
    help="Filter by product data, e.g. category=shoe or 'price<50'. If repeated, all must hold.",
)
@click.option("--top-k", type=click.IntRange(1, 1000), help="Number of matches.  [default: TOP_K]")
@click.option(
    "--diversity",
    default=0.0,
    help="How strongly to prefer matches that differ from each other, 0 to 1 (MMR).",
    metavar="X",
)
@click.option(
    "--min-score",
    type=Score(),
    help="Leave out matches below this score; auto: the score that 5 % of random pairs exceed.",
)
@click.option("--user", default="", metavar="USER", help="Rank by this user's feedback.")
@click.option(
    "--demote-disliked", is_flag=True, help="Demote products that several users disliked."
)
@click.option(
    "--box",
    type=BoxParameter(),
    help="Search for this part of the image: x,y,width,height, each 0 to 1 of the upright image; "
    "auto: the largest object in it.",
)
@click.option(
    "--collapse",
    type=click.Choice(["duplicates"]),
    help="Show one image of each group that 'imgrec duplicates' found.",
)
@click.option(
    "--sort",
    default="",
    metavar="COLUMN",
    help="Order the 1,000 best matches by a column of the product data; -COLUMN is descending.",
)
@click.option("--offset", default=0, help="Number of matches to skip.", metavar="N")
@click.option("--explain", is_flag=True, help="Show how each match's rank was computed.")
@wait_option
@timeout_option
@json_option
@click.option(
    "--html",
    type=PageFile(),
    help="Write an HTML page with the images of the matches. Implies --wait.",
)
@local_option
@pass_wiring
def query(
    wiring: Wiring,
    images: tuple[Path, ...],
    more_images: tuple[Path, ...],
    text: str,
    exclude_text: str,
    weight: float,
    product: str,
    where: tuple[str, ...],
    top_k: int | None,
    diversity: float,
    min_score: float | str | None,
    user: str,
    demote_disliked: bool,
    box: Box | Literal["auto"] | None,
    collapse: Literal["duplicates"] | None,
    sort: str,
    offset: int,
    explain: bool,
    wait: bool,
    timeout: float,
    as_json: bool,
    html: Path | None,
    local: bool,
) -> None:
    """Find the products that look like an image.

    Query with IMAGE, with --text, with both, or with --product. Several images of one product are
    averaged.
    """
    settings = wiring.settings
    images += more_images
    question = Query(
        top_k=top_k or settings.top_k,
        text=text,
        without=exclude_text,
        weight=weight,
        product=product,
        where=where,
        diverse=diversity,
        min_score=min_score,
        user=user,
        feedback=demote_disliked,
        explain=explain,
        box=box,
        sort=sort,
        offset=offset,
        collapse=collapse or "",
    )
    question.require_subject(len(images))
    data = [query_client.message(image, settings) for image in images]
    args: tuple[Any, ...] = (message_images(data), question.top_k)
    if question.options:  # a plain query stays one that older workers understand
        args += (question.options,)
    pending = query_client.PendingQuery(wiring, QUERY_IMAGE, args, timeout, local)
    if not (wait or html or local):
        if as_json:
            print_json({"query_id": pending.query_id})
        else:
            echo(pending.query_id)
            echo_err(f"'imgrec result {pending.query_id}' shows the result.")
        return
    answer = pending.answer()
    _show(answer, as_json)
    if html:
        from cli.query_report import write_page

        jpegs = _thumbnails(wiring, answer, timeout, local)
        thumbnail = _shown(data[0], settings) if data else None
        write_page(html, _subject(images, question), thumbnail, answer, jpegs)


@click.command()
@click.argument("query_id")
@click.option("--wait", is_flag=True, help="Wait for the result if it is still pending.")
@timeout_option
@json_option
@pass_wiring
def result(wiring: Wiring, query_id: str, wait: bool, timeout: float, as_json: bool) -> None:
    """Show the result of an earlier query or classification."""
    try:
        answer = query_client.wait_for(
            wiring, query_id, timeout if wait else 0.0, QUERY_IMAGE, needs_index=False
        )
    except TimedOut as error:
        raise TimedOut(
            f"No result for ID {query_id}. It may still be pending (use --wait), have expired "
            "(results are kept for 1 hour), or the ID may be wrong."
        ) from error
    if "category" in answer:
        show_classes(answer, as_json)
    elif "matches" in answer:
        _show(answer, as_json)
    else:
        raise NotFound(f"The ID {query_id} is not that of a query or a classification.")


def _thumbnails(
    wiring: Wiring, answer: dict[str, Any], timeout: float, local: bool
) -> dict[str, str]:
    """Return small JPEGs of an answer's matches, base64, by file name."""
    names = [match["filename"] for match in answer["matches"]]
    try:
        return thumbnails(wiring, answer["index_version"], names, timeout, local, quiet=False)
    except TimedOut as error:
        raise TimedOut(
            "The page was not written: the images of the matches did not arrive in time."
        ) from error


def _subject(images: tuple[Path, ...], question: Query) -> str:
    """Say what was asked for, for a title."""
    words = ", ".join(image.name for image in images) or question.product
    if question.text:
        words = f"{words}, {question.text}" if words else f"“{question.text}”"
    return f"{words}, not {question.without}" if question.without else words


def _shown(data: bytes, settings: Settings) -> bytes:
    """Return the query's image in a format that browsers draw."""
    from cli.query_report import media_type

    if media_type(data):
        return data
    return encode_jpeg(decode(data, Limits.of(settings), settings.preprocess_bg_color))


def _show(answer: dict[str, Any], as_json: bool) -> None:
    echo_warnings(answer)
    if as_json:
        print_json(answer)
        return
    matches = answer["matches"]
    if not matches:
        limit = answer.get("min_score")
        why = f": no score reaches {limit:.4f}" if limit is not None else ""
        echo_err(f"No good match in index {answer['index_version']}{why}.")
        return
    product_facts = [shown_facts(match) for match in matches]
    facts = list(dict.fromkeys(name for product in product_facts for name in product))[:SHOWN_FACTS]
    parts = list(dict.fromkeys(name for match in matches for name in match.get("explain", {})))
    columns = ["rank", "product", *facts, "score", "distance", *parts]
    rows = []
    for match, product in zip(matches, product_facts, strict=True):
        explained = match.get("explain", {})
        rows.append(
            [
                match["rank"],
                match["product_id"],
                *(product.get(name, "") for name in facts),
                f"{match['score']:.4f}",
                f"{match['distance']:.4f}",
                *(f"{explained[name]:+.4f}" if name in explained else "" for name in parts),
            ]
        )
    numbers = {"rank", "score", "distance", *parts}
    print_table(f"Matches in index {answer['index_version']}", columns, rows, numbers)
    if search := answer.get("search"):
        echo_err(f"Search: {search}")
