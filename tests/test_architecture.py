"""The walls of the house: who may import whom, and settings that are the same in three places."""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import import_module, metadata
from pathlib import Path

import pytest
from live_stack import FAILPOINTS
from pydantic import ByteSize

from cli.supervisor import share_threads
from pipeline.renamed_settings import RENAMED
from pipeline.settings import Settings

ROOT = Path(__file__).parent.parent
EXAMPLE_HEAD = """\
# Every setting with its default. Copy this file to .env in the folder where you run imgrec and
# change what you need. Variables of the environment take precedence over the file.
"""
HEAVY = {"torch", "transformers", "faiss", "rembg", "onnxruntime", "imagehash", "skimage"}
HTTP = {"fastapi", "starlette", "uvicorn", "jinja2"}
SHIPPED = ("cli", "web", "workers", "pipeline")
MODULES = ("celeryconfig.py", "imgrec.py")
# The packages of pipeline/, uppermost first; below them are its modules that are in no package.
LAYERS = (
    "rebuild",
    "engines",
    "store",
    "train",
    "classify",
    "evaluate",
    "search",
    "duplicates",
    "feeds",
    "fetch",
    "index",
    "embed",
    "preprocess",
    "images",
    "storage",
)


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


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def pipeline_imports() -> dict[str, set[str]]:
    """Return the modules of pipeline/ that each of them imports anywhere, lazily too."""
    files = {module_of(file): file for file in sorted((ROOT / "pipeline").rglob("*.py"))}
    imports: dict[str, set[str]] = {}
    for module, file in files.items():
        names = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file} imports relatively"
                names |= {str(node.module), *(f"{node.module}.{a.name}" for a in node.names)}
        imports[module] = names & files.keys() - {"pipeline", module}
    return imports


def layer(module: str) -> int:
    package = module.split(".")[1]
    if (ROOT / "pipeline" / package).is_dir():
        return LAYERS.index(package)
    return len(LAYERS)


def test_no_package_of_the_pipeline_imports_one_above_it() -> None:
    imports = pipeline_imports()
    assert len(imports) > len(LAYERS)
    imports.pop("pipeline")
    upward = [
        f"{module} imports {name}"
        for module, names in imports.items()
        for name in sorted(names)
        if layer(name) < layer(module)
    ]
    assert upward == []


def test_no_modules_of_the_pipeline_import_each_other_in_a_circle() -> None:
    TopologicalSorter(pipeline_imports()).prepare()  # raises CycleError


def test_nothing_that_ships_imports_development_code() -> None:
    for package in SHIPPED:
        assert offenders(package, {"tools", "tests"}) == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert sorted(patterns) == sorted(f"{package}*" for package in SHIPPED)
    assert "!tools/" not in (ROOT / ".dockerignore").read_text().split()


def test_a_wheel_holds_the_packages_with_their_data_and_no_development_code(tmp_path: Path) -> None:
    tree, skipped = tmp_path / "tree", shutil.ignore_patterns("__pycache__", "*.egg-info")
    for package in SHIPPED:
        shutil.copytree(ROOT / package, tree / package, ignore=skipped)
    for file in ("pyproject.toml", *MODULES, "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tree)
    (tree / "tools").mkdir()
    (tree / "tools" / "__init__.py").touch()
    script = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tree)
    assert done.returncode == 0, done.stderr
    (wheel,) = tree.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == {*SHIPPED, *MODULES}
    files = {
        str(file.relative_to(tree))
        for package in SHIPPED
        for file in (tree / package).rglob("*")
        if file.is_file()
    }
    assert names == files | set(MODULES)
    assert len([name for name in names if name.startswith("pipeline/probe_images/")]) == 12


def test_the_pipeline_knows_neither_celery_nor_who_uses_it() -> None:
    assert offenders("pipeline", {"cli", "web", "workers", "celery", "kombu"}) == []


def test_workers_know_neither_the_command_line_nor_the_web_server() -> None:
    assert offenders("workers", {"cli", "click", "web", *HTTP}) == []


def test_the_web_server_knows_no_command_and_computes_nothing() -> None:
    assert offenders("web", {"cli", "click", *HEAVY}) == []


def test_the_command_line_imports_the_web_server_in_its_own_command_only() -> None:
    assert offenders("cli", HTTP) == []
    assert offenders("cli", {"web"}) == [str(ROOT / "cli" / "web.py")]


def test_the_command_line_never_imports_a_model_library() -> None:
    assert offenders("cli", HEAVY) == []


def test_importing_the_workers_loads_no_model_library() -> None:
    script = "import sys, workers.tasks, workers.local\n"
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


