"""What a model does not read of a text: blanks, words that it does not know, what is too long."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from pipeline.errors import quote

# Letters and symbols by their category that show nothing: fillers of Hangul, the blank of Braille.
BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a tokenizer's last resort for a character that it lacks
MAX_WORDS = 10  # in one sentence
MAX_REST = 60  # characters of what is too long


def has_words(text: str) -> bool:
    """Tell whether there is anything to read: a letter, a digit or a pictogram."""
    return any(_readable(character) for character in text)


def _readable(character: str) -> bool:
    category = unicodedata.category(character)
    return (category[0] in "LN" or category == "So") and character not in BLANK


def warnings(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[str]:
    """Return a sentence about the unknown words of some texts, and one for each that is too long.

    Args:
        tokenizer: of transformers.
        texts: as the tokenizer gets them.
        max_tokens: the model's context, with the tokens that mark start and end.
    """
    words = dict.fromkeys(word for text in texts for word in text.split() if has_words(word))
    unknown = list(
        dict.fromkeys(piece for word in words for piece in _unknown_pieces(tokenizer, word))
    )
    sentences = []
    if unknown:
        more = f" and {len(unknown) - MAX_WORDS} more" if len(unknown) > MAX_WORDS else ""
        listed = ", ".join(quote(word) for word in unknown[:MAX_WORDS])
        sentences.append(f"The model does not know the words {listed}{more} and ignores them.")
    if len(unknown) == 1:
        sentences = [f"The model does not know the word {quote(unknown[0])} and ignores it."]
    for text in dict.fromkeys(texts):
        n_tokens = len(tokenizer(text)["input_ids"])
        if n_tokens > max_tokens:
            rest = _rest(tokenizer, text, max_tokens)
            where = f": it ends before '{rest}'" if rest else ""
            sentences.append(
                f"The text has {n_tokens} tokens, and the model reads the first {max_tokens}"
                f"{where}."
            )
    return sentences


def _unknown_pieces(tokenizer: Any, word: str) -> list[str]:
    """Return the parts of a word that the tokenizer has no token for; all of one that it drops."""
    encoded = tokenizer(word, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
    ids = encoded["input_ids"]
    if not ids:
        return [word]
    unknown = [
        token_id == tokenizer.unk_token_id or BYTE.fullmatch(token) is not None
        for token_id, token in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)
    ]
    if not any(unknown):
        return []
    if all(unknown) or not tokenizer.is_fast:
        return [word]
    pieces: list[tuple[int, int]] = []
    for (start, end), lacks in zip(encoded["offset_mapping"], unknown, strict=True):
        if lacks and pieces and pieces[-1][1] >= start:
            pieces[-1] = (pieces[-1][0], end)
        elif lacks:
            pieces.append((start, end))
    return [word[start:end] or word for start, end in pieces]


def _rest(tokenizer: Any, text: str, max_tokens: int) -> str:
    """Return the start of what is not read; empty where the tokenizer cannot tell."""
    if not tokenizer.is_fast:
        return ""
    encoded = tokenizer(text, truncation=True, max_length=max_tokens, return_offsets_mapping=True)
    rest = text[max(end for _, end in encoded["offset_mapping"]) :].strip()
    return f"{rest[:MAX_REST]}..." if len(rest) > MAX_REST else rest
