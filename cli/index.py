"""Commands about index versions."""

from __future__ import annotations

import time

import click

from cli.agreement import require_agreement
from cli.output import echo_err, json_option, print_fields, print_json, print_table
from cli.wiring import Wiring, pass_wiring
from workers.routes import QUERY


@click.group()
def index() -> None:
    """List, inspect and roll back index versions."""


@index.command("list")
@json_option
@pass_wiring
def list_versions(wiring: Wiring, as_json: bool) -> None:
    """List the index versions."""
    from pipeline.index.version_object import version_object

    store = wiring.resources.versions
    current, versions = store.current_name(), store.versions()
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
            _date(version.manifest["created_at"]),
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
    store.verify(opened)
    wiring.resources.engines.verify(opened)
    answer = version_object(opened, store.current_name())
    if as_json:
        print_json(answer)
        return
    answer["created_at"] = _date(answer["created_at"])
    print_fields(f"Index {opened.name}", [(key.replace("_", " "), answer[key]) for key in answer])
    echo_err("All files match their digests.")


@index.command()
@click.argument("version", required=False)
@json_option
@pass_wiring
def rollback(wiring: Wiring, version: str | None, as_json: bool) -> None:
    """Publish an earlier version again.

    Default: the version before the current one.
    """
    require_agreement(wiring.resources, (QUERY,), "data")
    old, new = wiring.resources.versions.rollback(version, wiring.resources.engines.verify)
    if as_json:
        print_json({"from": old, "to": new.name})
    else:
        place = old or "an unreadable pointer"
        echo_err(f"Published {new.name} in place of {place}. New queries use it.")


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
