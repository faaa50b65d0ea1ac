"""Make a model of each kind with seeded random weights, a few hundred kilobytes: no download."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.2,  # or all images would have nearly the same vector
}
VISION = {**SIZES, "image_size": 64, "patch_size": 16}
TEXT = {**SIZES, "vocab_size": 300, "max_position_embeddings": 32}
SQUARE = {"height": 64, "width": 64}
T: Any = transformers  # it imports what is asked of it, when it is asked

Made = tuple[Any, Any]  # a model, and its image processor


def siglip(folder: Path) -> Made:
    text = {**TEXT, "projection_size": 32}
    config = T.SiglipConfig(text_config=text, vision_config=VISION)
    gemma_tokenizer(folder)
    return T.SiglipModel(config), T.SiglipImageProcessorPil(size=SQUARE)


def siglip2_naflex(folder: Path) -> Made:
    vision = {**SIZES, "patch_size": 16, "num_patches": 16}
    config = T.Siglip2Config(text_config={**TEXT, "projection_size": 32}, vision_config=vision)
    gemma_tokenizer(folder)
    return T.Siglip2Model(config), T.Siglip2ImageProcessorPil(patch_size=16, max_num_patches=16)


def metaclip2(folder: Path) -> Made:
    config = T.MetaClip2Config(
        text_config={**TEXT, "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1},
        vision_config=VISION,
        projection_dim=16,
    )
    words = ["<s>", "<pad>", "</s>", "<unk>", "▁", *(chr(code) for code in range(33, 127))]
    T.XLMRobertaTokenizer(
        vocab=[(word, -float(place)) for place, word in enumerate(words)], model_max_length=32
    ).save_pretrained(folder)
    processor = T.CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size=SQUARE)
    return T.MetaClip2Model(config), processor


def chinese_clip(folder: Path) -> Made:
    config = T.ChineseCLIPConfig(
        text_config={**TEXT, "max_position_embeddings": 64},
        vision_config=VISION,
        projection_dim=16,
    )
    # As on the hub: a vocabulary, and no file of a tokenizer.
    characters = list("红色连衣裙蓝鞋abcdefghijklmnopqrstuvwxyz")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return T.ChineseCLIPModel(config), T.ChineseCLIPImageProcessorPil(size=SQUARE, crop_size=SQUARE)


def dinov2(folder: Path) -> Made:
    config = T.Dinov2Config(**SIZES, image_size=64, patch_size=16)
    processor = T.BitImageProcessorPil(size={"shortest_edge": 72}, crop_size=SQUARE)
    return T.Dinov2Model(config), processor


def dinov2_with_registers(folder: Path) -> Made:
    config = T.Dinov2WithRegistersConfig(**SIZES, image_size=64, patch_size=16)
    return T.Dinov2WithRegistersModel(config), dinov2(folder)[1]


def dinov3_vit(folder: Path) -> Made:
    return T.DINOv3ViTModel(T.DINOv3ViTConfig(**VISION)), None


def dinov3_convnext(folder: Path) -> Made:
    config = T.DINOv3ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    return T.DINOv3ConvNextModel(config), None


def vit(folder: Path) -> Made:
    # As google/vit-base-patch16-224 is: fine-tuned, so that the file has no pooler.
    return T.ViTForImageClassification(T.ViTConfig(**VISION)), T.ViTImageProcessorPil(size=SQUARE)


def vit_msn(folder: Path) -> Made:
    return T.ViTMSNModel(T.ViTMSNConfig(**VISION)), T.ViTImageProcessorPil(size=SQUARE)


def ijepa(folder: Path) -> Made:
    return T.IJepaModel(T.IJepaConfig(**VISION)), T.ViTImageProcessorPil(size=SQUARE)


def convnext(folder: Path) -> Made:
    config = T.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    return T.ConvNextModel(config), T.ConvNextImageProcessorPil(size={"shortest_edge": 64})


def convnextv2(folder: Path) -> Made:
    config = T.ConvNextV2Config(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    return T.ConvNextV2ForImageClassification(config), convnext(folder)[1]


def swin(folder: Path) -> Made:
    config = T.SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4
    )
    return T.SwinModel(config), T.ViTImageProcessorPil(size=SQUARE)


def resnet(folder: Path) -> Made:
    config = T.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    return T.ResNetModel(config), T.ConvNextImageProcessorPil(size={"shortest_edge": 64})


def mobilenet_v2(folder: Path) -> Made:

    config = T.MobileNetV2Config(depth_multiplier=0.1, min_depth=8, initializer_range=0.5)
    return T.MobileNetV2Model(config), T.MobileNetV2ImageProcessorPil(
        size={"shortest_edge": 72}, crop_size=SQUARE
    )


DUAL: dict[str, Callable[[Path], Made]] = {
    each.__name__: each for each in (siglip, siglip2_naflex, metaclip2, chinese_clip)
}
IMAGE_ONLY: dict[str, Callable[[Path], Made]] = {
    each.__name__: each
    for each in (
        *(dinov2, dinov2_with_registers, dinov3_vit, dinov3_convnext),
        *(vit, vit_msn, ijepa, convnext, convnextv2, swin, resnet, mobilenet_v2),
    )
}


def gemma_tokenizer(folder: Path) -> None:
    """Write a Gemma tokenizer of single letters, without lower-casing of its own."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *map(chr, range(33, 127))]
    T.GemmaTokenizer(
        vocab={word: place for place, word in enumerate(words)}, merges=[], model_max_length=32
    ).save_pretrained(folder)


def make(kind: str, folder: Path, seed: int = 0) -> Made:
    """Write a model of a kind; return what transformers made, in evaluation mode."""
    torch.manual_seed(seed)
    model, processor = {**DUAL, **IMAGE_ONLY}[kind](folder)
    model.eval().save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    else:
        (folder / "preprocessor_config.json").write_text(
            '{"image_processor_type": "DINOv3ViTImageProcessorFast", "rescale_factor": '
            '0.00392156862745098, "size": {"height": 64, "width": 64}, "image_mean": '
            '[0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 2}'
        )
    return model, processor
