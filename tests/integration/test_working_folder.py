"""No code is taken from the working folder, and imgrec finds its own packages beside others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from live_stack import BIN, ROOT, free_port

SHIPPED = ("cli", "web", "workers", "pipeline")
MODULES = (
    "celeryconfig",
    "redis",
    "json",
    "click",
    "kombu",
    "sitecustomize",
    "pydantic",
    "pathlib",
)
PACKAGES = (*SHIPPED, "celery", "rich")
MARK = "import os\nopen(os.path.join({folder!r}, 'was_run_' + __name__), 'w').close()\n"


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """imgrec as pip installs it; its dependencies are those of this environment."""
    tree = tmp_path_factory.mktemp("wheel")
    for package in SHIPPED:
        shutil.copytree(ROOT / package, tree / package)
    for file in ("pyproject.toml", "celeryconfig.py", "imgrec.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tree)
    script = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    subprocess.run([sys.executable, "-c", script], cwd=tree, check=True, capture_output=True)
    (wheel,) = tree.glob("*.whl")
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(site), str(wheel)], check=True)
    return site


@pytest.fixture
def installed(site: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(site, tmp_path / "site"))


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder full of Python of the user's own."""
    folder = tmp_path / "shop"
    for name in MODULES:
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(MARK.format(folder=str(folder)))
    for name in PACKAGES:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(MARK.format(folder=str(folder)))
    return folder


def run(
    folder: Path, *command: object, path: str | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment |= {"DATA_DIR": str(folder / "data"), "EMBEDDING_MODEL": "none"}
    environment |= {"DATABASE_URL": f"sqlite:///{folder}/data/app.db", "USE_BG_REMOVAL": "false"}
    environment |= {"REDIS_URL": f"redis://127.0.0.1:{free_port()}/0", **more}
    if path is not None:
        environment["PYTHONPATH"] = path
    return subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )


def was_run(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("was_run_*"))


@pytest.mark.parametrize("safe_path", ["", "1"])
@pytest.mark.parametrize("arguments", [("check", "--no-model"), ("jobs",), ("index", "list")])
def test_no_command_runs_code_of_the_working_folder(
    shop: Path, arguments: tuple[str, ...], safe_path: str
) -> None:
    done = run(shop, BIN / "imgrec", *arguments, PYTHONSAFEPATH=safe_path)
    assert was_run(shop) == []
    assert "Traceback" not in done.stderr
    assert done.returncode == (4 if arguments[0] == "check" else 0), done.stderr


def test_an_empty_entry_of_pythonpath_is_not_the_working_folder(shop: Path) -> None:
    """`PYTHONPATH=$PYTHONPATH:/opt/lib` has one wherever the variable was empty."""
    for name in ("sitecustomize", "json", "pathlib"):  # Python itself imports them before a program
        (shop / f"{name}.py").unlink(missing_ok=True)
    done = run(shop, BIN / "imgrec", "jobs", path=":/nowhere")
    assert done.returncode == 0, done.stderr
    assert was_run(shop) == []


def test_workers_that_up_starts_run_no_code_of_the_working_folder(shop: Path, model: Path) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    try:
        up = run(shop, BIN / "imgrec", "up", "--detach", REDIS_URL=url, EMBEDDING_MODEL=str(model))
        assert up.returncode == 0, up.stderr
        assert was_run(shop) == []
        check = run(shop, BIN / "imgrec", "check", "--no-model", REDIS_URL=url)
        assert "worker on query:" in check.stdout
        assert "no worker answers" not in check.stdout
    finally:
        run(shop, BIN / "imgrec", "down", REDIS_URL=url)
    assert was_run(shop) == []


def test_python_m_imgrec_takes_no_code_of_the_working_folder(shop: Path, installed: Path) -> None:
    for name in ("json", "pathlib"):  # `python -m` itself may need them: nothing of ours can help
        (shop / f"{name}.py").unlink()
    done = run(shop, sys.executable, "-m", "imgrec", "jobs", path=str(installed))
    assert done.returncode == 0, done.stderr
    assert was_run(shop) == []


def test_an_installed_imgrec_finds_its_own_before_others_on_the_path(
    shop: Path, installed: Path
) -> None:
    """A folder that the user has put on PYTHONPATH holds a cli, workers, pipeline, web, too."""
    for name in (*MODULES, "celery", "rich"):
        shutil.rmtree(shop / name, ignore_errors=True)
        (shop / f"{name}.py").unlink(missing_ok=True)
    done = run(installed.parent, installed / "bin/imgrec", "jobs", path=f"{shop}:{installed}")
    assert done.returncode == 0, done.stderr
    assert was_run(shop) == []


@pytest.mark.parametrize("file", ["cli/main.py", "cli/__init__.py", "workers/embed.py"])
@pytest.mark.parametrize("other", ["installed", "removed"])
def test_another_package_that_was_installed_over_ours_is_named(
    installed: Path, file: str, other: str
) -> None:
    if other == "installed":
        (installed / file).write_text("def main(): print('the other program')\n")
        (installed / "click_tools-1.0.dist-info").mkdir()
        (installed / "click_tools-1.0.dist-info/RECORD").write_text(f"{file},sha256=abc,40\n")
    else:  # its removal took our file with it
        (installed / file).unlink()
    done = run(installed.parent, installed / "bin/imgrec", "jobs", path=str(installed))
    assert done.returncode == 1
    assert "the other program" not in done.stdout
    assert f"Error: the file {installed / file} of imgrec was replaced or deleted" in done.stderr
    assert ("click_tools" in done.stderr) == (other == "installed")
    assert "pip install --force-reinstall --no-deps FOLDER" in done.stderr
    assert "Traceback" not in done.stderr


def test_celery_worker_reads_the_celeryconfig_that_came_with_an_installed_imgrec(
    shop: Path, installed: Path
) -> None:
    (shop / "celeryconfig.py").unlink()
    for name in ("celery", "rich", "json", "click", "kombu", "pathlib", "sitecustomize"):
        shutil.rmtree(shop / name, ignore_errors=True)
        (shop / f"{name}.py").unlink(missing_ok=True)
    done = run(shop, BIN / "celery", "report", path=str(installed))
    assert "imgrec.embed_shard" in done.stdout, done.stderr
    assert was_run(shop) == []


def test_celery_worker_in_the_project_s_root_reads_the_project_s_celeryconfig(
    tmp_path: Path,
) -> None:
    done = run(tmp_path, "sh", "-c", f"cd {ROOT} && {BIN / 'celery'} report")
    assert "imgrec.embed_shard" in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"])
def test_variables_of_another_celery_project_move_neither_workers_nor_commands(
    tmp_path: Path, name: str
) -> None:
    script = "from workers.celery_app import app; print(app().conf.broker_url)"
    script += "; print(app().conf.result_backend)"
    url = "redis://127.0.0.1:7777/3"
    more = {name: "amqp://guest@127.0.0.1:1//", "CELERY_CONFIG_MODULE": "shop.settings"}
    done = run(tmp_path, sys.executable, "-c", script, REDIS_URL=url, **more)
    assert done.stdout.split() == [url, url]
    assert f"{name} is ignored: the broker of imgrec is REDIS_URL" in done.stderr
