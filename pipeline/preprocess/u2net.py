"""From an image to its mask with rembg's U2-Net models, whatever runtime computes the network.

What comes before and after the network is the arithmetic of rembg's own `predict`, operation by
operation, so that the masks are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.preprocess.prepare import Remover

Array = NDArray[np.float32]

Network = Callable[[Array], Array]
"""(n, 3, height, width) float32 -> (n, 1, height, width) float32; several threads may call it."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Input:
    """What a network is given: square images, normalised per channel."""

    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


U2NET = Input(320, IMAGENET_MEAN, IMAGENET_STD)
MODELS = {
    "u2net": U2NET,
    "u2netp": U2NET,
    "u2net_human_seg": U2NET,
    "silueta": U2NET,
    "isnet-general-use": Input(1024, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)),
    "isnet-anime": Input(1024, IMAGENET_MEAN, (1.0, 1.0, 1.0)),
}


def make_remover(model: str, network: Network) -> Remover:
    """Return the function that computes an image's mask with a network of this model."""

    def remove(image: Image.Image) -> Image.Image:
        saliency = network(_to_tensor(image, MODELS[model]))[0, 0]
        return _to_mask(saliency).resize(image.size, Image.Resampling.LANCZOS)

    return remove


def _to_tensor(image: Image.Image, spec: Input) -> Array:
    """Resize and normalise an image -> (1, 3, side, side)."""
    square = image.convert("RGB").resize((spec.side, spec.side), Image.Resampling.LANCZOS)
    pixels = np.asarray(square)
    scaled = (pixels / max(pixels.max(), 1e-6) - spec.mean) / spec.std
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], np.float32)


def _to_mask(saliency: Array) -> Image.Image:
    """Stretch what a network found to the whole range -> mode L of the same size."""
    low, high = saliency.min(), saliency.max()
    if low == high:
        return Image.new("L", saliency.shape[::-1])
    stretched = (saliency - low) / (high - low)
    return Image.fromarray((stretched.clip(0, 1) * 255).astype(np.uint8))
