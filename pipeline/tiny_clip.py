"""Make a CLIP of a few hundred kilobytes with seeded random weights: real code, no download.

It knows no meaning; it maps like pixels to like vectors, which is enough for tests of the plumbing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

SIDE = 64


def make_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """Write a loadable CLIP folder (config, weights, image processor, tokenizer); return it."""
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.models.clip import CLIPImageProcessorPil

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _byte_vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=32
    ).save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    ).save_pretrained(folder)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config = CLIPConfig(
        vision_config={**sizes, "num_attention_heads": 4, "image_size": SIDE, "patch_size": 8},
        text_config={
            **sizes,
            "num_attention_heads": 4,
            "vocab_size": len(vocabulary),
            "max_position_embeddings": 32,
            "bos_token_id": vocabulary["<|startoftext|>"],
            "eos_token_id": vocabulary["<|endoftext|>"],
        },
        projection_dim=32,
    )
    torch.manual_seed(seed)
    CLIPModel(config).save_pretrained(folder)
    return folder


def _byte_vocabulary() -> dict[str, int]:
    """One token a printable byte, alone and at the end of a word, as CLIP's tokenizer spells it."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}


if __name__ == "__main__":
    make_tiny_clip(Path(sys.argv[1]))
