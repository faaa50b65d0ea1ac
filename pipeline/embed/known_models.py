"""Common choices of EMBEDDING_MODEL, with what their model cards and papers say of them.

Figures are ImageNet top-1 in percent, as printed by the source, and only where we are sure of them:
zero-shot for a model with words, k-NN on frozen features for one without. They do not compare a
model of one kind with one of the other, and say little about a shop: `imgrec evaluate` does.
"""

from __future__ import annotations

from dataclasses import dataclass

CLIP_PAPER = "https://arxiv.org/abs/2103.00020, table 11"
DINOV2_PAPER = "https://arxiv.org/abs/2304.07193, table 4"


@dataclass(frozen=True)
class KnownModel:
    """A model on the hub.

    Attributes:
        millions_of_weights: of both sides, rounded; None where we do not know.
        figure: a published one, with `figure_of` and `source`; None where we know none for sure.
    """

    name: str
    kind: str
    millions_of_weights: int | None
    dimension: int
    has_words: bool
    languages: str
    license: str
    figure: float | None = None
    figure_of: str = ""
    source: str = ""


def _clip(name: str, millions: int, dimension: int, figure: float) -> KnownModel:
    return KnownModel(
        name,
        "CLIP",
        millions,
        dimension,
        True,
        "English",
        "MIT",
        figure,
        "ImageNet zero-shot top-1",
        CLIP_PAPER,
    )


def _siglip2(name: str, kind: str, millions: int, dimension: int) -> KnownModel:
    return KnownModel(name, kind, millions, dimension, True, "many", "Apache-2.0")


def _dinov2(name: str, millions: int, dimension: int, figure: float) -> KnownModel:
    return KnownModel(
        name,
        "DINOv2",
        millions,
        dimension,
        False,
        "",
        "Apache-2.0",
        figure,
        "ImageNet k-NN top-1",
        DINOV2_PAPER,
    )


KNOWN_MODELS = (
    _clip("openai/clip-vit-base-patch32", 151, 512, 63.2),
    _clip("openai/clip-vit-base-patch16", 150, 512, 68.6),
    _clip("openai/clip-vit-large-patch14", 428, 768, 75.3),
    KnownModel("google/siglip-base-patch16-224", "SigLIP", 203, 768, True, "English", "Apache-2.0"),
    _siglip2("google/siglip2-base-patch16-224", "SigLIP", 375, 768),
    _siglip2("google/siglip2-base-patch16-naflex", "SigLIP 2 NaFlex", 375, 768),
    _siglip2("google/siglip2-so400m-patch14-384", "SigLIP", 1136, 1152),
    KnownModel(
        "facebook/metaclip-2-worldwide-huge-quickgelu",
        "MetaCLIP 2",
        None,
        1024,
        True,
        "many",
        "CC-BY-NC-4.0",
    ),
    KnownModel(
        "OFA-Sys/chinese-clip-vit-base-patch16", "Chinese-CLIP", 188, 512, True, "Chinese", ""
    ),
    _dinov2("facebook/dinov2-small", 22, 384, 79.0),
    _dinov2("facebook/dinov2-base", 87, 768, 82.1),
    _dinov2("facebook/dinov2-large", 304, 1024, 83.5),
    KnownModel(
        "facebook/dinov3-vitb16-pretrain-lvd1689m", "DINOv3 ViT", 86, 768, False, "", "DINOv3"
    ),
    KnownModel("google/vit-base-patch16-224-in21k", "ViT", 86, 768, False, "", "Apache-2.0"),
    KnownModel(
        "facebook/convnextv2-base-22k-224", "ConvNeXt V2", 89, 1024, False, "", "CC-BY-NC-4.0"
    ),
)
