"""The command that reads a shop's own catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.feed_source import FileOrAddress, opened
from cli.output import counted, echo, echo_err, json_option, print_json
from cli.progress import work_bar
from cli.wiring import Wiring, pass_wiring
from pipeline.errors import ImgrecError
from pipeline.feeds.columns import Type
from pipeline.feeds.names import FORMATS
from workers.routes import QUERY

if TYPE_CHECKING:
    from pipeline.feeds.feed import Feed
    from pipeline.feeds.records import Problem
    from pipeline.feeds.staging import Staging
    from pipeline.store.catalogue_import import Outcome
    from workers.resources import Resources

SHOWN = 20  # problems of a kind; --json lists more
PATHS = 500  # of the index that are looked up at once


class ColumnType(click.ParamType[tuple[str, Type]]):
    """COLUMN=TYPE."""

    name = "column=type"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, Type]:
        column, equals, name = value.rpartition("=")
        if not equals or not column:
            self.fail(f"'{value}' is not of the form COLUMN=TYPE.", param, ctx)
        try:
            return column.strip(), Type(name.strip().lower())
        except ValueError:
            self.fail(f"'{name}' is not a type. Types: {', '.join(Type)}.", param, ctx)


@click.command("import-catalogue")
@click.argument("source", metavar="FILE|URL", type=FileOrAddress())
@click.option(
    "--name",
    default="",
    metavar="NAME",
    help="Name of the feed, for 'enqueue-rebuild feed:NAME'; default: the name of the file.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="auto",
    show_default=True,
    help="The kind of file; auto looks at its content.",
)
@click.option(
    "--type",
    "types",
    type=ColumnType(),
    multiple=True,
    help="Set a column's type instead of detecting it, e.g. sku=text. Types: "
    f"{', '.join(Type)}. Can be repeated.",
)
@click.option(
    "--id-column", default="", metavar="NAME", help="The column that identifies a product."
)
@click.option(
    "--encoding", default="", metavar="NAME", help="The encoding of the file, e.g. cp1252."
)
@click.option("--replace", is_flag=True, help="Delete every product that is not in the file.")
@click.option("--dry-run", is_flag=True, help="Show what would be imported; change nothing.")
@json_option
@pass_wiring
def import_catalogue(
    wiring: Wiring,
    source: str,
    name: str,
    form: str,
    types: tuple[tuple[str, Type], ...],
    id_column: str,
    encoding: str,
    replace: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Import product data from a table or a product feed.

    FILE is a table (CSV or TSV, in the usual encodings and with the usual delimiters) with a
    header, a .jsonl file with one object on each line, a Parquet file, a feed for Google Merchant
    (XML or TSV), or an export of Shopify or WooCommerce; each may be compressed with gzip. A URL is
    downloaded if it has changed since its last import. The column 'product_id' identifies a
    product. The column 'image' names an image of the product, relative to the products folder, or
    its address; a product with several images has several rows. Without it, a product's images are
    the image of its name and those in the folder of its name. All other columns are shown in
    results and can be used with --where. An import changes the columns that the file has and leaves
    the rest.
    """
    from pipeline.allowed_hosts import AllowedHosts
    from pipeline.feeds.read_feed import read_feed
    from pipeline.feeds.staging import Staging
    from pipeline.fetch.feed_file import default_name, require_name
    from pipeline.store.catalogue_import import import_feed

    name = name or default_name(source)
    require_name(name)
    resources = wiring.resources
    if not dry_run:
        resources.require_agreement_of_running((QUERY,), "database")
    reading = {"form": form, "encoding": encoding, "identified_by": id_column}
    how = {**reading, "types": dict(types), "replace": replace}
    hosts = AllowedHosts.parse(wiring.settings.fetch_hosts, star=True)
    with opened(resources, source, name, how, dry_run, as_json) as found, Staging() as staging:
        if found is None:
            _tell_unchanged(name, as_json)
            return
        file, origin = found
        shown = origin.source
        with work_bar("reading", None, as_json) as report:
            feed = read_feed(
                file, staging, shown=shown, private=hosts.networks, report=report, **reading
            )
        with work_bar("importing", feed.n_items, as_json) as report:
            outcome = import_feed(
                resources.database,
                feed,
                dict(types),
                replace=replace,
                dry_run=dry_run,
                origin=origin,
                report=report,
            )
        indexed, stranger = (None, "") if dry_run else _count_indexed(resources, staging)
    if as_json:
        print_json({**_summary(feed, outcome, indexed, dry_run), "feed": name, "unchanged": False})
    else:
        _show(feed, outcome, indexed, dry_run)
    _tell(feed, outcome)
    if outcome.urls and not dry_run:
        echo_err(f"'imgrec enqueue-rebuild feed:{name}' fetches and indexes the images.")
    elif indexed is None and not dry_run:
        echo_err("No index yet: 'imgrec enqueue-rebuild FOLDER' creates one.")
    elif stranger:
        echo_err(
            f"{outcome.products - (indexed or 0)} of them have no image in the index, e.g. "
            f"'{stranger}'. A product_id is the path of an image without its suffix, or of a "
            "folder of images, unless the column 'image' names the images."
        )


def _tell_unchanged(name: str, as_json: bool) -> None:
    if as_json:
        print_json({"feed": name, "unchanged": True})
    else:
        echo(f"The feed '{name}' has not changed since its last import: nothing was imported.")


