"""Common choices of EMBEDDING_MODEL, with what their model cards and papers say of them.

Figures are percentages as their source prints them, checked there; what could not be checked is
left out. They do not compare models of different kinds, and say little about a shop: `imgrec
evaluate` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

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


_clip = partial(
    KnownModel,
    kind="CLIP",
    has_words=True,
    languages="English",
    license="MIT",
    figure_of="ImageNet zero-shot top-1",
    source=CLIP_CARD,
)
_siglip2 = partial(KnownModel, has_words=True, languages="many", license="Apache-2.0")
_dinov2 = partial(
    KnownModel,
    kind="DINOv2",
    has_words=False,
    languages="",
    license="Apache-2.0",
    figure_of="ImageNet k-NN top-1",
    source=DINOV2_README,
)

KNOWN_MODELS = (
    _clip("openai/clip-vit-base-patch32", millions_of_weights=151, dimension=512, figure=63.3),
    _clip("openai/clip-vit-base-patch16", millions_of_weights=150, dimension=512, figure=68.1),
    _clip("openai/clip-vit-large-patch14", millions_of_weights=428, dimension=768, figure=75.4),
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
    _dinov2("facebook/dinov2-small", millions_of_weights=22, dimension=384, figure=79.0),
    _dinov2("facebook/dinov2-base", millions_of_weights=87, dimension=768, figure=82.1),
    _dinov2("facebook/dinov2-large", millions_of_weights=304, dimension=1024, figure=83.5),
    KnownModel(
        "facebook/dinov3-vitb16-pretrain-lvd1689m", "DINOv3 ViT", 86, 768, False, "", "DINOv3"
    ),
    KnownModel("google/vit-base-patch16-224-in21k", "ViT", 86, 768, False, "", "Apache-2.0"),
    KnownModel(
        "facebook/convnextv2-base-22k-224", "ConvNeXt V2", 89, 1024, False, "", "CC-BY-NC-4.0"
    ),
)
