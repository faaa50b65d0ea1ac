"""`imgrec evaluate`: measure models and background removal on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.html_page import PageFile
from cli.output import echo_err, print_json, print_table
from cli.progress import work_bar
from cli.wiring import Wiring, pass_wiring
from pipeline.errors import SetupError, WrongUse

if TYPE_CHECKING:
    from cli.evaluation_report import Judged
    from pipeline.settings import Settings
    from workers.dispatch import Dispatcher

PROMPT = "a photo of a {}"


class Numbers(click.ParamType[tuple[int, ...]]):
    """`1,5,10` -> (1, 5, 10)."""

    name = "numbers"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(sorted({int(part) for part in value.split(",")}))
        except ValueError:
            self.fail(f"'{value}' is not a list of numbers like 1,5,10.", param, ctx)
        if not numbers or numbers[0] < 1 or numbers[-1] > 1000:
            self.fail(f"'{value}': each number can be 1 to 1000.", param, ctx)
        return numbers


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="Search this folder; default: the other images of FOLDER.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    help="Model to measure, a hub name or a folder; repeat it to compare. Default EMBEDDING_MODEL.",
)
@click.option("--k", "ks", type=Numbers(), default="1,5,10", show_default=True, help="Values of k.")
@click.option(
    "--bg-removal",
    type=click.Choice(["on", "off", "both"]),
    help="Remove backgrounds, or compare both. Default USE_BG_REMOVAL; with --products both.",
)
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    help=f"Zero-shot prompt, {{}} is the class; several are averaged. Default '{PROMPT}'.",
)
@click.option(
    "--products",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV file with the columns photo,product_id: measure how often the right product is among "
    "the first k. FOLDER is the catalogue; default: that of the published index.",
)
@click.option("--index", "of_index", is_flag=True, help="Deprecated: use evaluate-index.")
@click.option(
    "--html",
    type=PageFile(),
    help="Write a page that shows the worst confusions to this file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@pass_wiring
def evaluate(
    wiring: Wiring,
    folder: Path | None,
    against: Path | None,
    models: tuple[str, ...],
    ks: tuple[int, ...],
    bg_removal: str | None,
    prompts: tuple[str, ...],
    products: Path | None,
    of_index: bool,
    html: Path | None,
    as_json: bool,
) -> None:
    """Measure models on FOLDER, which holds one folder of images for each class.

    The search is exact, so this measures the model; see evaluate-index for the published index.
    With --products, photos of known products are searched for, and FOLDER needs no classes.
    Needs neither Redis nor workers. --json prints one object; {"reports": [...]} if several models
    or both ways of background removal are measured.
    """
    settings = wiring.settings
    if of_index:
        if against or models or bg_removal or prompts or html or products:
            raise WrongUse("--index can be combined with FOLDER, --k and --json only.")
        from cli.evaluate_index import measure_index

        echo_err(
            "'imgrec evaluate --index' was renamed to 'imgrec evaluate-index'; the old name works "
            "until the next release."
        )
        measure_index(wiring.resources, folder, ks, as_json)
        return
    if products is not None:
        if against or prompts or html:
            raise WrongUse("--products cannot be combined with --against, --prompt and --html.")
        from cli.evaluate_products import evaluate_products

        evaluate_products(wiring, products, folder, models, ks, bg_removal or "both", as_json)
        return
    if folder is None:
        raise WrongUse("Name the folder to measure: imgrec evaluate FOLDER.")
    for prompt in prompts:
        if "{}" not in prompt:
            raise WrongUse(f"The prompt '{prompt}' has no {{}} for the class.")
    removals = {"on": [True], "off": [False], "both": [False, True]}.get(
        bg_removal or "", [settings.use_bg_removal]
    )
    measured = [
        judged
        for model in models or (settings.embedding_model,)
        for judged in _measure(
            wiring.dispatcher,
            settings.model_copy(update={"embedding_model": model}),
            removals,
            folder,
            against,
            ks,
            prompts or (PROMPT,),
            as_json,
        )
    ]
    reports = [judged.report for judged in measured]
    if as_json:
        print_json(reports[0] if len(reports) == 1 else {"reports": reports})
    else:
        _show(reports, folder, against, ks)
    if html:
        from cli.evaluation_report import write_evaluation

        write_evaluation(html, measured, folder, against)


def _measure(
    dispatcher: Dispatcher,
    settings: Settings,
    removals: list[bool],
    folder: Path,
    against: Path | None,
    ks: tuple[int, ...],
    prompts: tuple[str, ...],
    quiet: bool,
) -> list[Judged]:
    """Measure one model, with each of the given ways of background removal."""
    from cli.evaluation_report import Judged
    from pipeline.evaluate.retrieval import (
        embed_labelled,
        list_classes,
        report,
        retrieve,
        zero_shot,
    )
    from workers.resources import Resources

    # The folders are checked before the model is loaded.
    sizes = {path: len(list_classes(path)[0]) for path in (folder, against) if path}

    clip = Resources(settings, dispatcher).clip
    measured = []
    for removal in removals:
        variant = settings.model_copy(update={"use_bg_removal": removal})
        embedder = Resources(variant, dispatcher, clip=clip).embedder
        name = f"{settings.embedding_model}, background removal {'on' if removal else 'off'}"
        with work_bar(name, sum(sizes.values()), quiet) as advance:
            queries = embed_labelled(folder, embedder, advance)
            catalogue = None
            if against:
                catalogue = embed_labelled(
                    against, embedder, lambda count: advance(sizes[folder] + count)
                )
        for labelled in (queries, *([catalogue] if catalogue else [])):
            for failure in labelled.failures:
                echo_err(f"{labelled.root}/{failure.path}: {failure.reason}")
        with work_bar("ranking", None, quiet):
            retrieval = retrieve(queries, catalogue, ks)
        try:
            shot = zero_shot(queries, clip.embed_texts, prompts)
        except SetupError as error:
            echo_err(f"No zero-shot figures: {error}")
            shot = None
        figures: dict[str, Any] = {
            "model": settings.embedding_model,
            "bg_removal": removal,
            **report(queries, retrieval, shot),
        }
        measured.append(Judged(figures, queries, catalogue or queries, retrieval, shot))
    return measured


def _show(
    reports: list[dict[str, Any]], folder: Path, against: Path | None, ks: tuple[int, ...]
) -> None:
    title = f"{reports[0]['queries']} queries from {folder} against {against or 'each other'}"
    columns = ["model", "background", *(f"P@{k}" for k in ks), *(f"recall@{k}" for k in ks)]
    columns += ["mAP", "zero-shot"]
    rows = []
    for report in reports:
        intervals = report["intervals"]
        cells = [(report["precision"][str(k)], intervals["precision"][str(k)]) for k in ks]
        cells += [(report["recall"][str(k)], intervals["recall"][str(k)]) for k in ks]
        cells += [(report[name], intervals[name]) for name in ("map", "zero_shot_accuracy")]
        background = "removed" if report["bg_removal"] else "kept"
        rows.append([report["model"], background, *(figure(*cell) for cell in cells)])
    print_table(f"{title}; [95 % intervals]", columns, rows, set(columns[2:]))
    for report in reports:
        rows = [
            [
                name,
                own["queries"],
                *(figure(own["precision"][str(k)]) for k in ks),
                figure(own["map"]),
                figure(own["zero_shot_accuracy"]),
                _mistaken(report, name),
            ]
            for name, own in report["per_class"].items()
        ]
        columns = ["class", "queries", *(f"P@{k}" for k in ks), "mAP", "zero-shot", "mistaken for"]
        print_table(f"{report['model']}, by class", columns, rows, set(columns[1:-1]))


def figure(value: float | None, interval: list[float] | None = None) -> str:
    """Write a share for a table, with its interval: `0.912 [0.880-0.940]`."""
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" [{interval[0]:.3f}-{interval[1]:.3f}]" if interval else "")


def _mistaken(report: dict[str, Any], name: str) -> str:
    """Name the two classes that zero-shot most often predicts for this one, with counts."""
    if report["confusion"] is None:
        return "-"
    classes, counts = report["confusion"]["classes"], report["confusion"]["counts"]
    row = counts[classes.index(name)]
    wrong = sorted(
        ((count, other) for count, other in zip(row, classes, strict=True) if other != name),
        reverse=True,
    )
    return ", ".join(f"{other} {count}" for count, other in wrong[:2] if count)
