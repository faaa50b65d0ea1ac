"""The command that says what a product is."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import click

from cli import ask
from cli.output import print_json, say
from pipeline.settings import load_settings

TASK = "imgrec.classify_image"


@click.command()
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--use-trained", is_flag=True, help="Ask trained heads first ('imgrec train').")
@click.option("--wait", is_flag=True, help="Wait for the answer and show it.")
@click.option(
    "--timeout",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds to wait.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def classify(image: Path, use_trained: bool, wait: bool, timeout: float, as_json: bool) -> None:
    """Say what a product is: its category and attributes."""
    data = ask.message(image, load_settings())
    from workers import flow

    flow.require_redis()
    query_id = uuid.uuid4().hex
    args = (data, True) if use_trained else (data,)

    def send() -> None:
        ask.send(TASK, query_id, args, timeout)

    send()
    if wait:
        answer = ask.wait_for(query_id, timeout, send, needs_index=False)
        if use_trained and not any(found["source"] == "trained" for found in answer["attributes"]):
            say(f"No trained models found for category: {answer['category']['label']}")
        show_classes(answer, as_json)
    elif as_json:
        print_json({"query_id": query_id})
    else:
        click.echo(query_id)
        say(f"'imgrec result {query_id}' shows the answer.")


def show_classes(answer: dict[str, Any], as_json: bool) -> None:
    """Show a classify object, as JSON or for people."""
    if as_json:
        print_json(answer)
        return
    click.echo(f"Category: {_text(answer['category'])}")
    if answer["attributes"]:
        click.echo("Attributes:")
    for attribute in answer["attributes"]:
        click.echo(f" - {attribute['name']}: {_text(attribute)}")


def _text(found: dict[str, Any]) -> str:
    guess = f"perhaps {found['best_guess']}, " if "best_guess" in found else ""
    return f"{found['label']} ({guess}confidence {found['confidence']:.2f})"
