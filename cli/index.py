"""Commands about index versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli.output import counted, date, echo_err, json_option, print_fields, print_json, print_table
from cli.progress import step_bar, work_bar
from cli.wiring import Wiring, pass_wiring
from pipeline.errors import Conflict, IndexBroken
from workers.routes import QUERY

if TYPE_CHECKING:
    from pipeline.index.versions import Version

ENGINES = ("faiss", "pgvector", "milvus")


@click.group()
def index() -> None:
    """List, inspect and roll back index versions."""


@index.command("list")
@json_option
@pass_wiring
def list_versions(wiring: Wiring, as_json: bool) -> None:
    """List the index versions."""
    store = wiring.resources.versions
    versions = store.versions()
    try:
        current = store.current_name()
    except IndexBroken:  # its advice is to publish one of the versions, so they are listed
        _show_versions(versions, None, as_json)
        raise
    _show_versions(versions, current, as_json)


def _show_versions(versions: list[Version], current: str | None, as_json: bool) -> None:
    from pipeline.index.version_object import version_object

    if as_json:
        objects = [version_object(version, current) for version in versions]
        print_json({"current": current, "versions": objects})
        return
    if not versions:
        echo_err("No index version yet: 'imgrec enqueue-rebuild FOLDER' creates one.")
        return
    rows = [
        [
            "*" if version.name == current else "",
            version.name,
            version.manifest["images"],
            version.manifest["index"]["factory"],
            version.manifest["index"]["recall_at_10"],
            date(version.manifest["created_at"]),
            version.manifest["root"],
        ]
        for version in versions
    ]
    columns = ["", "version", "images", "index", "recall", "created", "folder"]
    print_table("Index versions (* is published)", columns, rows, {"images", "recall"})


@index.command()
@click.argument("version", required=False)
@json_option
@pass_wiring
def info(wiring: Wiring, version: str | None, as_json: bool) -> None:
    """Check every file of a version against its digest, and describe it.

    Default: the published version.
    """
    from pipeline.index.version_object import version_object

    store = wiring.resources.versions
    opened = store.open(version) if version else store.current()
    with work_bar("comparing digests", None, as_json):
        store.verify(opened)
        wiring.resources.engines.verify(opened)
    answer = version_object(opened, store.current_name())
    if as_json:
        print_json(answer)
        return
    answer["created_at"] = date(answer["created_at"])
    print_fields(f"Index {opened.name}", [(key.replace("_", " "), answer[key]) for key in answer])
    echo_err("All files match their digests.")


@index.command()
@click.argument("version", required=False)
@json_option
@pass_wiring
def rollback(wiring: Wiring, version: str | None, as_json: bool) -> None:
    """Publish an earlier version again, without later changes of 'imgrec add' and 'remove'.

    Default: the version before the current one.
    """
    wiring.resources.require_agreement_of_running((QUERY,), "data")
    from workers.rollback import roll_back

    old, new, undone = roll_back(wiring.resources, version)
    if undone:
        echo_err(f"Undone: {counted(undone, 'change')} of 'imgrec add' and 'imgrec remove'.")
    if as_json:
        print_json({"from": old, "to": new.name, "undone": undone})
    else:
        place = old or "an unreadable pointer"
        echo_err(f"Published {new.name} in place of {place}. New queries use it.")


@index.command()
@click.option(
    "--to",
    required=True,
    type=click.Choice(ENGINES),
    help="Engine that searches the index from then on.",
)
@json_option
@pass_wiring
def migrate(wiring: Wiring, to: str, as_json: bool) -> None:
    """Move the published index to another engine.

    Nothing is embedded again, and the previous version is kept for a rollback. If this command is
    interrupted, run it again: it continues.
    """
    from filelock import Timeout

    from pipeline.rebuild.migrate import migrate as move

    resources = wiring.resources
    resources.require_agreement_of_running((QUERY,), "data")
    try:
        with resources.versions.lock(), step_bar(as_json) as report:
            old, new = move(resources.versions, resources.engines, to, report=report)
    except Timeout as error:
        raise Conflict("An index is being published right now; try again shortly.") from error
    if as_json:
        print_json({"from": old.name, "to": new.name, "engine": to})
    elif old.name == new.name:
        echo_err(f"Index {new.name} is in {to} already.")
    else:
        echo_err(f"Published {new.name} in {to} in place of {old.name}. New queries use it.")
