"""The command that says what a product is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli import query_client
from cli.output import (
    echo,
    echo_err,
    echo_warnings,
    json_option,
    local_option,
    print_json,
    timeout_option,
    wait_option,
)
from cli.wiring import Wiring, pass_wiring
from workers.routes import CLASSIFY_IMAGE


@click.command()
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--use-trained",
    is_flag=True,
    help="Use the trained heads where there are any ('imgrec train').",
)
@wait_option
@timeout_option
@json_option
@local_option
@pass_wiring
def classify(
    wiring: Wiring,
    image: Path,
    use_trained: bool,
    wait: bool,
    timeout: float,
    as_json: bool,
    local: bool,
) -> None:
    """Name the category and attributes of a product.

    Needs no index.
    """
    data = query_client.message(image, wiring.settings)
    args = (data, True) if use_trained else (data,)
    pending = query_client.PendingQuery(wiring, CLASSIFY_IMAGE, args, timeout, local)
    if wait or local:
        answer = pending.answer(needs_index=False)
        if use_trained and not any(
            attribute["source"] == "trained" for attribute in answer["attributes"]
        ):
            echo_err(f"Error: No trained models found for category: {answer['category']['label']}")
        show_classes(answer, as_json)
    elif as_json:
        print_json({"query_id": pending.query_id})
    else:
        echo(pending.query_id)
        echo_err(f"'imgrec result {pending.query_id}' shows the result.")


def show_classes(answer: dict[str, Any], as_json: bool) -> None:
    """Show a classify object, as JSON or for people."""
    echo_warnings(answer)
    if as_json:
        print_json(answer)
        return
    echo(f"Category: {_text(answer['category'])}")
    if answer["attributes"]:
        echo("Attributes:")
    for attribute in answer["attributes"]:
        echo(f" - {attribute['name']}: {_text(attribute)}")


def _text(answer: dict[str, Any]) -> str:
    guess = f"perhaps {answer['best_guess']}, " if "best_guess" in answer else ""
    return f"{answer['label']} ({guess}confidence {answer['confidence']:.2f})"
