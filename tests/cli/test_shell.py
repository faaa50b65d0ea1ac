"""What a line of the shell becomes, and what completes it."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from inline_worker import InlineWorker
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from cli.completion import LineCompleter
from cli.main import COMMANDS, imgrec
from cli.shell import run_line, serve, translate
from cli.wiring import Wiring
from pipeline.cgroup import cores
from pipeline.settings import Settings, load_settings
from workers.dispatch import CeleryDispatcher
from workers.resources import Resources


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("query a.jpg --image b.jpg", "query a.jpg --image b.jpg --wait"),
        ("remove lamp --image lamp/a.jpg", "remove lamp --image lamp/a.jpg"),
        ("query a#1.jpg --text #1", "query a#1.jpg --text #1 --wait"),
        ("query a.jpg --wait", "query a.jpg --wait"),
        ("classify --image a.jpg --use-trained", "classify a.jpg --use-trained --wait"),
        ("rebuild --products_dir d", "enqueue-rebuild d --wait"),
        ("rebuild d --full", "enqueue-rebuild d --full --wait"),
        ("rebuild", "enqueue-rebuild data/products --wait"),
        ("rebuild --full", "enqueue-rebuild data/products --full --wait"),
        ("rebuild --timeout 60", "enqueue-rebuild data/products --timeout 60 --wait"),
        ("rebuild --timeout 60 d", "enqueue-rebuild --timeout 60 d --wait"),
        ("rebuild --timeout=60 --full d", "enqueue-rebuild --timeout=60 --full d --wait"),
        ("cache list", "cache list"),
        ("query --help", "query --help"),
        ("help query", "query --help"),
        ("help rebuild", "enqueue-rebuild --help"),
        ("rebuild --help", "enqueue-rebuild --help"),
        ("help index list", "index list --help"),
        ("help", "help"),
        ("", ""),
        ("# nothing", ""),
    ],
)
def test_old_and_new_spellings_become_commands(line: str, words: str, settings: Settings) -> None:
    settings = settings.model_copy(update={"data_dir": Path("data")})
    assert " ".join(translate(line, False, settings)) == words


def test_local_is_handed_on_to_those_that_have_it(settings: Settings) -> None:
    """Each command is given it, or does not know it; `status` knows it with --wait."""
    for name in COMMANDS:
        command = imgrec.get_command(click.Context(imgrec), name)
        assert command is not None
        known = any("--local" in each.opts for each in command.params)
        handed_on = "--local" in translate(f"{name} --wait", True, settings)
        assert handed_on == known, name
    for line in ("query a.jpg", "classify a.jpg", "rebuild", "add a.jpg --product b", "duplicates"):
        assert translate(line, True, settings)[-1] == "--local"
        assert "--local" not in translate(line, False, settings)
    for line in ("status", "index list", "help query"):
        assert "--local" not in translate(line, True, settings)


@pytest.mark.parametrize(
    ("lines", "code"), [("help\n# nothing\n", 0), ("nonsense\nhelp\n", 1), ("query 'a\nexit\n", 1)]
)
def test_a_line_of_a_pipe_that_fails_is_told_by_the_exit_code(
    lines: str, code: int, settings: Settings
) -> None:
    wiring = Wiring(Resources(settings, CeleryDispatcher(settings.redis_url)))
    assert CliRunner().invoke(serve, ["--local"], obj=wiring, input=lines).exit_code == code


def complete(text: str) -> list[str]:
    found = LineCompleter().get_completions(Document(text), CompleteEvent())
    return [completion.text for completion in found]


def test_commands_options_and_subcommands_are_completed() -> None:
    assert complete("que") == ["query"]
    assert {"rebuild", "exit", "query"} <= set(complete(""))
    assert "serve" not in complete("")
    assert complete("query a.jpg --top") == ["--top-k"]
    assert complete("cache cl") == ["clear"]
    assert complete("rebuild --save") == ["--save-preprocessed"]
    assert complete("nonsense --x") == []


def test_paths_are_completed(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.jpg").touch()
    assert complete("query pho") == ["to.jpg"]


def test_a_line_with_local_changes_nothing_for_the_lines_after_it(
    inline_worker: InlineWorker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = inline_worker.resources.settings.model_copy(update={"cpu_threads": 0})
    monkeypatch.setenv("REDIS_URL", settings.redis_url)  # where nobody listens
    load_settings.cache_clear()
    environment, before = dict(os.environ), load_settings()
    wiring = Wiring(Resources(settings, CeleryDispatcher(settings.redis_url)))
    image = inline_worker.toy.root / "kind0" / "04.png"

    def run(line: str) -> tuple[str, str]:
        run_line(line, False, wiring)
        shown = capsys.readouterr()
        return shown.out, shown.err

    assert "published" in run(f"enqueue-rebuild {inline_worker.toy.root} --local")[0]
    assert "Redis does not answer" in run(f"enqueue-rebuild {inline_worker.toy.root}")[1]
    assert (
        len(inline_worker.toy.jobs.list_with_progress()) == 1
    )  # the second one was not even planned
    assert "kind0/04" in run(f"query {image} --local")[0]
    model = wiring.local.resources.clip
    assert "Redis does not answer" in run(f"query {image}")[1]
    assert "kind0/04" in run(f"query {image} --local")[0]
    assert wiring.local.resources.clip is model  # loaded once
    assert wiring.local.resources.settings.threads == cores()
    assert "clip" not in vars(wiring.resources)
    assert dict(os.environ) == environment
    assert load_settings() is before
    load_settings.cache_clear()
