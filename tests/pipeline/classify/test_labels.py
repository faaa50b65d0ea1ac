"""The labels file: what comes with imgrec is complete, and a mistake is told with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.classify.labels import load_labels
from pipeline.errors import WrongUse
from tools.drawing import CATEGORIES, COLORS, PATTERNS, STYLES
from tools.imgrec_mini.captions import CATEGORY_WORDS

GOOD = """\
templates = ["a {}"]

[attributes.color]
templates = ["a {} {category}"]
classes = ["red", "blue"]

[categories.shoe]
words = ["shoe", "sneaker"]

[categories.lamp]
attributes = []

[categories.bag]
color = ["green", "white"]
"""


def test_the_file_that_comes_with_imgrec_covers_what_its_model_knows() -> None:
    labels = load_labels()
    assert set(labels.categories) == {*CATEGORIES, *CATEGORY_WORDS}
    assert labels.attributes["color"].classes == COLORS
    assert labels.attributes["pattern"].classes == PATTERNS
    assert labels.attributes["style"].classes == STYLES


def test_prompts_are_every_template_with_every_word(tmp_path: Path) -> None:
    (tmp_path / "labels.toml").write_text(GOOD)
    labels = load_labels(str(tmp_path / "labels.toml"))
    assert labels.category_prompts()["shoe"] == ("a shoe", "a sneaker")
    assert labels.attribute_prompts("shoe", "color")["red"] == ("a red shoe", "a red sneaker")
    assert labels.attribute_prompts(None, "color")["red"] == ("a red product",)


def test_a_category_can_have_other_classes_or_no_attribute(tmp_path: Path) -> None:
    (tmp_path / "labels.toml").write_text(GOOD)
    labels = load_labels(str(tmp_path / "labels.toml"))
    assert list(labels.attribute_prompts("bag", "color")) == ["green", "white"]
    assert labels.attributes_of("lamp") == {}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('["a {}"]', '["a "]', r"line 1: the template 'a ' lacks \{\}"),
        (" {category}", "", r"line 4: the template 'a \{\}' lacks \{category\}"),
        ('"red", "blue"', '"red", "red"', "line 5: a class stands there twice"),
        ('"red", "blue"', '"red"', "line 5: 'classes' needs 2 or more"),
        ('"red", "blue"', '"red", "../x"', r"line 5: '\.\./x' cannot be a name"),
        ('["shoe", "sneaker"]', "7", "line 8: 'words' must be a list of texts"),
        ("words =", "wrods =", "line 8: 'wrods' is not known here"),
        ("attributes = []", 'attributes = ["size"]', "line 11: there is no attribute 'size'"),
        ("categories.lamp", "categories.unknown", "line 10: 'unknown' is what a doubtful answer"),
        ("[categories.bag]", "[categories.bag", r"at line 13"),
    ],
)
def test_a_mistake_is_a_sentence_with_file_and_line(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    file = tmp_path / "labels.toml"
    file.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(WrongUse, match=words) as caught:
        load_labels(str(file))
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match=r"nothing\.toml cannot be read: No such file"):
        load_labels(str(tmp_path / "nothing.toml"))
