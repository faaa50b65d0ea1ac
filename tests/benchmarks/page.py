"""Write what was measured as one self-contained page: a table of ratios, then plots as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 620, 330, 62, 44, 16, 16
COLORS = ("#2a7de1", "#d6453d", "#2f9e44", "#9c36b5", "#e8890c", "#0c8599")
STYLE = """
:root { color-scheme: light dark; --line: #8883; --muted: #777 }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.15rem; margin-top: 2.6rem }
p, small { color: var(--muted) } .wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
td, th { border: 1px solid var(--line); padding: .3rem .6rem; text-align: left }
td.n { text-align: right } .reached { color: #2f9e44 } .missed { color: #d6453d; font-weight: 600 }
.plots { display: flex; flex-wrap: wrap; gap: 1.2rem } svg { max-width: 100%; height: auto }
text { fill: currentColor; font: 11px system-ui, sans-serif } .axis { stroke: #8886 }
figure { margin: 0 } figcaption { font-weight: 600; margin-bottom: .3rem }
"""


def write_benchmarks(file: Path, report: dict[str, Any]) -> None:
    """Write the page; no script, no request to anywhere."""
    machine = report["machine"]
    gpu = machine["gpu"] or "no GPU: nothing here says how fast one would be"
    parts = "\n".join(_part(each) for each in report["benchmarks"].values())
    file.write_text(f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>imgrec benchmarks</title><style>{STYLE}</style>
<h1>imgrec benchmarks</h1>
<p>{escape(machine["cpu"])}, {machine["cores"]} cores ({", ".join(machine["instructions"])});
{escape(gpu)}; Python {machine["python"]}, torch {machine["torch"]}. Ratios were taken in turns
within one run; absolute figures hold for that hour only.</p>
{parts}
</html>
""")


def _part(bench: dict[str, Any]) -> str:
    rows = "".join(_row(ratio) for ratio in bench["ratios"])
    facts = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{escape(str(value))}</td></tr>'
        for name, value in bench["facts"].items()
    )
    table = (
        '<div class="wide"><table><tr><th>ratio</th><th>median</th><th>spread</th><th>target</th>'
        f"<th></th><th>what was measured</th></tr>{rows}</table></div>"
        if rows
        else ""
    )
    told = f'<h3>Figures of that hour</h3><div class="wide"><table>{facts}</table></div>'
    plots = "".join(_figure(plot) for plot in bench["plots"])
    size = "quick inputs" if bench["quick"] else "full inputs"
    return (
        f"<h2>{escape(bench['title'])}</h2>"
        f"<p>{bench['at']} UTC, {size}, {bench['seconds']:.0f} s</p>{table}"
        f'<div class="plots">{plots}</div>{told if facts else ""}'
    )


def _row(ratio: dict[str, Any]) -> str:
    sign = "&ge;" if ratio["better"] == "higher" else "&le;"
    target = "" if ratio["target"] is None else f"{sign} {ratio['target']:g}"
    word = {True: "reached", False: "missed", None: ""}[ratio["reached"]]
    return (
        f'<tr><td>{escape(ratio["name"])}</td><td class="n">{ratio["median"]:.3g}</td>'
        f'<td class="n">{ratio["least"]:.3g} &ndash; {ratio["most"]:.3g}</td>'
        f'<td class="n">{target}</td><td class="{word}">{word}</td>'
        f"<td>{escape(ratio['what'])}</td></tr>"
    )


def _figure(plot: dict[str, Any]) -> str:
    points = [point for series in plot["series"].values() for point in series]
    if not points:
        return ""
    x_at, x_ticks = _scale([x for x, _ in points], plot["log_x"], LEFT, WIDTH - RIGHT)
    y_at, y_ticks = _scale([y for _, y in points], plot["log_y"], HEIGHT - BOTTOM, TOP)
    parts = []
    for value in y_ticks:
        y = y_at(value)
        parts.append(
            f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>'
        )
    for value in x_ticks:
        x = x_at(value)
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">'
            f"{_short(value)}</text>"
        )
    for number, (name, series) in enumerate(plot["series"].items()):
        color = COLORS[number % len(COLORS)]
        line = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in sorted(map(tuple, series)))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="3" fill="{color}"/>'
            for x, y in series
        ]
        parts.append(
            f'<text x="{LEFT + 10}" y="{TOP + 14 + 15 * number}" style="fill:{color}">'
            f"{escape(name)}</text>"
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(plot["x_label"])}</text>'
    )
    turn = f"rotate(-90 14 {HEIGHT / 2})"
    parts.append(
        f'<text x="14" y="{HEIGHT / 2}" text-anchor="middle" transform="{turn}">'
        f"{escape(plot['y_label'])}</text>"
    )
    body = "".join(parts)
    return (
        f"<figure><figcaption>{escape(plot['title'])}</figcaption>"
        f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(plot["title"])}">{body}</svg></figure>'
    )


def _scale(
    values: list[float], logarithmic: bool, start: float, end: float
) -> tuple[Callable[[float], float], list[float]]:
    """Return the function from a value to its place, and the values to mark."""
    if logarithmic:
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        high = max(high, low + 1)
        return (
            lambda value: start + (math.log10(value) - low) / (high - low) * (end - start),
            [10.0**power for power in range(low, high + 1)],
        )
    low, high = min(0.0, min(values)), max(values) or 1.0
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 5)
    top = math.ceil(high / step) * step
    return (
        lambda value: start + (value - low) / (top - low) * (end - start),
        [low + step * number for number in range(round((top - low) / step) + 1)],
    )


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:.3g}"
