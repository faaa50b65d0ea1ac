"""Turn prepared images into the tensor that a model's own image processor would return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image


class ImageToTensor:
    """An image processor with a fast path for images that already have the model's size.

    transformers converts each image to float64, one after the other, while the model waits. For an
    image of the right size it computes one multiplication and one addition per channel, which is
    all that the fast path does. Other images, and processors that do anything else, are left to
    transformers.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._side = _plain_side(processor)
        if self._side:
            std = np.asarray(processor.image_std, np.float32).reshape(3, 1, 1)
            self._scale = np.float32(processor.rescale_factor) / std
            self._shift = -np.asarray(processor.image_mean, np.float32).reshape(3, 1, 1) / std

    def __call__(self, images: Sequence[Image.Image]) -> Any:
        """Return (n, 3, height, width) float32, a torch tensor."""
        import torch

        if self._side and all(
            image.mode == "RGB" and image.size == (self._side, self._side) for image in images
        ):
            # Transposed first, while a value is one byte.
            bytes_ = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
            planes = bytes_.permute(0, 3, 1, 2).contiguous().float()
            return planes.mul_(torch.from_numpy(self._scale)).add_(torch.from_numpy(self._shift))
        return self._processor(images=list(images), return_tensors="pt")["pixel_values"]


def _plain_side(processor: Any) -> int | None:
    """Return the side of the squares that this processor only rescales; None if it does more."""
    if not (getattr(processor, "do_rescale", False) and getattr(processor, "do_normalize", False)):
        return None
    if getattr(processor, "do_pad", None) or getattr(processor, "do_flip_channel_order", None):
        return None
    lengths = []
    if getattr(processor, "do_resize", False):
        size = processor.size
        shortest = size.get("shortest_edge")
        lengths += [shortest, shortest] if shortest else [size.get("height"), size.get("width")]
    if getattr(processor, "do_center_crop", False):
        lengths += [processor.crop_size.get("height"), processor.crop_size.get("width")]
    sides = set(lengths)
    return int(sides.pop()) if len(sides) == 1 and None not in sides else None