def _count_indexed(resources: Resources, staging: Staging) -> tuple[int | None, str]:
    """Count the products of the file that have an image in the index, and name one without."""
    try:
        paths = resources.versions.current().paths
    except ImgrecError:
        return None, ""
    for start in range(0, len(paths), PATHS):
        staging.mark_indexed(resources.products.owners(list(paths[start : start + PATHS])))
    return staging.count_indexed()


def _summary(feed: Feed, outcome: Outcome, indexed: int | None, dry_run: bool) -> dict[str, Any]:
    problems = feed.problems
    return {
        "products": outcome.products,
        "items": feed.n_items,
        "new": outcome.n_new,
        "removed": outcome.removed,
        "images": outcome.images,
        "image_urls": outcome.urls,
        "columns": list(outcome.columns),
        "types": {
            name: {
                "type": column.type.value,
                "values": feed.finders[name].values,
                "currencies": dict(feed.finders[name].currencies)
                if column.type == Type.NUMBER
                else {},
                "misfits": misfits[0] if (misfits := _misfits(feed, outcome, name)) else 0,
                "misfit_lines": misfits[1] if misfits else [],
            }
            for name, column in outcome.columns.items()
        },
        "bad_rows": problems.bad_rows,
        "bad": _listed(problems.bad),
        "n_warnings": problems.n_warnings,
        "warnings": _listed(problems.warnings),
        "notes": problems.notes,
        "unknown": outcome.unknown,
        "emptied": dict(outcome.emptied),
        "total": outcome.total,
        "indexed": indexed,
        "format": feed.format,
        "encoding": feed.encoding,
        "dry_run": dry_run,
    }


def _listed(problems: list[Problem]) -> list[dict[str, Any]]:
    return [{"line": problem.line, "reason": problem.reason} for problem in _by_line(problems)]


def _by_line(problems: list[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda problem: problem.line)


def _misfits(feed: Feed, outcome: Outcome, name: str) -> tuple[int, list[int]] | None:
    misfits = feed.finders[name].misfits.get(outcome.columns[name].type)
    return (misfits.count, misfits.lines) if misfits and misfits.count else None


def _show(feed: Feed, outcome: Outcome, indexed: int | None, dry_run: bool) -> None:
    counts = f"{outcome.n_new:,} new"
    if outcome.removed:
        counts += f", {outcome.removed:,} removed"
    index = f", {indexed:,} of them in the index" if indexed is not None else ""
    verb, products = "Would import" if dry_run else "Imported", counted(outcome.products, "product")
    echo(f"{verb} {products} ({counts}){index}. Products in total: {outcome.total:,}.")
    if outcome.images or outcome.urls:
        echo(
            f"Images: {counted(outcome.images, 'file')}, {counted(outcome.urls, 'address', 'es')}."
        )
    width = max((len(name) for name in outcome.columns), default=0)
    for name, column in outcome.columns.items():
        finder = feed.finders[name]
        line = f"  {name:<{width}}  {column.type:<10}  {counted(finder.values, 'value')}"
        if column.type == Type.NUMBER and finder.currencies:
            line += f" ({', '.join(f'{c} {n:,}' for c, n in finder.currencies.most_common())})"
        if misfits := _misfits(feed, outcome, name):
            count, lines = misfits
            more = ", ..." if count > len(lines) else ""
            line += f", {count:,} not {column.type}s: rows {', '.join(map(str, lines))}{more}"
        if column.type == Type.IDENTIFIER and not finder.named_identifier and finder.code:
            line += f", such as {finder.code[0]} in row {finder.code[1]}"
        echo(line)


def _tell(feed: Feed, outcome: Outcome) -> None:
    """Say what was left out or changed."""
    problems = feed.problems
    for note in problems.notes:
        echo_err(note)
    for name, column in outcome.columns.items():
        finder = feed.finders[name]
        if column.type == Type.NUMBER and finder.either:
            number = column.read(finder.either[0])[0]
            echo_err(
                f"In '{name}', values like {finder.either[0]} can be read in two ways; this one "
                f"was read as {number}."
            )
    _list(problems.bad, problems.bad_rows, "Line {} was not imported: {}.")
    _list(problems.warnings, problems.n_warnings, "Line {}: {}.")
    if outcome.emptied:
        columns = ", ".join(f"{name} {count:,}" for name, count in outcome.emptied.items())
        echo_err(
            f"Removed {counted(sum(outcome.emptied.values()), 'value')}, because the cell is empty "
            f"in this file: {columns}."
        )
    if outcome.n_unknown:
        names = ", ".join(outcome.unknown[:SHOWN])
        more = ", ..." if outcome.n_unknown > SHOWN else ""
        echo_err(
            f"Left out {counted(outcome.n_unknown, 'row')}, because the catalogue does not have "
            f"the product: {names}{more}."
        )
    elif outcome.n_new and outcome.n_new < outcome.products:
        names = ", ".join(outcome.new[:SHOWN])
        echo_err(f"New products: {names}{', ...' if outcome.n_new > SHOWN else ''}.")


def _list(problems: list[Problem], count: int, sentence: str) -> None:
    for problem in _by_line(problems)[:SHOWN]:
        echo_err(sentence.format(problem.line, problem.reason))
    if count > SHOWN:
        echo_err(f"... and {count - SHOWN:,} more like these; --json lists them.")
