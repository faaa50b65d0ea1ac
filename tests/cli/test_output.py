"""What a file is called cannot steer a terminal, and stays readable."""

from __future__ import annotations

import json

import pytest

from cli.output import print_json, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb.jpg", "a\\x1b[31mb.jpg"),
        ("a\nError: b", "a\\x0aError: b"),
        ("a\u202egpj.exe", "a\\u202egpj.exe"),
        ("a\x9b2J", "a\\x9b2J"),
        ("a\udcff", "a\\udcff"),
        ("robe été & 靴 👩\u200d🔬.", "robe été & 靴 👩\u200d🔬."),
    ],
)
def test_control_characters_are_escaped_and_scripts_are_not(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_json_with_control_characters_is_the_same_object(
    capsys: pytest.CaptureFixture[str],
) -> None:
    value = {"path": "a\x1b\x9b\u202e\x7f été"}
    print_json(value)
    text = capsys.readouterr().out
    assert json.loads(text) == value
    assert not set(text.strip()) & set("\x1b\x9b\u202e\x7f")
