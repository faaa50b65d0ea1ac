"""Make a CLIP of a few hundred kilobytes with seeded random weights: real code, no download.

It knows no meaning; it maps like pixels to like vectors, which is enough for tests of the plumbing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SIDE = 64  # pixels
CONTEXT = 32  # tokens


def make_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """Write a loadable CLIP folder (config, weights, image processor, tokenizer); return it."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    vision = {**sizes, "num_attention_heads": 4, "image_size": SIDE, "patch_size": 8}
    text = {
        **sizes,
        "num_attention_heads": 4,
        "vocab_size": len(_byte_vocabulary()),
        "max_position_embeddings": CONTEXT,
    }
    return write_clip(folder, vision, text, projection_dim=32, seed=seed)


def write_clip(
    folder: Path, vision: dict[str, Any], text: dict[str, Any], projection_dim: int, seed: int = 0
) -> Path:
    """Write a CLIP of any size with random weights; what is not named has CLIP's own default.

    The defaults of transformers' `CLIPConfig` are those of ViT-B/32.
    """
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.models.clip import CLIPImageProcessorPil

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _byte_vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    ends: dict[str, Any] = {
        "bos_token_id": vocabulary["<|startoftext|>"],
        "eos_token_id": vocabulary["<|endoftext|>"],
    }
    config: Any = CLIPConfig(
        vision_config=vision, text_config={**text, **ends}, projection_dim=projection_dim
    )
    side = config.vision_config.image_size
    CLIPTokenizer(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        model_max_length=config.text_config.max_position_embeddings,
    ).save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    ).save_pretrained(folder)
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
