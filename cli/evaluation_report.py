"""Write an evaluation as one self-contained page: figures, confusion matrix, worst confusions."""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.html_page import write_html
from pipeline.errors import BadImage
from pipeline.images.decode import Limits, decode, encode_jpeg, read_image
from pipeline.settings import load_settings

if TYPE_CHECKING:
    from pipeline.evaluate.retrieval import Labelled, Retrieval, ZeroShot

CONFUSIONS, IMAGES = 6, 6  # pairs of classes on the page, images of each
SIDE = 160  # pixels of a thumbnail
STYLE = """
:root { color-scheme: light dark; --line: #8883; --muted: #777 }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.15rem; margin-top: 2.4rem } h3 { font-size: 1rem }
p, small { color: var(--muted) }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
td, th { border: 1px solid var(--line); padding: .25rem .55rem; text-align: right }
th:first-child, td:first-child { text-align: left } .wide { overflow-x: auto }
.matrix th.top { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left }
.pairs { display: flex; flex-wrap: wrap; gap: .8rem; padding: 0; list-style: none }
.pairs li { width: 20.6rem; border: 1px solid var(--line); border-radius: .5rem; padding: .5rem }
.pairs.one li { width: 10.2rem }
.two { display: flex; gap: .5rem } figure { margin: 0; width: 10rem }
img { width: 10rem; height: 10rem; object-fit: contain; background: #fff }
figcaption { font-size: .8rem; overflow-wrap: anywhere }
"""


@dataclass(frozen=True)
class Judged:
    """One model under one preprocessing, with all that its page shows."""

    report: dict[str, Any]
    queries: Labelled
    catalogue: Labelled
    found: Retrieval
    shot: ZeroShot | None


def write_evaluation(file: Path, judged: list[Judged], folder: Path, against: Path | None) -> None:
    """Write the page."""
    parts = "\n".join(_part(each) for each in judged)
    title = f"Evaluation on {folder}"
    body = f"""<h1>{escape(title)}</h1>
<p>{judged[0].report["queries"]} queries against
{escape(str(against) if against else "the other images of the folder")}, exact search,
{time.strftime("%Y-%m-%d %H:%M")}. In brackets: bootstrap 95 % intervals.</p>
{_summary(judged)}
{parts}"""
    write_html(file, title, body, STYLE)


def _summary(judged: list[Judged]) -> str:
    ks = list(judged[0].report["precision"])
    heads = ["model", "background", *(f"P@{k}" for k in ks), *(f"recall@{k}" for k in ks)]
    heads += ["mAP", "zero-shot"]
    rows = []
    for each in judged:
        report, bounds = each.report, each.report["intervals"]
        cells = [_cell(report["precision"][k], bounds["precision"][k]) for k in ks]
        cells += [_cell(report["recall"][k], bounds["recall"][k]) for k in ks]
        cells += [_cell(report[key], bounds[key]) for key in ("map", "zero_shot_accuracy")]
        rows.append([escape(report["model"]), _background(report), *cells])
    return _table(heads, rows)


def _part(each: Judged) -> str:
    report = each.report
    ks = list(report["precision"])
    heads = ["class", "queries", *(f"P@{k}" for k in ks), "mAP", "zero-shot"]
    rows = [
        [
            escape(name),
            str(own["queries"]),
            *(_cell(own["precision"][k]) for k in ks),
            _cell(own["map"]),
            _cell(own["zero_shot_accuracy"]),
        ]
        for name, own in report["per_class"].items()
    ]
    head = f"{escape(report['model'])}, background {_background(report)}"
    return f"<h2>{head}</h2>{_table(heads, rows)}{_matrix(report)}{_zero_shot(each)}{_search(each)}"


