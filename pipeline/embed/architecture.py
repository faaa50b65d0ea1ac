"""How each kind of model makes its vectors, as its own model card has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Of output objects: the vector of the first token, the mean of all tokens, or the model's own pool.
CLS, MEAN, POOLED = "cls", "mean", "pooled"


@dataclass(frozen=True)
class Architecture:
    """What is special about a model type of transformers."""

    name: str  # as people call it
    pooling: str = POOLED  # of an image encoder; a dual encoder pools and projects by itself
    options: tuple[tuple[str, Any], ...] = ()  # of from_pretrained
    has_words: bool = False
    # SigLIP was trained on lower-case texts padded to its full context and without a mask, CLIP on
    # texts as long as they are.
    fixed_length_lower_case: bool = False
    context: int | None = None  # tokens that it was trained on, where its position table has more


def _dual(name: str, **facts: Any) -> Architecture:
    return Architecture(name, has_words=True, **facts)


# A pooler that fine-tuned checkpoints of ViT lack would be random: the class token comes before it.
_NO_POOLER = (("add_pooling_layer", False),)
ARCHITECTURES = {
    "clip": _dual("CLIP"),
    "metaclip_2": _dual("MetaCLIP 2"),
    "altclip": _dual("AltCLIP", context=77),
    # https://github.com/OFA-Sys/Chinese-CLIP: "All baseline models use 52 as context length."
    "chinese_clip": _dual("Chinese-CLIP", context=52),
    "siglip": _dual("SigLIP", fixed_length_lower_case=True),
    "siglip2": _dual("SigLIP 2 NaFlex", fixed_length_lower_case=True),
    "vision-text-dual-encoder": _dual("dual encoder"),
    "dinov2": Architecture("DINOv2"),
    "dinov2_with_registers": Architecture("DINOv2 with registers"),
    "dinov3_vit": Architecture("DINOv3 ViT"),
    "dinov3_convnext": Architecture("DINOv3 ConvNeXt"),
    "vit": Architecture("ViT", CLS, _NO_POOLER),
    "deit": Architecture("DeiT", CLS, _NO_POOLER),
    "vit_msn": Architecture("ViT-MSN", CLS),
    "ijepa": Architecture("I-JEPA", MEAN),
    "beit": Architecture("BEiT"),
    "swin": Architecture("Swin"),
    "swinv2": Architecture("Swin V2"),
    "convnext": Architecture("ConvNeXt"),
    "convnextv2": Architecture("ConvNeXt V2"),
    "resnet": Architecture("ResNet"),
    "regnet": Architecture("RegNet"),
    "efficientnet": Architecture("EfficientNet"),
    "mobilenet_v1": Architecture("MobileNet V1"),
    "mobilenet_v2": Architecture("MobileNet V2"),
}


def pool(output: Any, pooling: str) -> Any:
    """Return the (n, d) vectors in an image encoder's output."""
    if pooling == CLS:
        return output.last_hidden_state[:, 0]
    if pooling == MEAN:
        return output.last_hidden_state.mean(dim=1)
    return output.pooler_output.flatten(1)


def context_of(architecture: Architecture, config: Any, tokenizer: Any) -> int:
    """Return how many tokens the model reads, with those that mark start and end."""
    text_config = getattr(config, "text_config", config)
    limits = [text_config.max_position_embeddings]
    # RoBERTa counts its positions from behind the padding's.
    if "roberta" in text_config.model_type or text_config.model_type == "altclip_text_model":
        limits = [limits[0] - text_config.pad_token_id - 1]
    if architecture.context is not None:
        limits.append(architecture.context)
    if tokenizer is not None:
        limits.append(tokenizer.model_max_length)
    return int(min(limits))
