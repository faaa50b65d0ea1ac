"""The face of the program: help, errors, exit codes, JSON."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from live_stack import BIN, LiveStack, draw_folder, free_port
from PIL import Image

from cli.main import COMMANDS, imgrec
from cli.query_report import write_page


@pytest.fixture
def shop(tmp_path: Path, model: Path) -> LiveStack:
    """An imgrec without any server."""
    return LiveStack(tmp_path, model)


def one_line(command: click.Command) -> str:
    return command.get_short_help_str(limit=200)


def test_a_damaged_installation_is_one_sentence(shop: LiveStack) -> None:
    broken = shop.folder / "redis"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('a file is missing')")
    code = f"import sys; sys.path.insert(0, {str(shop.folder)!r}); from cli.main import main; "
    done = subprocess.run(
        [sys.executable, "-c", f"{code}main(['jobs'])"],
        env=shop.env(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: unexpected ImportError: a file is missing")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_help_that_the_list_shows(name: str) -> None:
    command = imgrec.get_command(click.Context(imgrec), name)
    assert command is not None
    assert one_line(command) == COMMANDS[name][2]
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help or option.name == "limit", f"{name} {option.opts}"


def leaves(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield every command that is no group, with its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaves(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


REFERENCE = (Path(__file__).parents[2] / "docs" / "reference.md").read_text()


@pytest.mark.parametrize(("path", "command"), list(leaves(imgrec, "imgrec")))
def test_every_command_stands_in_the_reference_with_its_options(
    path: str, command: click.Command
) -> None:
    section = re.search(rf"^### {path}\n(.*?)^##", REFERENCE, re.MULTILINE | re.DOTALL)
    assert section, f"docs/reference.md has no heading '### {path}'"
    for option in command.params:
        if isinstance(option, click.Option):
            assert re.search(rf"`{option.opts[0]}[` ]", section[1]), option.opts


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom cli.main import imgrec\n"
        "try:\n imgrec(['--help'])\nexcept SystemExit:\n pass\n"
        "heavy = {'celery', 'numpy', 'PIL', 'pydantic', 'rich', 'redis', 'torch', 'faiss'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "enqueue-rebuild" in done.stdout
    assert done.stderr.strip() == "[]"


def test_a_mistyped_command_is_wrong_use_with_a_guess(shop: LiveStack) -> None:
    done = shop.imgrec("enqeue-rebuild", "x")
    assert done.returncode == 2
    assert "Did you mean 'enqueue-rebuild'?" in done.stderr


def test_what_cannot_work_is_exit_code_2_and_one_sentence(shop: LiveStack) -> None:
    (shop.folder / "empty").mkdir()
    (shop.folder / "texts").mkdir()
    (shop.folder / "texts" / "a.txt").touch()
    (shop.folder / "no.jpg").write_text("no image")
    whole = shop.folder / "whole.jpg"
    draw_folder(shop.folder / "drawn", 1)
    whole.write_bytes(next((shop.folder / "drawn").rglob("*.jpg")).read_bytes())
    (shop.folder / "cut.jpg").write_bytes(whole.read_bytes()[:1000])
    Image.new("RGB", (1, 1)).save(shop.folder / "dot.png")
    for command, words in (
        (["enqueue-rebuild", "nowhere"], "No such file or directory: 'nowhere'"),
        (["enqueue-rebuild", "empty"], "is empty"),
        (["enqueue-rebuild", "texts"], "contains no images"),
        (["query", "nowhere.jpg"], "does not exist"),
        (["query", "no.jpg"], "The image 'no.jpg' cannot be used: the file is not an image"),
        (["query", "cut.jpg"], "cut off"),
        (["query", "dot.png"], "1x1"),
        (["status", "nothing"], "There is no job 'nothing'"),
        (["index", "info", "v0099"], "There is no index version 'v0099'"),
    ):
        done = shop.imgrec(*command)
        assert (done.returncode, done.stdout) == (2, ""), (command, done)
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    for limit, words in (("MAX_IMAGE_PIXELS", "25,600 pixels"), ("MAX_IMAGE_BYTES", "bytes")):
        done = shop.imgrec("query", "whole.jpg", **{limit: "1024"})
        assert done.returncode == 2
        assert limit in done.stderr
        assert words in done.stderr


def test_a_setting_that_does_not_parse_is_named(shop: LiveStack) -> None:
    for name, value in (
        ("TOP_K", "many"),
        ("PREPROCESS_SIZE", "224"),
        ("DEVICE", "tpu"),
        ("DATABASE_URL", "mysql://x"),
        ("PREPROCESS_BG_COLOR", "1,2,999"),
    ):
        done = shop.imgrec("jobs", **{name: value})
        assert done.returncode == 2
        assert f"The setting {name} cannot be used" in done.stderr


def test_a_server_that_is_away_is_exit_code_4(shop: LiveStack) -> None:
    draw_folder(shop.products, 1)
    closed = f"127.0.0.1:{free_port()}"
    image = str(next(shop.products.rglob("*.jpg")))
    for command in (["enqueue-rebuild", str(shop.products)], ["query", image], ["result", "x"]):
        done = shop.imgrec(*command, REDIS_URL=f"redis://:pass@{closed}/0")
        assert done.returncode == 4
        assert "Redis does not answer" in done.stderr
        assert ":pass@" not in done.stderr
    done = shop.imgrec("jobs", DATABASE_URL=f"postgresql://shop:pass@{closed}/x")
    assert done.returncode == 4
    assert "does not answer" in done.stderr
    assert "pass@" not in done.stderr


def test_no_index_is_exit_code_3(shop: LiveStack) -> None:
    for command in (["index", "info"], ["index", "rollback"]):
        done = shop.imgrec(*command)
        assert done.returncode == 3
        assert "FAISS index not found" in done.stderr


def test_the_traceback_is_there_when_it_is_asked_for(shop: LiveStack) -> None:
    assert "Traceback" in shop.imgrec("--debug", "status", "nothing").stderr


def test_json_is_one_object_on_stdout(shop: LiveStack) -> None:
    for command in (["jobs"], ["index", "list"]):
        assert isinstance(json.loads(shop.imgrec(*command, "--json").stdout), dict)


def test_down_and_health_say_that_nothing_runs(shop: LiveStack) -> None:
    assert "'imgrec up' is not running for" in shop.imgrec("down").stderr
    done = shop.imgrec("health", "query")
    assert done.returncode == 1
    assert "No worker of queue 'query'" in done.stderr


def test_the_page_escapes_names_and_lives_without_a_picture(tmp_path: Path) -> None:
    match = {"rank": 1, "product_id": "<b>&", "filename": "<b>&.jpg", "score": 0.5, "distance": 0.5}
    answer = {"query_id": "q", "index_version": "v0001", "matches": [match]}
    write_page(tmp_path / "page.html", "<script>.jpg", b"\xff\xd8", answer, {})
    text = (tmp_path / "page.html").read_text()
    assert "<script>" not in text
    assert "&lt;b&gt;&amp;" in text
    assert "no image" in text


def test_the_command_is_installed_beside_this_python() -> None:
    done = subprocess.run([BIN / "imgrec", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "imgrec" in done.stdout