def _matrix(report: dict[str, Any]) -> str:
    if report["confusion"] is None:
        return ""
    classes, counts = report["confusion"]["classes"], report["confusion"]["counts"]
    tops = "".join(f'<th class="top">{escape(name)}</th>' for name in classes)
    body = ""
    for name, row in zip(classes, counts, strict=True):
        total = sum(row) or 1
        cells = "".join(
            _shade(count, count / total, other == name)
            for count, other in zip(row, classes, strict=True)
        )
        body += f"<tr><td>{escape(name)}</td>{cells}</tr>"
    return (
        "<h3>Zero-shot confusion matrix: rows are true, columns are predicted</h3>"
        f'<div class="wide"><table class="matrix"><tr><th></th>{tops}</tr>{body}</table></div>'
    )


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _shade(count: int, share: float, right: bool) -> str:
    color = "42,125,225" if right else "220,60,50"
    return f'<td style="background:rgba({color},{share:.2f})">{count or ""}</td>'


def _zero_shot(each: Judged) -> str:
    """Show the pairs of classes that zero-shot confuses most often, with images."""
    if each.shot is None:
        return ""
    predicted = each.shot.predicted.tolist()
    blocks = ""
    for (true, guess), rows in _worst(each.queries.labels.tolist(), predicted):
        items = "".join(
            f"<li>{_figure(each.queries, row, each.queries.paths[row])}</li>"
            for row in rows[:IMAGES]
        )
        blocks += (
            f"<h4>{escape(true)} taken for {escape(guess)}: {_times(len(rows))}</h4>"
            f'<ul class="pairs one">{items}</ul>'
        )
    return f"<h3>Worst zero-shot confusions</h3>{blocks or '<p>None.</p>'}"


def _search(each: Judged) -> str:
    """Show the pairs of classes that the search confuses most often: query and best match."""
    firsts = [str(each.catalogue.labels[row]) for row in each.found.first]
    blocks = ""
    for (true, other), rows in _worst(each.queries.labels.tolist(), firsts):
        items = "".join(
            '<li><div class="two">'
            + _figure(each.queries, row, f"query: {each.queries.paths[row]}")
            + _figure(
                each.catalogue,
                int(each.found.first[row]),
                f"match: {each.catalogue.paths[int(each.found.first[row])]}",
            )
            + "</div></li>"
            for row in rows[:IMAGES]
        )
        blocks += (
            f"<h4>{escape(true)} found {escape(other)} first: {_times(len(rows))}</h4>"
            f'<ul class="pairs">{items}</ul>'
        )
    return f"<h3>Worst confusions of the search</h3>{blocks or '<p>None.</p>'}"


def _worst(truth: list[str], guesses: list[str]) -> list[tuple[tuple[str, str], list[int]]]:
    pairs: dict[tuple[str, str], list[int]] = {}
    for row, pair in enumerate(zip(truth, guesses, strict=True)):
        if pair[0] != pair[1]:
            pairs.setdefault(pair, []).append(row)
    return sorted(pairs.items(), key=lambda item: (-len(item[1]), item[0]))[:CONFUSIONS]


def _figure(part: Labelled, row: int, caption: str) -> str:
    settings = load_settings()
    limits = Limits.of(settings)
    try:
        data = read_image(part.root / part.paths[row], limits)
        image = decode(data, limits, settings.preprocess_bg_color)
    except BadImage:  # deleted since it was embedded
        html = "<div>no image</div>"
    else:
        image.thumbnail((SIDE, SIDE))
        code = base64.b64encode(encode_jpeg(image, 80)).decode()
        html = f'<img src="data:image/jpeg;base64,{code}" alt="{escape(caption)}">'
    return f"<figure>{html}<figcaption>{escape(caption)}</figcaption></figure>"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    top = "".join(f"<th>{head}</th>" for head in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def _cell(value: float | None, bounds: list[float] | None = None) -> str:
    if value is None:
        return "-"
    interval = f"<br><small>[{bounds[0]:.3f}-{bounds[1]:.3f}]</small>" if bounds else ""
    return f"{value:.3f}{interval}"


def _background(report: dict[str, Any]) -> str:
    return "removed" if report["bg_removal"] else "kept"
