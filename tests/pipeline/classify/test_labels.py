"""The labels file: what comes with imgrec is complete, and an error names the key."""

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


def test_a_file_that_notepad_saved_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    file = tmp_path / "labels.toml"
    file.write_text(GOOD, encoding="utf-8-sig")
    assert list(load_labels(str(file)).categories) == ["shoe", "lamp", "bag"]


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
        ('["a {}"]', '["a "]', r"templates\[0\]: the template 'a ' lacks \{\}"),
        ('templates = ["a {}"]', "", r"templates: a value is missing"),
        (
            " {category}",
            "",
            r"attributes\.color\.templates\[0\]: the template 'a \{\}' lacks \{category\}",
        ),
        ('"red", "blue"', '"red", "red"', r"attributes\.color\.classes: 'red' is listed twice"),
        ('"red", "blue"', '"red"', r"attributes\.color\.classes: must have at least 2 items"),
        ('"red", "blue"', '"red", "../x"', r"classes\[1\]: '\.\./x' is not a name"),
        ("attributes.color", "attributes.words", "an attribute cannot be called 'words'"),
        ('["shoe", "sneaker"]', "7", r"categories\.shoe\.words: must be a list"),
        (
            '["shoe", "sneaker"]',
            '["shoe", 7]',
            r"categories\.shoe\.words\[1\]: must be a valid str",
        ),
        ('["shoe", "sneaker"]', '[" "]', r"categories\.shoe\.words\[0\]: must not be empty"),
        ("words =", "wrods =", r"categories\.shoe\.wrods: unknown name \(attributes: color\)"),
        (
            "attributes = []",
            'attributes = ["size"]',
            r"lamp\.attributes: there is no attribute 'si",
        ),
        ('"green", "white"', '"green"', r"categories\.bag\.color: must have at least 2 items"),
        ("categories.lamp", "categories.unknown", r"categories\.unknown: 'unknown' is what an unc"),
        ("[categories.lamp]\nattributes", "[categories]\nlamp", r"lamp: must be a table"),
        ("[categories.bag]", "[categories.bag", r"at line 13"),
    ],
)
def test_an_error_is_a_sentence_with_the_file_and_the_key(
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
