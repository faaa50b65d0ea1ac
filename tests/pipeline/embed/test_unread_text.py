"""Text that a model does not read is refused where it is blank, and told where it is not."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tiny_models

from pipeline.classify.labels import load_labels
from pipeline.embed.clip import Clip, load_clip
from pipeline.embed.unread_text import has_words
from pipeline.errors import WrongUse
from pipeline.search.query import Query
from pipeline.settings import Settings

MINI = Path(__file__).parents[3] / "models" / "imgrec-mini"
BLANK = {
    "spaces": "   ",
    "no-break and ideographic spaces": "\u00a0\u3000",
    "tabs and lines": "\t\n",
    "zero width": "\u200b\u200c\u200d\ufeff",
    "direction marks": "\u200e\u202e",
    "soft hyphen": "\u00ad",
    "Hangul fillers, which are letters to Unicode": "\u3164\u115f\u1160\uffa0",
    "the blank of Braille": "\u2800",
    "variation selectors": "\ufe0f\ufe0e",
    "combining marks alone": "\u0301\u0308",
    "punctuation": "...!?-",
    "quotes and brackets": "«»()[]",
    "operators": "+=<>",
    "a currency sign alone": "$",
}


@pytest.mark.parametrize("text", BLANK.values(), ids=BLANK)
@pytest.mark.parametrize("field", ["text", "without"])
def test_a_text_without_a_word_is_refused(text: str, field: str) -> None:
    option = {"text": "--text", "without": "--exclude-text"}[field]
    with pytest.raises(WrongUse, match=f"(?s)Invalid {option} .*contains no word"):
        Query.from_message(5, {"text": "shoe", field: text})


@pytest.mark.parametrize(
    "text", ["a", "連", "платье", "👗", "7", "½", "x\u200b", " 42 ", "ñ", "שמלה"]
)
def test_a_text_with_a_word_of_any_script_is_one(text: str) -> None:
    assert has_words(text)
    assert Query.from_message(5, {"text": text}).text == text


def test_a_label_s_word_that_says_nothing_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "labels.toml"
    file.write_text('templates = ["a {}"]\n[categories.shoe]\nwords = ["..."]\n[categories.bag]\n')
    with pytest.raises(WrongUse, match=r"categories.shoe.words.*contains no word"):
        load_labels(str(file))


@pytest.fixture(scope="module")
def mini() -> Clip:
    return load_clip(Settings(_env_file=None, embedding_model=str(MINI), use_bg_removal=False))


def test_words_that_the_bundled_model_does_not_know_are_named(mini: Clip) -> None:
    (sentence,) = mini.text_warnings(["платье red 👗 連衣裙", "a red shoe"])
    assert sentence.startswith("The model does not know the words 'платье', '👗', '連衣裙' and ")
    (sentence,) = mini.text_warnings(["a red zeppelin"])
    assert sentence == "The model does not know the word 'zeppelin' and ignores it."


def test_known_words_are_not_mentioned(mini: Clip) -> None:
    assert mini.text_warnings(["a red shoe", "A RED SHOE!", "blue, checked mug"]) == []


def test_many_unknown_words_are_counted(mini: Clip) -> None:
    (sentence,) = mini.text_warnings([" ".join(f"qx{n}z" for n in range(14))])
    assert "'qx9z' and 4 more" in sentence
    assert "'qx10z'" not in sentence


def test_what_lies_beyond_the_context_is_quoted(mini: Clip) -> None:
    (sentence,) = mini.text_warnings(["red shoe " * 20 + "and blue bag"])
    assert "45 tokens, and the model reads the first 32" in sentence
    assert mini.text_warnings(["red shoe " * 15]) == []  # 30 words, a start and an end


def test_a_clip_of_bytes_knows_every_word_and_tells_what_is_too_long(settings: Settings) -> None:
    clip = load_clip(settings)
    assert clip.text_warnings(["a red shoe"]) == []
    (sentence,) = clip.text_warnings(["abcdefghij" * 4])
    assert sentence == (
        "The text has 42 tokens, and the model reads the first 32: it ends before 'abcdefghij'."
    )


def test_single_characters_that_a_chinese_clip_lacks_are_named(
    settings: Settings, tmp_path: Path
) -> None:
    tiny_models.make("chinese_clip", tmp_path)
    clip = load_clip(settings.model_copy(update={"embedding_model": str(tmp_path)}))
    assert clip.text_warnings(["红色连衣裙"]) == []
    (sentence,) = clip.text_warnings(["红色龘靐连衣裙"])
    assert "the word '龘靐' and " in sentence


def test_a_model_without_a_tokenizer_warns_of_nothing(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(settings.embedding_model, folder)
    for file in [*folder.glob("*token*"), *folder.glob("vocab*"), *folder.glob("merges*")]:
        file.unlink()
    clip = load_clip(settings.model_copy(update={"embedding_model": str(folder)}))
    assert clip.text_warnings(["anything"]) == []


def test_the_labels_that_come_with_imgrec_are_known_to_the_bundled_model(mini: Clip) -> None:
    labels = load_labels()
    prompts = [text for texts in labels.category_prompts().values() for text in texts]
    for category in labels.categories:
        for attribute in labels.attributes_of(category):
            for texts in labels.attribute_prompts(category, attribute).values():
                prompts += texts
    assert mini.text_warnings(prompts) == []


def test_threads_that_embed_and_check_texts_at_once_do_not_disturb_each_other(mini: Clip) -> None:
    """A tokenizer keeps padding and truncation in itself, and all threads share it."""
    texts = ["red", "a long blue dress of wool", "black and white shoes"]
    alone = mini.embed_texts(texts)

    def embed_or_check(number: int) -> bool:
        if number % 2:
            return mini.text_warnings(["a red zeppelin " * number]) != []
        return bool(np.allclose(mini.embed_texts(texts), alone, atol=1e-5))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(embed_or_check, range(400)))
