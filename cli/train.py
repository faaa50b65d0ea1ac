"""Commands of trained heads: train one, list them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from cli.output import FiniteRange, echo_err, json_option, print_fields, print_json, print_table
from cli.progress import work_bar
from cli.wiring import Wiring, pass_wiring
from pipeline.access import require_readable, require_writable
from pipeline.errors import HeadBroken, WrongUse
from workers.routes import QUERY

if TYPE_CHECKING:
    from pipeline.classify.head import HeadName
    from pipeline.embed.fingerprint import Fingerprint
    from pipeline.settings import Settings
    from pipeline.train.train_head import Recipe, Training
    from pipeline.train.training_set import Listing, TrainingSet
    from workers.resources import Resources


@click.command()
@click.option("--category", help="The category, a folder of DATA_DIR/training.")
@click.option(
    "--attribute", help="The attribute, a folder below the category with one folder for each class."
)
@click.option("--category-head", is_flag=True, help="Train the head that tells categories apart.")
@click.option(
    "--auto",
    is_flag=True,
    help="Choose learning rate and epochs automatically; standardize and balance the data.",
)
@click.option(
    "--epochs",
    default=10,
    show_default=True,
    type=click.IntRange(1, 100_000),
    help="Number of passes over the training images.",
)
@click.option(
    "--lr",
    default=1e-4,
    show_default=True,
    type=FiniteRange(0, 1, min_open=True),
    help="Learning rate of Adam.",
)
@click.option(
    "--batch-size",
    default=8,
    show_default=True,
    type=click.IntRange(1, 100_000),
    help="Number of images in one step.",
)
@click.option(
    "--val",
    default=0.2,
    show_default=True,
    type=FiniteRange(0, 1, min_open=True, max_open=True),
    help="Fraction of each class that is held out to measure the accuracy.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, 2**32 - 1),
    help="Seed of the split.",
)
@json_option
@click.option(
    "--local", is_flag=True, help="Do not use the shared cache of vectors, which needs Redis."
)
@pass_wiring
@click.pass_context
def train(
    ctx: click.Context,
    wiring: Wiring,
    category: str | None,
    attribute: str | None,
    category_head: bool,
    auto: bool,
    epochs: int,
    lr: float,
    batch_size: int,
    val: float,
    seed: int,
    as_json: bool,
    local: bool,
) -> None:
    """Train a classification head on the images in DATA_DIR/training.

    The images of a class are in DATA_DIR/training/CATEGORY/ATTRIBUTE/CLASS/. Needs neither Redis
    nor workers; query workers use the new head from their next task. Held-out images never
    influence the training.
    """
    name = _named(category, attribute, category_head)
    options = [
        f"--{option}"
        for option in ("epochs", "lr")
        if ctx.get_parameter_source(option) != ParameterSource.DEFAULT
    ]
    if auto and options:
        raise WrongUse(f"--auto chooses the learning rate and the epochs: omit {options[0]}.")
    listing = _listed(wiring.settings, name)  # before any model is loaded
    resources = wiring.local.resources if local else wiring.resources
    resources.require_agreement_of_running((QUERY,), "models")
    examples = _embedded(listing, name, resources, as_json)

    from pipeline.classify.head_store import LOSS, MODEL
    from pipeline.train.train_head import Recipe
    from pipeline.train.train_head import train as fit

    recipe = Recipe(epochs, lr, batch_size, val, seed, auto)
    with work_bar("training", None, as_json):
        training = fit(examples, recipe, resources.fingerprint)
    head = resources.heads.save(name, training.head, training.loss_curve())
    resources.identifier.create_folder("models")
    if not training.temperature_fitted:
        echo_err("No temperature could be fitted: every class has only one training image.")
    where = resources.heads.where(name)
    answer = {
        "category": name.category,
        "attribute": name.attribute,
        **training.report(),
        "skipped": examples.skipped,
        "model": f"{where}/{MODEL}",
        "loss_curve": f"{where}/{LOSS}",
        "fingerprint": head.fingerprint,
    }
    if not auto:
        with work_bar("training with --auto", None, as_json):
            answer |= _compare(examples, recipe, resources.fingerprint, training)
    if as_json:
        print_json(answer)
    else:
        _show(answer)


@click.command()
@json_option
@pass_wiring
@click.pass_context
def heads(ctx: click.Context, wiring: Wiring, as_json: bool) -> None:
    """List the trained heads."""
    from pipeline.classify.head_store import MODEL, list_heads, load_head

    places = wiring.resources.heads
    models = places.folder()
    rows: list[dict[str, Any]] = []
    broken: list[str] = []
    for name in list_heads(models):
        try:
            head = load_head(models, name)
        except HeadBroken as error:
            broken.append(f"Error: {error}")
            continue
        rows.append(
            {
                "category": name.category,
                "attribute": name.attribute,
                "classes": list(head.classes),
                "accuracy": head.accuracy,
                "images": head.images,
                "trained_at": head.trained_at,
                "fingerprint": head.fingerprint,
                "path": f"{places.where(name)}/{MODEL}",
            }
        )
    where = wiring.settings.artifacts_url or models
    if as_json:
        print_json({"heads": rows})
    elif rows:
        _show_heads(rows, f"Heads in {where}")
    elif not broken:
        echo_err(
            f"No trained heads in '{where}'. Train one with 'imgrec train --category NAME "
            "--attribute NAME'."
        )
    for sentence in broken:
        echo_err(sentence)
    wiring.resources.require_agreement_of_running((QUERY,), "models")
    if broken:
        ctx.exit(HeadBroken.exit_code)


def _show_heads(rows: list[dict[str, Any]], title: str) -> None:
    columns = ["category", "attribute", "accuracy", "images", "trained", "classes"]
    cells = [
        [
            row["category"] or "(all)",
            row["attribute"],
            f"{row['accuracy']:.2f}",
            row["images"],
            str(row["trained_at"])[:16].replace("T", " "),
            ", ".join(row["classes"]),
        ]
        for row in rows
    ]
    print_table(title, columns, cells, {"accuracy", "images"})


def _named(category: str | None, attribute: str | None, category_head: bool) -> HeadName:
    from pipeline.classify.head import CATEGORY, HeadName

    if category_head:
        if category or attribute:
            raise WrongUse("--category-head cannot be combined with --category or --attribute.")
        return CATEGORY
    if category is None or attribute is None:
        raise WrongUse(
            "Give --category and --attribute, e.g. --category shoe --attribute color, or give "
            "--category-head."
        )
    return HeadName.parse(category, attribute)


def _listed(settings: Settings, name: HeadName) -> Listing:
    """List the training images of a head, whose folder must be writable."""
    from pipeline.train.training_set import list_training

    require_readable(settings.training_dir, "DATA_DIR")
    listing = list_training(settings.training_dir, name)
    if not settings.artifacts_url:
        require_writable(settings.models_dir / name.folder, "MODELS_DIR")
    return listing


def _embedded(listing: Listing, name: HeadName, resources: Resources, quiet: bool) -> TrainingSet:
    """Embed the training images, with a progress bar; say what was left out."""
    from pipeline.train.training_set import embed_training

    with work_bar(name.folder.as_posix(), len(listing.images), quiet) as advance:
        reusable = resources.reusable_vectors()
        examples = embed_training(listing, resources.embedder, reusable, advance)
    for failure in examples.failures:
        echo_err(f"{listing.root / failure.path}: {failure.reason}")
    if examples.copies:
        echo_err(f"Duplicate images within a class, ignored: {examples.copies}.")
    return examples


def _compare(
    examples: TrainingSet, recipe: Recipe, made_by: Fingerprint, training: Training
) -> dict[str, float]:
    """Train with --auto on the same split too, and say so where it is clearly better."""
    from pipeline.train.train_head import clearly_better
    from pipeline.train.train_head import train as fit

    try:
        best = fit(examples, replace(recipe, auto=True), made_by).head.accuracy
    except WrongUse:  # too few images for it to choose by
        return {}
    if clearly_better(best, training.head.accuracy, training.held_out):
        echo_err(
            f"--auto reaches an accuracy of {best:.2f} on the same held-out images, these "
            f"hyperparameters {training.head.accuracy:.2f}: train again with --auto."
        )
    return {"auto_accuracy": best}


def _show(answer: dict[str, Any]) -> None:
    title = f"Head {answer['category'] or '(all categories)'}/{answer['attribute']}"
    accuracy = f"{answer['accuracy']:.2f} on {answer['held_out']} held-out images"
    calibration = f"{answer['ece']:.3f} at temperature {answer['temperature']:g}"
    print_fields(
        title,
        [
            ("accuracy", accuracy),
            ("trained on", f"{answer['train']} images ({answer['skipped']} skipped)"),
            ("calibration (ECE)", f"{calibration}; {answer['ece_before']:.3f} without"),
            ("learning rate", f"{answer['learning_rate']:g}, {answer['epochs']} epochs"),
            ("model", answer["model"]),
            ("loss curve", answer["loss_curve"]),
        ],
    )
    rows = [
        [name, _figure(own["precision"]), _figure(own["recall"]), own["images"]]
        for name, own in answer["per_class"].items()
    ]
    columns = ["class", "precision", "recall", "held out"]
    print_table("By class", columns, rows, set(columns[1:]))
    classes, counts = answer["confusion"]["classes"], answer["confusion"]["counts"]
    rows = [[name, *row] for name, row in zip(classes, counts, strict=True)]
    print_table(
        "Confusion matrix: rows are true classes, columns are predicted",
        ["", *classes],
        rows,
        set(classes),
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
