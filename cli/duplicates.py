"""`imgrec duplicates`: images of the index that show the same thing."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.html_page import PageFile
from cli.output import (
    Seconds,
    counted,
    echo_err,
    json_option,
    local_option,
    print_json,
    print_table,
)
from cli.progress import work_bar
from cli.query_options import Score
from cli.wiring import Wiring, pass_wiring
from pipeline.errors import ImgrecError, NotFound, ServerUnavailable, TimedOut, WrongUse
from pipeline.names import nfc
from pipeline.search.query import AUTO
from workers.routes import FIND_DUPLICATES, INDEX, nobody_listens

if TYPE_CHECKING:
    from pipeline.store.duplicates import Search
    from workers.resources import Resources

POLL_S = 0.3
SEND_AGAIN_S = 15.0  # a worker that merges an index has no time meanwhile; sent twice is done once


@click.command()
@click.option(
    "--threshold",
    type=Score(),
    default=AUTO,
    show_default=True,
    help="Lowest score of a pair; auto: pairs that are much closer to each other than to their "
    "other neighbors.",
)
@click.option(
    "--keep",
    type=click.Choice(["best"]),
    help="Propose which image of each group to keep: most pixels, then the sharpest.",
)
@click.option(
    "--not-same",
    nargs=2,
    metavar="A B",
    help="Remember that two images, or two products of one image each, are not the same.",
)
@click.option("--same", nargs=2, metavar="A B", help="Forget that they are not the same.")
@click.option(
    "--timeout",
    default=3600.0,
    show_default=True,
    type=Seconds,
    help="Seconds to wait; the search itself is not limited.",
)
@json_option
@click.option(
    "--html",
    type=PageFile(),
    help="Write an HTML page with the images of the groups.",
)
@local_option
@pass_wiring
def duplicates(
    wiring: Wiring,
    threshold: float | str,
    keep: str | None,
    not_same: tuple[str, str] | None,
    same: tuple[str, str] | None,
    timeout: float,
    as_json: bool,
    html: Path | None,
    local: bool,
) -> None:
    """Find images of the published index that show the same thing.

    An index worker searches once for each index version; then the result is shown at once.
    """
    lowest = _threshold(threshold)
    resources = wiring.local.resources if local else wiring.resources
    if not_same or same:
        _decide(resources, not_same, same, as_json)
        return
    version = resources.versions.current()
    if not local:
        resources.require_agreement_of_running((INDEX,), "database", "data")
    search = resources.duplicates.plan(version.identity, lowest)
    if local:
        resources.dispatcher.send(FIND_DUPLICATES, search.id)
        wiring.local.run_all()
        search = resources.duplicates.get(search.id)
    else:
        search = _wait(resources, search, timeout, as_json)
    if search.error or search.open:
        raise ImgrecError(search.error or f"Another process works on the search {search.id}.")
    answer = _answer(resources, search, keep is not None)
    if as_json:
        print_json(answer)
    else:
        _show(answer)
    if html:
        from cli.duplicates_report import write_duplicates

        write_duplicates(wiring, html, answer, local)


def _threshold(value: float | str) -> float | None:
    if isinstance(value, str):
        return None
    if not 0 < value <= 1:  # NaN is not, either
        raise WrongUse(f"Invalid --threshold {value:g}: must be above 0 and at most 1, or auto.")
    return value


def _decide(
    resources: Resources,
    not_same: tuple[str, str] | None,
    same: tuple[str, str] | None,
    as_json: bool,
) -> None:
    if not_same and same:
        raise WrongUse("Give --not-same or --same, not both.")
    from pipeline.search.catalogue_filter import IndexedCatalogue

    indexed = IndexedCatalogue(resources.versions.current(), resources.products.catalogue())

    def path_of(name: str) -> str:
        if indexed.version.has_path(name):
            return name
        if not name.isascii():  # the disk may have it decomposed, as a Mac writes it
            for path in indexed.version.paths:
                if nfc(path) == nfc(name):
                    return path
        names = indexed.filenames_of(name)
        if len(names) == 1:
            return names[0]
        if names:
            raise WrongUse(f"Product '{name}' has several images; name one: {', '.join(names)}.")
        raise NotFound(f"Index {indexed.version.name} has no image or product '{name}'.")

    one, other = (path_of(name) for name in not_same or same or ())
    if one == other:
        raise WrongUse(f"Name two images; both are '{one}'.")
    resources.duplicates.decide(one, other, same=same is not None)
    if as_json:
        print_json({"image": one, "other": other, "same": same is not None})
    else:
        echo_err(
            f"Forgotten: {one} and {other} may be the same."
            if same
            else f"Remembered: {one} and {other} are not the same."
        )


def _wait(resources: Resources, search: Search, timeout: float, quiet: bool) -> Search:
    """Wait for a search; send it again where nobody works at it."""
    deadline, send_at = time.monotonic() + timeout, 0.0
    with work_bar("comparing", None, quiet) as show:
        while search.open:
            now = time.monotonic()
            if search.is_stale and now >= send_at:
                dispatcher = resources.dispatcher
                if not dispatcher.workers()[INDEX] and not dispatcher.workers(8.0)[INDEX]:
                    raise ServerUnavailable(f"{nobody_listens(INDEX)} Or add --local.")
                if not dispatcher.queue_length(INDEX):
                    dispatcher.send(FIND_DUPLICATES, search.id)
                send_at = now + SEND_AGAIN_S
            elif now >= deadline:
                raise TimedOut(
                    f"The search is not finished after {timeout:g} s; it continues. Run 'imgrec "
                    "duplicates' again to wait for it."
                )
            else:
                time.sleep(POLL_S)
            search = resources.duplicates.get(search.id)
            show(search.looked_at, search.images or None)
    return search


def _answer(resources: Resources, search: Search, keep: bool) -> dict[str, Any]:
    from pipeline.duplicates.pairs import Kind, other_of
    from pipeline.duplicates.result import group_object

    published = resources.duplicates.published(search.id)
    version = resources.versions.current()
    product_of = resources.products.catalogue().product_of
    changed = resources.live_changes.all().since(version).paths
    groups = published.groups(version, product_of, changed)
    answer: dict[str, Any] = {
        "index_version": published.version_name,
        "threshold": AUTO if search.threshold is None else search.threshold,
        "images": len(version.paths),
        "groups": [group_object(group, published.result.facts, product_of) for group in groups],
    }
    if keep:
        answer["remove"] = [
            other_of(pair, group.best)
            for group in groups
            for pair in group.others
            if pair.kind != Kind.SIMILAR
        ]
    return answer


def _show(answer: dict[str, Any]) -> None:
    groups = answer["groups"]
    if not groups:
        echo_err(f"No duplicates among the {answer['images']:,} images of the index.")
        return
    keeps, remove = "remove" in answer, set(answer.get("remove", ()))
    columns = ["group", "image", "kind", "score", "pixels", "bytes", "sharpness"]
    rows = []
    for number, group in enumerate(groups, 1):
        for image in group["images"]:
            known = image["width"] is not None
            row = [
                number,
                image["filename"],
                image["kind"] or "",
                "" if image["score"] is None else f"{image['score']:.4f}",
                f"{image['width']}x{image['height']}" if known else "-",
                f"{image['bytes']:,}" if known else "-",
                f"{image['sharpness']:.0f}" if known else "-",
            ]
            rows.append([*row, *([_advice(image, remove)] if keeps else [])])
    title = f"Duplicates in index {answer['index_version']}: {counted(len(groups), 'group')}"
    numbers = {"group", "score", "pixels", "bytes", "sharpness"}
    print_table(title, [*columns, *(["keep"] if keeps else [])], rows, numbers)
    echo_err("'imgrec duplicates --not-same IMAGE OTHER' separates two that are not the same.")


def _advice(image: dict[str, Any], remove: Collection[str]) -> str:
    if image["kind"] is None:
        return "keep"
    return "remove" if image["filename"] in remove else "look"
