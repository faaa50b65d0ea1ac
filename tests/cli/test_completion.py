"""Completion in a shell, which Click generates: `_IMGREC_COMPLETE=bash_source imgrec`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from live_stack import BIN

from cli.main import COMMANDS

# `compopt` works only while readline completes a line; commands and options do not need it.
SCRIPT = """
eval "$(_IMGREC_COMPLETE=bash_source imgrec)"
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
_imgrec_completion imgrec
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        (["enq"], ["enqueue-rebuild"]),
        (["--d"], ["--debug"]),
        (["index", ""], ["info", "list", "migrate", "rollback"]),
        (["query", "--pro"], ["--product"]),
        (["cache", "clear", "--kind", ""], ["vectors", "results", "texts"]),
    ],
)
def test_bash_completes_commands_options_and_values(
    words: list[str], completions: list[str]
) -> None:
    done = subprocess.run(
        ["bash", "-c", SCRIPT, "bash", "imgrec", *words],
        env={"PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == completions, done.stderr


def complete(line: str, word: int, modules: set[str]) -> tuple[list[str], list[str]]:
    """Complete a line as bash asks; return the completions, and which of `modules` were loaded."""
    script = (
        "import atexit, sys\n"
        f"modules = {modules!r}\n"
        "atexit.register(lambda: print(*sorted(modules & set(sys.modules)), file=sys.stderr))\n"
        "from cli.main import main\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={
            **os.environ,
            "COMP_WORDS": line,
            "COMP_CWORD": str(word),
            "_IMGREC_COMPLETE": "bash_complete",
        },
        capture_output=True,
        text=True,
    )
    return done.stdout.splitlines(), done.stderr.splitlines()[-1].split()


@pytest.mark.parametrize(("line", "word"), [("imgrec ", 1), ("imgrec query --", 2)])
def test_completion_loads_no_model_library_and_no_celery(line: str, word: int) -> None:
    heavy = {"torch", "transformers", "faiss", "rembg", "onnxruntime", "celery", "rich"}
    completions, loaded = complete(line, word, heavy)
    assert len(completions) > 10
    assert loaded == []


def test_completing_the_name_of_a_command_imports_no_command() -> None:
    modules = {module for module, _, _ in COMMANDS.values()} | {"pydantic", "numpy", "PIL"}
    completions, loaded = complete("imgrec ", 1, modules)
    assert completions == [f"plain,{name}" for name in COMMANDS]
    assert loaded == []
