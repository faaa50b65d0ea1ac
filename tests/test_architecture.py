"""The walls of the house: who may import whom, and settings that are the same in three places."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import import_module, metadata
from pathlib import Path

import pytest

from cli.supervisor import share_threads
from pipeline.settings import Settings

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "faiss", "rembg", "onnxruntime"}


def imports(file: Path) -> set[str]:
    """Return the top-level packages that a file imports anywhere, lazily too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def offenders(package: str, forbidden: set[str]) -> list[str]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    return [str(file) for file in files if imports(file) & forbidden]


def test_the_pipeline_knows_neither_celery_nor_who_uses_it() -> None:
    assert offenders("pipeline", {"cli", "workers", "celery", "kombu"}) == []


def test_workers_do_not_know_the_command_line() -> None:
    assert offenders("workers", {"cli", "click"}) == []


def test_the_command_line_never_imports_a_model_library() -> None:
    assert offenders("cli", HEAVY) == []


def test_importing_the_workers_loads_no_model_library() -> None:
    script = "import sys, workers.embed, workers.index, workers.query\n"
    script += f"print(sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_asking_a_question_loads_nothing_that_only_workers_and_tables_need() -> None:
    """`imgrec query` is started anew for each question: half of its time would be imports."""
    needless = HEAVY | {"celery", "kombu", "numpy", "psycopg", "rich", "scipy", "sqlite3"}
    script = "import sys, cli.query\n"
    script += f"print(sorted(set(sys.modules) & {needless!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def shown(default: object) -> str:
    if default is None:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    if isinstance(default, float) and default == int(default):
        return str(int(default))
    return str(default)


def test_env_example_and_reference_list_every_setting_with_its_default() -> None:
    code = {name.upper(): shown(f.default) for name, f in Settings.model_fields.items()}
    lines = (ROOT / ".env.example").read_text().splitlines()
    example = dict(line.split("=", 1) for line in lines if re.match(r"[A-Z]", line))
    reference = (ROOT / "docs" / "reference.md").read_text()
    rows = re.findall(r"^\| `([A-Z0-9_]+)` \| `([^`]*)` \|", reference, re.M)
    assert example == code
    assert {name: default.strip() for name, default in rows} == code


def test_the_twins_that_break_each_other_are_never_installed_together() -> None:
    """onnxruntime beside onnxruntime-gpu is silently the CPU (rembg#600); faiss has twins, too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    twins = ("onnxruntime", "faiss")
    extras = project["optional-dependencies"]
    for dependencies in (project["dependencies"], extras["local"], extras["dev"]):
        assert not [name for name in dependencies if name.startswith(twins)]
    for extra, suffix in (("cpu", ("faiss-cpu", "onnxruntime>")), ("gpu", ("faiss-gpu", "-gpu"))):
        named = [name for name in extras[extra] if name.startswith(twins)]
        assert len(named) == 2
        for name in named:
            assert any(part in name for part in suffix), name
    installed = {distribution.name for distribution in metadata.distributions()}
    assert len({"onnxruntime", "onnxruntime-gpu"} & installed) == 1


def test_no_test_folder_is_a_package_that_would_hide_a_real_one() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []
    for name in ("cli", "workers", "pipeline"):
        package = import_module(name)
        assert Path(str(package.__file__)) == ROOT / name / "__init__.py"


def test_settings_come_from_the_environment_under_their_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREPROCESS_SIZE", "320, 240")
    monkeypatch.setenv("USE_BG_REMOVAL", "false")
    settings = Settings(_env_file=None)
    assert settings.preprocess_size == (320, 240)
    assert settings.use_bg_removal is False


def test_threads_of_all_local_workers_fit_the_cores() -> None:
    for cores in range(1, 65):
        for workers in range(1, 9):
            shares = share_threads(cores, workers)
            total = shares["index"] + shares["query"] + workers * shares["embed"]
            # One thread each is the least: only fewer cores than workers are exceeded.
            assert total <= max(cores, workers + 2)
            assert min(shares.values()) >= 1
