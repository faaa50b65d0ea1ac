"""Commands that ask the index: query and result."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import click

from cli import ask
from cli.classify import show_classes
from cli.output import print_json, say, table
from pipeline.errors import TimedOut
from pipeline.images import Limits, decode, encode_jpeg
from pipeline.settings import Settings, load_settings


@click.command()
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--top-k", type=click.IntRange(1, 1000), help="Matches to show; default TOP_K.")
@click.option("--wait", is_flag=True, help="Wait for the answer and show it.")
@click.option(
    "--timeout",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds to wait.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a page with the pictures to this file (waits).",
)
def query(
    image: Path,
    top_k: int | None,
    wait: bool,
    timeout: float,
    as_json: bool,
    html: Path | None,
) -> None:
    """Find the products that look like an image."""
    settings = load_settings()
    data = ask.message(image, settings)
    from workers import flow

    flow.require_redis()
    query_id = uuid.uuid4().hex
    args = (data, top_k or settings.top_k)

    def send() -> None:
        ask.send("imgrec.query_image", query_id, args, timeout)

    send()
    if not (wait or html):
        if as_json:
            print_json({"query_id": query_id})
        else:
            click.echo(query_id)
            say(f"'imgrec result {query_id}' shows the answer.")
        return
    answer = ask.wait_for(query_id, timeout, send)
    if html:
        from cli.page import write_page

        write_page(html, image.name, _shown(data, settings), answer, _pictures(answer, timeout))
        say(f"Wrote {html}.")
    _show(answer, as_json)


@click.command()
@click.argument("query_id")
@click.option("--wait", is_flag=True, help="Wait for the answer if it is not there yet.")
@click.option(
    "--timeout",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds to wait.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def result(query_id: str, wait: bool, timeout: float, as_json: bool) -> None:
    """Show the answer of an earlier query or classification."""
    from workers import flow

    flow.require_redis()
    try:
        answer = ask.wait_for(query_id, timeout if wait else 0.0)
    except TimedOut as error:
        raise TimedOut(
            f"There is no answer under the id {query_id}: it is not there yet (--wait waits for "
            "it), older than an hour, or was never asked for."
        ) from error
    if "category" in answer:
        show_classes(answer, as_json)
    else:
        _show(answer, as_json)


def _pictures(answer: dict[str, Any], timeout: float) -> dict[str, str]:
    """Ask a worker for the matches' pictures: this machine may not see the products folder."""
    from celery import current_app
    from celery.exceptions import TimeoutError as NoAnswer
    from kombu.exceptions import OperationalError
    from redis.exceptions import RedisError

    from workers import flow

    names = [match["filename"] for match in answer["matches"]]
    try:
        pending = current_app.send_task(
            "imgrec.pictures", args=(answer["index_version"], names), queue=flow.QUERY
        )
        found: dict[str, str] = pending.get(timeout=max(timeout, 1.0))
    except NoAnswer as error:
        raise TimedOut("The matches were found, but their pictures did not come.") from error
    except (OperationalError, RedisError) as error:
        raise flow.redis_away() from error
    return found


def _shown(data: bytes, settings: Settings) -> bytes:
    """Return the query's picture in a format that a browser shows, which TIFF is not."""
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return data
    limits = Limits(settings.max_image_pixels, settings.max_image_bytes)
    return encode_jpeg(decode(data, limits, settings.preprocess_bg_color))


def _show(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    rows = [
        [match["rank"], match["product_id"], f"{match['score']:.4f}", f"{match['distance']:.4f}"]
        for match in answer["matches"]
    ]
    title = f"Matches in index {answer['index_version']}"
    table(title, ["rank", "product", "score", "distance"], rows, {"rank", "score", "distance"})
