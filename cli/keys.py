"""Commands about the keys of the HTTP API."""

from __future__ import annotations

from typing import Any

import click

from cli.output import date, echo, echo_err, json_option, print_json, print_table
from cli.wiring import Wiring, pass_wiring
from pipeline.store.api_keys import SCOPES, ApiKey


@click.group()
def keys() -> None:
    """Create, list and revoke keys of the HTTP API."""


@keys.command()
@click.argument("name")
@click.option(
    "--scope",
    type=click.Choice(SCOPES),
    default=SCOPES[0],
    show_default=True,
    help="What it allows; each includes the ones before it.",
)
@json_option
@pass_wiring
def create(wiring: Wiring, name: str, scope: str, as_json: bool) -> None:
    """Create a key and show it, once: only its digest is stored."""
    key, text = wiring.resources.api_keys.create(name, scope)
    if as_json:
        print_json({**_object(key), "key": text})
        return
    echo(text)
    echo_err("Store it now: it is not shown again. Clients send 'Authorization: Bearer KEY'.")


@keys.command("list")
@json_option
@pass_wiring
def list_keys(wiring: Wiring, as_json: bool) -> None:
    """List the keys, without their secrets."""
    all_keys = wiring.resources.api_keys.all()
    if as_json:
        print_json({"keys": [_object(key) for key in all_keys]})
        return
    if not all_keys:
        echo_err("No keys yet: 'imgrec keys create NAME' makes one.")
        return
    rows = [
        [
            key.id,
            key.name,
            key.scope,
            date(key.created_at),
            "active" if key.revoked_at is None else f"revoked {date(key.revoked_at)}",
        ]
        for key in all_keys
    ]
    print_table("Keys", ["id", "name", "scope", "created", "state"], rows, set())


@keys.command()
@click.argument("name")
@json_option
@pass_wiring
def revoke(wiring: Wiring, name: str, as_json: bool) -> None:
    """Revoke the key with this name or id; requests with it are refused from now on."""
    key = wiring.resources.api_keys.revoke(name)
    if as_json:
        print_json(_object(key))
    else:
        echo_err(f"Revoked the key '{key.name}' ({key.id}).")


def _object(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "scope": key.scope,
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
    }
