"""`imgrec evaluate`: measure models, background removal and the index on one's own pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.output import echo_err, print_json, print_table
from cli.progress import image_bar
from cli.wiring import Wiring, pass_wiring
from pipeline.errors import BadImage, WrongUse

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cli.evaluation_report import Judged
    from pipeline.evaluate.retrieval import Scores
    from pipeline.index.versions import Version
    from pipeline.settings import Settings
    from workers.dispatch import Dispatcher
    from workers.resources import Resources

PROMPT = "a photo of a {}"
INDEX_QUERIES = 1000  # stored vectors that ask the index when no folder is given
# Stored vectors would find themselves first whatever the index does; a little noise makes them
# queries of their own. 0.1 keeps a cosine of about 0.995 to the picture that they come from.
NOISE = 0.1


class Numbers(click.ParamType[tuple[int, ...]]):
    """`1,5,10` -> (1, 5, 10)."""

    name = "numbers"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(sorted({int(part) for part in value.split(",")}))
        except ValueError:
            self.fail(f"'{value}' is no list of numbers like 1,5,10.", param, ctx)
        if not numbers or numbers[0] < 1 or numbers[-1] > 1000:
            self.fail(f"'{value}': each number can be 1 to 1000.", param, ctx)
        return numbers


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="Search this folder; default: the other pictures of FOLDER.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    help="Model to measure, a hub name or a folder; several side by side. Default EMBEDDING_MODEL.",
)
@click.option("--k", "ks", type=Numbers(), default="1,5,10", show_default=True, help="Depths.")
@click.option(
    "--bg-removal",
    type=click.Choice(["on", "off", "both"]),
    help="Remove backgrounds; both compares. Default USE_BG_REMOVAL.",
)
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    help=f"Text for zero-shot, {{}} is the class; several are averaged. Default '{PROMPT}'.",
)
@click.option("--index", "of_index", is_flag=True, help="Judge the published index's recall.")
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a page with the worst confusions as pictures to this file.",
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
    of_index: bool,
    html: Path | None,
    as_json: bool,
) -> None:
    """Measure models on FOLDER, which holds one folder of pictures a class.

    Search is exact, so this judges the model; with --index it judges the published index instead.
    Needs neither Redis nor workers. --json prints one object; {"reports": [...]} if several models
    or both ways of background removal are measured.
    """
    settings = wiring.settings
    if of_index:
        if against or models or bg_removal or prompts or html:
            raise WrongUse("--index takes no other option than FOLDER, --k and --json.")
        _judge_index(wiring.resources, folder, ks, as_json)
        return
    if folder is None:
        raise WrongUse("Name the folder to measure: imgrec evaluate FOLDER.")
    for prompt in prompts:
        if "{}" not in prompt:
            raise WrongUse(f"The prompt '{prompt}' has no {{}} for the class.")
    removals = {"on": [True], "off": [False], "both": [False, True]}.get(
        bg_removal or "", [settings.use_bg_removal]
    )
    judged = [
        judged
        for model in models or (settings.embedding_model,)
        for judged in _judge(
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
    if html:
        from cli.evaluation_report import write_evaluation

        write_evaluation(html, judged, folder, against)
        echo_err(f"Wrote {html}.")
    reports = [each.report for each in judged]
    if as_json:
        print_json(reports[0] if len(reports) == 1 else {"reports": reports})
        return
    _show(reports, folder, against, ks)


def _judge(
    dispatcher: Dispatcher,
    settings: Settings,
    removals: list[bool],
    folder: Path,
    against: Path | None,
    ks: tuple[int, ...],
    prompts: tuple[str, ...],
    quiet: bool,
) -> list[Judged]:
    from cli.evaluation_report import Judged
    from pipeline.errors import SetupError
    from pipeline.evaluate.retrieval import (
        embed_labelled,
        list_classes,
        report,
        retrieve,
        zero_shot,
    )

    sizes = {path: len(list_classes(path)[0]) for path in (folder, against) if path}
    from workers.resources import Resources

    clip = Resources(settings, dispatcher).clip
    judged = []
    for removal in removals:
        variant = settings.model_copy(update={"use_bg_removal": removal})
        embedder = Resources(variant, dispatcher, clip=clip).embedder
        name = f"{settings.embedding_model}, background removal {'on' if removal else 'off'}"
        with image_bar(name, sum(sizes.values()), quiet) as done:
            queries = embed_labelled(folder, embedder, done)
            catalogue = None
            if against:
                catalogue = embed_labelled(
                    against, embedder, lambda count: done(sizes[folder] + count)
                )
        for part in (queries, catalogue):
            for failure in part.failures if part else []:
                echo_err(f"{part.root if part else ''}/{failure.path}: {failure.reason}")
        found = retrieve(queries, catalogue, ks)
        try:
            shot = zero_shot(queries, clip.embed_texts, prompts)
        except SetupError as error:
            echo_err(f"No zero-shot figures: {error}")
            shot = None
        figures: dict[str, Any] = {
            "model": settings.embedding_model,
            "bg_removal": removal,
            **report(queries, found, shot),
        }
        judged.append(Judged(figures, queries, catalogue or queries, found, shot))
    return judged


def _show(
    reports: list[dict[str, Any]], folder: Path, against: Path | None, ks: tuple[int, ...]
) -> None:
    title = f"{reports[0]['queries']} queries from {folder} against {against or 'each other'}"
    columns = ["model", "background", *(f"P@{k}" for k in ks), *(f"recall@{k}" for k in ks)]
    columns += ["mAP", "zero-shot"]
    rows = []
    for each in reports:
        bounds = each["intervals"]
        cells = [(each["precision"][str(k)], bounds["precision"][str(k)]) for k in ks]
        cells += [(each["recall"][str(k)], bounds["recall"][str(k)]) for k in ks]
        cells += [(each["map"], bounds["map"])]
        cells += [(each["zero_shot_accuracy"], bounds["zero_shot_accuracy"])]
        background = "removed" if each["bg_removal"] else "kept"
        rows.append([each["model"], background, *(_figure(*cell) for cell in cells)])
    print_table(f"{title}; [95 % intervals]", columns, rows, set(columns[2:]))
    for each in reports:
        rows = [
            [
                name,
                own["queries"],
                *(_figure(own["precision"][str(k)]) for k in ks),
                _figure(own["map"]),
                _figure(own["zero_shot_accuracy"]),
                _mistaken(each, name),
            ]
            for name, own in each["per_class"].items()
        ]
        columns = ["class", "queries", *(f"P@{k}" for k in ks), "mAP", "zero-shot", "mistaken for"]
        print_table(f"{each['model']}, by class", columns, rows, set(columns[1:-1]))


def _figure(value: float | None, bounds: list[float] | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" [{bounds[0]:.3f}-{bounds[1]:.3f}]" if bounds else "")


def _mistaken(report: dict[str, Any], name: str) -> str:
    """Name the two classes that zero-shot most often takes this one for, with counts."""
    if report["confusion"] is None:
        return "-"
    classes, counts = report["confusion"]["classes"], report["confusion"]["counts"]
    row = counts[classes.index(name)]
    wrong = sorted(
        ((count, other) for count, other in zip(row, classes, strict=True) if other != name),
        reverse=True,
    )
    return ", ".join(f"{other} {count}" for count, other in wrong[:2] if count)


def _judge_index(
    resources: Resources, folder: Path | None, ks: tuple[int, ...], as_json: bool
) -> None:
    from pipeline.evaluate.retrieval import Vectors, recall_of_index

    opened = resources.live_index.current()
    vectors = opened.version.vectors
    if folder is None:
        queries = _disturbed(vectors)
        source = "stored vectors with noise"
    else:
        queries = _embed_queries(resources, folder, opened.version, as_json)
        source = str(folder)

    def search(asked: Vectors, k: int) -> NDArray[np.int64]:
        return opened.search(asked, k)[1]

    recall = recall_of_index(search, vectors, queries, ks)
    kind = opened.version.manifest["index"]["factory"]
    answer = {
        "index_version": opened.version.name,
        "index": kind,
        "images": len(vectors),
        "queries": len(queries),
        "queries_from": source,
        "recall": {str(k): round(float(scores.mean()), 4) for k, scores in recall.items()},
        "intervals": {str(k): _bounds(scores) for k, scores in recall.items()},
    }
    if as_json:
        print_json(answer)
        return
    rows = [
        [f"recall@{k}", _figure(answer["recall"][str(k)], answer["intervals"][str(k)])] for k in ks
    ]
    title = f"Index {opened.version.name} ({kind}, {len(vectors)} images) against exact search, "
    print_table(f"{title}{len(queries)} queries: {source}", ["", "[95 % interval]"], rows, set())


def _bounds(scores: Scores) -> list[float]:
    from pipeline.evaluate.retrieval import interval

    low, high = interval(scores)
    return [round(low, 4), round(high, 4)]


def _disturbed(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    import numpy as np

    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(len(vectors), min(INDEX_QUERIES, len(vectors)), replace=False))
    noise = rng.normal(0, NOISE / vectors.shape[1] ** 0.5, (len(rows), vectors.shape[1]))
    moved = vectors[rows] + noise
    unit: NDArray[np.float32] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    return unit.astype(np.float32)


def _embed_queries(
    resources: Resources, folder: Path, version: Version, quiet: bool
) -> NDArray[np.float32]:
    """Embed the pictures of any folder as queries of this version."""
    from pipeline.evaluate.retrieval import embed_folder

    mine = resources.fingerprint
    version.require(mine.id, mine.summary)
    with image_bar(str(folder), 0, quiet) as done:
        _, vectors, failures = embed_folder(folder, resources.embedder, done)
    for failure in failures:
        echo_err(f"{folder}/{failure.path}: {failure.reason}")
    if not len(vectors):
        raise BadImage(f"No picture below '{folder}' can be used.", "read")
    return vectors
