"""The program `imgrec`, also `python -m imgrec`: it runs its own packages, whoever has others.

The names cli, web, workers and pipeline are common. What lies in the working folder is no code of
ours, other folders on the path do not come before our own, and files that another package has
installed over ours are named.
"""

from __future__ import annotations

import os
import sys

OWN = ("cli", "web", "workers", "pipeline", "celeryconfig")
ROOT = os.path.dirname(os.path.abspath(__file__))


class OwnPackages:
    """An import finder that finds our packages beside this file, before any other folder."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> object:
        if name not in OWN:
            return None
        from importlib.machinery import PathFinder

        return PathFinder.find_spec(name, [ROOT])


def use_own_packages() -> None:
    """Find our packages here, and nothing in the working folder, unless PYTHONPATH names it."""
    _leave_out_working_folder()
    if not any(getattr(finder, "__name__", "") == "OwnPackages" for finder in sys.meta_path):
        sys.meta_path.insert(0, OwnPackages)  # type: ignore[arg-type]


def _leave_out_working_folder() -> None:
    try:
        here = os.getcwd()
    except OSError:  # it was deleted
        return
    entries = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if here != ROOT and here not in map(os.path.abspath, entries):
        sys.path[:] = [entry for entry in sys.path if entry and os.path.abspath(entry) != here]


def replaced_file() -> str | None:
    """Return a file of ours that is gone or changed since pip wrote it; None in a checkout."""
    for path, size in _recorded("imgrec"):
        if path.endswith(".py") and not path.startswith(".."):
            try:
                if os.stat(os.path.join(ROOT, path)).st_size != size:
                    return path
            except FileNotFoundError:
                return path
    return None


def _recorded(project: str) -> list[tuple[str, int]]:
    """Read the files and their sizes that pip has noted for a project; [] where it was not pip."""
    rows = []
    for name in os.listdir(ROOT):
        if name.startswith(f"{project}-") and name.endswith(".dist-info"):
            try:
                with open(os.path.join(ROOT, name, "RECORD"), encoding="utf-8") as record:
                    lines = record.read().splitlines()
            except FileNotFoundError:
                continue
            # A path with a comma is quoted, and none of ours has one.
            cells = [line.split(",") for line in lines if not line.startswith('"')]
            rows += [(row[0], int(row[2])) for row in cells if len(row) == 3 and row[2]]
    return rows


def _others_with(path: str) -> list[str]:
    """Name the other projects that have installed a file of this path."""
    names = {name.split("-")[0] for name in os.listdir(ROOT) if name.endswith(".dist-info")}
    return sorted(
        name
        for name in names - {"imgrec"}
        if any(path == other or other.startswith(f"{path}/") for other, _ in _recorded(name))
    )


def main() -> None:
    """Run `imgrec`; or, started by `imgrec up`, a worker: `celery worker ...`."""
    use_own_packages()
    if path := replaced_file():
        others = ", ".join(_others_with(path)) or "another package, perhaps removed since"
        sys.exit(
            f"Error: the file {os.path.join(ROOT, path)} of imgrec was replaced or deleted by "
            f"{others}: install the two into environments of their own, and mend this one with "
            "'pip install --force-reinstall --no-deps FOLDER', where FOLDER is imgrec's checkout."
        )
    if __name__ == "__main__" and sys.argv[1:2] == ["celery"]:
        from workers.celery_app import run_celery

        run_celery(sys.argv[2:])
    from cli.main import main as run

    run()


if __name__ == "__main__":
    main()
