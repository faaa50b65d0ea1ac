"""Write the two models that imgrec-mini must beat: random weights, and ImageNet's without training.

python -m tools.imgrec_mini.baselines --backbone FILE.pt --tokenizer models/imgrec-mini --out DIR
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer

from tools.imgrec_mini.backbone import (
    BACKBONE_DIM,
    build_image_processor,
    build_model,
    load_backbone,
)

SIDE = 224


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the baselines of imgrec-mini.")
    parser.add_argument("--backbone", type=Path, required=True, help="ImageNet weights, a .pt file")
    parser.add_argument("--tokenizer", type=Path, default=Path("models/imgrec-mini"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    for name in ("random", "untrained"):
        torch.manual_seed(0)
        model = build_model(len(tokenizer), SIDE, BACKBONE_DIM)
        if name == "untrained":
            load_backbone(model.vision_model, options.backbone)
            torch.nn.init.eye_(model.visual_projection.weight)  # the pooled features as they are
        folder = options.out / name
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        build_image_processor(SIDE).save_pretrained(folder)


if __name__ == "__main__":
    main()
