"""Common choices of EMBEDDING_MODEL, with what their model cards and papers say of them.

Figures are percentages as their source prints them, checked there; what could not be checked is
left out. They do not compare models of different kinds, and say little about a shop: `imgrec
evaluate` does.
"""

from __future__ import annotations

from dataclasses import dataclass

# The card of these weights in another library; the paper's table differs by a few tenths.
CLIP_CARD = "https://huggingface.co/sentence-transformers/clip-ViT-B-32"
DINOV2_README = "https://github.com/facebookresearch/dinov2, pretrained models"
CHINESE_CLIP_RESULTS = "https://github.com/OFA-Sys/Chinese-CLIP/blob/master/Results.md"


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
        CLIP_CARD,
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
        DINOV2_README,
    )


KNOWN_MODELS = (
    _clip("openai/clip-vit-base-patch32", 151, 512, 63.3),
    _clip("openai/clip-vit-base-patch16", 150, 512, 68.1),
    _clip("openai/clip-vit-large-patch14", 428, 768, 75.4),
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
        "OFA-Sys/chinese-clip-vit-base-patch16",
        "Chinese-CLIP",
        188,
        512,
        True,
        "Chinese",
        "Apache-2.0",
        52.1,
        "zero-shot recall@1, products by text (MUGE)",
        CHINESE_CLIP_RESULTS,
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
