"""The command that lists models to choose from."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from cli.output import echo_err, json_option, print_json, print_table
from cli.wiring import Wiring, pass_wiring
from pipeline.embed.architecture import ARCHITECTURES
from pipeline.embed.fingerprint import model_revision
from pipeline.embed.known_models import KNOWN_MODELS
from pipeline.settings import Settings


@click.command()
@json_option
@pass_wiring
def models(wiring: Wiring, as_json: bool) -> None:
    """List models to choose from, and the one in use.

    Any other model of transformers of the same kinds works, too. Nothing is loaded or downloaded.
    """
    settings = wiring.settings
    current = _current(settings)
    kinds = sorted({each.name for each in ARCHITECTURES.values()}, key=str.lower)
    if as_json:
        models = [asdict(model) for model in KNOWN_MODELS]
        print_json({"current": current, "models": models, "kinds": kinds})
        return
    rows = [
        [
            "*" if model.name == settings.embedding_model else "",
            model.name,
            model.kind,
            f"{model.millions_of_weights} M" if model.millions_of_weights else "-",
            model.dimension,
            "yes" if model.has_words else "no",
            model.languages or "-",
            model.license or "-",
            f"{model.figure:g} % {model.figure_of}" if model.figure else "-",
        ]
        for model in KNOWN_MODELS
    ]
    columns = [
        "",
        "model",
        "kind",
        "weights",
        "dimension",
        "words",
        "languages",
        "license",
        "published",
    ]
    print_table("Models (* is in use)", columns, rows, {"weights", "dimension"})
    kind, words = current["kind"] or "not known yet: not downloaded", current["has_words"]
    sides = "" if words is None else (", with words" if words else ", images only")
    echo_err(f"EMBEDDING_MODEL is {current['name']} ({kind}{sides}).")
    echo_err(f"Other models of these kinds work, too: {', '.join(kinds)}.")
    echo_err("'imgrec evaluate FOLDER --model NAME' measures them on your own photos.")


def _current(settings: Settings) -> dict[str, Any]:
    """Describe the model in use by its configuration; None for what only a download would tell."""
    name = settings.embedding_model
    model_type = _model_type(name, settings.embedding_revision)
    architecture = ARCHITECTURES.get(model_type or "")
    return {
        "name": name,
        "revision": model_revision(name, settings.embedding_revision),
        "kind": architecture.name if architecture else model_type,
        "has_words": architecture.has_words if architecture else None,
    }


def _model_type(name: str, revision: str) -> str | None:
    folder = Path(name).expanduser()
    file: Any = folder / "config.json"
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            file = try_to_load_from_cache(name, "config.json", revision=revision)
        except HFValidationError:
            return None
    try:
        return str(json.loads(Path(file).read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
