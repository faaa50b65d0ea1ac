"""Turn prepared images into the tensors that a model's own image processor would return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

Inputs = dict[str, Any]  # names of the model's arguments: torch tensors whose first axis is images

# Processors that do nothing beyond what `_plain_side` reads from their fields.
PLAIN = ("CLIP", "ChineseCLIP", "Siglip", "ViT", "DeiT", "Bit", "MobileNetV2")


class ImageToInputs:
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

    def __call__(self, images: Sequence[Image.Image]) -> Inputs:
        """Return `pixel_values`, (n, 3, height, width) float32, or what else the model reads."""
        import torch

        if self._side and all(
            image.mode == "RGB" and image.size == (self._side, self._side) for image in images
        ):
            # Transposed first, while a value is one byte.
            bytes_ = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
            planes = bytes_.permute(0, 3, 1, 2).contiguous().float()
            planes.mul_(torch.from_numpy(self._scale)).add_(torch.from_numpy(self._shift))
            return {"pixel_values": planes}
        return dict(self._processor(images=list(images), return_tensors="pt"))


class Dinov3Processor:
    """transformers' DINOv3ViTImageProcessor, which exists for torchvision alone.

    Images are rescaled, then resized with antialiasing, then normalised.
    """

    do_resize = do_rescale = do_normalize = True

    def __init__(self, facts: dict[str, Any]) -> None:
        self.size = facts.get("size", {"height": 224, "width": 224})
        self.rescale_factor = facts.get("rescale_factor", 1 / 255)
        self.image_mean = facts.get("image_mean", (0.485, 0.456, 0.406))
        self.image_std = facts.get("image_std", (0.229, 0.224, 0.225))

    def __call__(self, images: Sequence[Image.Image], return_tensors: str) -> Inputs:
        import torch

        mean, std = (
            torch.tensor(each).reshape(3, 1, 1) for each in (self.image_mean, self.image_std)
        )
        side = (self.size["height"], self.size["width"])
        planes = []
        for image in images:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
            pixels = pixels.float() * self.rescale_factor
            resized = torch.nn.functional.interpolate(
                pixels, side, mode="bilinear", antialias=True, align_corners=False
            )
            planes.append((resized - mean) / std)
        return {"pixel_values": torch.cat(planes)}


def load_image_to_inputs(source: str, **options: Any) -> ImageToInputs:
    """Load the image processor of a model, from a folder, the hub cache or the hub."""
    import transformers
    from transformers.image_processing_base import ImageProcessingMixin

    auto: Any = transformers
    facts: dict[str, Any]
    facts, _ = ImageProcessingMixin.get_image_processor_dict(source, **options)
    if str(facts.get("image_processor_type", "")).startswith("DINOv3ViTImageProcessor"):
        return ImageToInputs(Dinov3Processor(facts))
    # The Pillow processors need no torchvision and are the reference for these models.
    return ImageToInputs(auto.AutoImageProcessor.from_pretrained(source, backend="pil", **options))


def _plain_side(processor: Any) -> int | None:
    """Return the side of the squares that this processor only rescales; None if it does more."""
    name = type(processor).__name__.partition("ImageProcessor")[0]
    if name not in PLAIN and not isinstance(processor, Dinov3Processor):
        return None
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
