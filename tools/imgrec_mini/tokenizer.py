"""A word tokenizer of a few hundred words that transformers' AutoTokenizer loads."""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tools.imgrec_mini.captions import T_SHIRT, UNKNOWN

PAD, START, END = "[PAD]", "[CLS]", "[SEP]"


def build_tokenizer(words: list[str], context: int) -> Any:
    """Return a tokenizer that knows these words; any other word becomes one unknown token."""
    specials = (PAD, UNKNOWN, START, END)
    vocabulary = {word: number for number, word in enumerate((*specials, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(T_SHIRT), "tshirt"),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\p{L}\p{N}]+"), "removed")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(START, vocabulary[START]), (END, vocabulary[END])],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        model_max_length=context,
        pad_token=PAD,
        unk_token=UNKNOWN,
        cls_token=START,
        sep_token=END,
        model_input_names=["input_ids", "attention_mask"],
    )
