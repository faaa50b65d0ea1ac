"""Run the benchmarks: `python tests/benchmarks [--quick] [NAME ...]`.

Prints a table of ratios, writes `results.json` and one page with plots. `--quick` compares the
ratios with those kept in `quick.json` beside this file; `--keep` keeps the new ones there.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]

import preloaded  # noqa: E402
from harness import Run, describe, load, machine  # noqa: E402
from page import write_benchmarks  # noqa: E402

KEPT = HERE / "quick.json"
# A median further than this from the kept one is pointed out: less is the machines' own noise.
NOISE = 0.25


def main() -> int:
    known = sorted(file.stem.removeprefix("bench_") for file in HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument("--quick", action="store_true", help="small inputs: minutes in all")
    parser.add_argument("--keep", action="store_true", help="keep these ratios in quick.json")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    options = parser.parse_args()
    preloaded.PRELOAD = False
    if unknown := set(options.names) - set(known):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are: {known}")
    facts = machine()
    print(f"{facts['cpu']}, {facts['cores']} cores, {facts['gpu'] or 'no GPU here: CPU figures'}")
    runs, failed = [], []
    for name in options.names or known:
        module = importlib.import_module(f"bench_{name}")
        if options.quick and not getattr(module, "QUICK", True):
            continue
        print(f"{name}: {module.TITLE}", flush=True)
        with tempfile.TemporaryDirectory(prefix="imgrec-bench-") as folder:
            run = Run(name, module.TITLE, Path(folder), options.quick)
            start = time.perf_counter()
            try:
                module.measure(run)
            except Exception:  # the others are still worth measuring
                traceback.print_exc()
                failed.append(name)
            run.seconds = time.perf_counter() - start
            print(f"  ({run.seconds:.0f} s)")
        runs.append(run)
    write(options, facts, runs)
    show(runs)
    if options.quick:
        compare(runs, options.keep)
    print(f"{options.out / 'bench.html'} shows them with plots.")
    if failed:
        print(f"FAILED: {', '.join(failed)}")
    return 1 if failed else 0


def write(options: argparse.Namespace, facts: dict[str, object], runs: list[Run]) -> None:
    """Merge these benchmarks into what earlier runs have left in the folder."""
    file = options.out / "results.json"
    options.out.mkdir(parents=True, exist_ok=True)
    kept = load(file).get("benchmarks", {})
    stamp = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    fresh = {run.name: {"at": stamp, "quick": run.quick, **run.report()} for run in runs}
    report = {"machine": facts, "benchmarks": {**kept, **fresh}}
    file.write_text(json.dumps(report, indent=1))
    write_benchmarks(options.out / "bench.html", report)


def show(runs: list[Run]) -> None:
    print("\nRatios (median over rounds, spread):")
    for run in runs:
        for ratio in run.ratios:
            print(f"  {run.name:12} {describe(ratio)}")


def compare(runs: list[Run], keep: bool) -> None:
    """Print how the ratios moved since they were kept."""
    before = load(KEPT)
    now = {f"{run.name}: {ratio.name}": ratio for run in runs for ratio in run.ratios}
    print("\nSince the ratios were kept:")
    for name, ratio in now.items():
        if name not in before:
            print(f"  {name}: {ratio.median:.3g} (new)")
            continue
        moved = ratio.median / before[name] - 1
        worse = moved < -NOISE if ratio.better == "higher" else moved > NOISE
        word = "  <-- WORSE" if worse else ""
        print(f"  {name}: {before[name]:.3g} -> {ratio.median:.3g} ({moved:+.0%}){word}")
    if keep:
        merged = {**before, **{name: round(ratio.median, 4) for name, ratio in now.items()}}
        KEPT.write_text(json.dumps(merged, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(main())