def test_what_ships_cannot_kill_itself_whatever_the_environment_says() -> None:
    script = "from pipeline.failpoints import failpoint; failpoint('line'); print('alive')"
    environment = {**os.environ, "IMGREC_FAILPOINT": "line"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.stdout.strip() == "alive", done.stderr
    armed = {**environment, "PYTHONPATH": str(FAILPOINTS)}
    assert subprocess.run(command, cwd=ROOT, env=armed).returncode == -signal.SIGKILL


def test_what_needs_the_database_or_works_in_this_process_loads_no_celery() -> None:
    needless = {*HEAVY, "celery", "kombu"}
    script = "import sys; from cli.wiring import Wiring; Wiring().resources, Wiring().local\n"
    script += f"print(sorted(set(sys.modules) & {needless!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


STATE = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp, ast.Call)
CONSTANT = {"getLogger", "gethostname", "TypeVar", "compile", "tuple", "frozenset"}


def module_state(file: Path) -> set[str]:
    """Return the names that a module binds to something that can change."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Global):
            found |= set(node.names)
    for node in ast.parse(file.read_text()).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(node.value, STATE):
            continue
        call = node.value.func if isinstance(node.value, ast.Call) else None
        if getattr(call, "attr", getattr(call, "id", None)) in CONSTANT:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        found |= {ast.unparse(target) for target in targets}
    return {name for name in found if not name.strip("_").isupper()}


def test_a_worker_holds_its_state_in_one_object() -> None:
    """What a module holds would outlive the resources of a test, and mix --local with the rest."""
    state = {file.stem: module_state(file) for file in (ROOT / "workers").glob("*.py")}
    assert {name for name, names in state.items() if names} == {"resources"}
    assert state["resources"] == {"_lock", "_process_resources"}


def written(default: object) -> str:
    """Write a default as a `.env` file has it."""
    if default is None:
        return ""
    if isinstance(default, ByteSize):
        return default.human_readable().replace(".0", "")
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    if isinstance(default, float) and default == int(default):
        return str(int(default))
    return str(default)


def defaults_and_descriptions() -> Iterator[tuple[str, str, str]]:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        yield name.upper(), written(field.default), field.description


def example_file() -> str:
    """Write `.env.example` from the fields of `Settings`."""
    text = EXAMPLE_HEAD
    for name, default, description in defaults_and_descriptions():
        comment = "\n# ".join(textwrap.wrap(description.replace("`", ""), 96))
        text += f"\n# {comment}\n{name}={default}\n"
    return text


def reference_with_settings(reference: str) -> str:
    """Write the table of settings into docs/reference.md."""
    rows = "".join(
        f"| `{name}` | `{default or ' '}` | {description} |\n"
        for name, default, description in defaults_and_descriptions()
    )
    return re.sub(
        r"(?<=^\| Setting \| Default \| Meaning \|\n\|---\|---\|---\|\n)(\|.*\n)+",
        lambda match: rows,
        reference,
        count=1,
        flags=re.M,
    )


def test_env_example_and_reference_say_what_the_settings_say() -> None:
    """The three have the same names, defaults and descriptions, with one source."""
    example, reference = ROOT / ".env.example", ROOT / "docs" / "reference.md"
    expected = {example: example_file(), reference: reference_with_settings(reference.read_text())}
    if os.environ.get("IMGREC_WRITE_SETTINGS"):
        for file, text in expected.items():
            file.write_text(text)
    for file, text in expected.items():
        assert file.read_text() == text, f"{file.name}: write it with IMGREC_WRITE_SETTINGS=1"
    assert reference.read_text().count("\n| `DATA_DIR` | `data` | ") == 1


def test_sentences_name_no_setting_that_does_not_exist() -> None:
    """Whoever reads one looks for it in .env.example."""
    settings = {name.upper() for name in Settings.model_fields} | {name.upper() for name in RENAMED}
    others = {
        "SQL_ASCII",  # an encoding of PostgreSQL
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"),
        *("AWS_ENDPOINT_URL", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY"),
        "GOOGLE_APPLICATION_CREDENTIALS",
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "HF_HUB_OFFLINE", "HF_HOME", "HF_TOKEN", "U2NET_HOME"),
    }
    unknown = set()
    for package in ("cli", "workers", "pipeline"):
        for file in (ROOT / package).rglob("*.py"):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
                    continue
                if id(node) in docstrings or " " not in node.value.strip():
                    continue  # no sentence: SQL, a name, a key
                names = re.findall(r"\b[A-Z][A-Z0-9]+(?:_[A-Z0-9]+)+\b", node.value)
                unknown |= {(file.name, name) for name in names}
    assert {(file, name) for file, name in unknown if name not in settings | others} == set()


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
