"""Choose the numeric precision of the image encoder by measurement, once per machine and model.

No precision is used whose vectors leave the bound: the cosine of `BOUND` with the float32 vector of
the same image, for the worst of the probe images. So the precision is not part of the fingerprint:
vectors of workers with different precisions can be mixed, and an index remains valid on another
machine. A precision that was asked for by name and leaves the bound is refused with its cosine.
Texts are always embedded in float32: they are few.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.embed import int8
from pipeline.errors import SetupError
from pipeline.measure_once import (
    FASTER,
    Candidate,
    fastest,
    measurement_key,
    probe_images,
    remembered,
    seconds,
    speedup,
)
from pipeline.settings import Settings

log = logging.getLogger(__name__)

BOUND = 0.995
EXACT = "fp32"
PACKAGES = ("torch", "transformers", "onnxruntime")
# Weights of an image encoder that costs no more than decoding its images.
SMALL = 4_000_000

Vectors = NDArray[np.float32]
Embed = Callable[[Sequence[Image.Image]], Vectors]


def available(model: Any, device: str) -> list[str]:
    """List the precisions that can run here, float32 first."""
    import torch

    if device == "cuda":
        return [EXACT, "bf16"] if torch.cuda.is_bf16_supported() else [EXACT]
    names = [EXACT]
    if _bf16_pays():
        names.append("bf16")
    if find_spec("onnx") and find_spec("onnxruntime") and int8.can_run(model):
        names.append("int8")
    return names


def _bf16_pays() -> bool:
    """Tell whether this CPU multiplies bfloat16 faster than float32, or only emulates it."""
    import torch

    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(128, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
        best[dtype] = min(seconds(lambda a=a, b=b: a @ b) for _ in range(3))  # type: ignore[misc]
    return best[torch.bfloat16] * FASTER < best[torch.float32]


def choose(
    settings: Settings,
    revision: str | None,
    device: str,
    names: Sequence[str],
    embed_in: Callable[[str], Embed],
) -> str:
    """Return the precision to use: the requested one, or the fastest within the bound.

    Args:
        revision: identifies the content of the model.
        names: the precisions that can run here, float32 first.
        embed_in: returns the function that embeds images in a precision.

    Raises:
        SetupError: the requested precision cannot run here or leaves the bound.
    """
    setting = settings.model_precision
    if setting == EXACT or (setting == "auto" and list(names) == [EXACT]):
        return EXACT
    if setting != "auto" and setting not in names:
        raise SetupError(
            f"MODEL_PRECISION={setting} cannot run here with {settings.embedding_model}; "
            f"available: {', '.join(names)}. Set MODEL_PRECISION=auto to use the fastest of them."
        )
    key = measurement_key(str(revision), device, PACKAGES)
    candidates = remembered(
        settings.data_dir / "precision.json", key, lambda: measure(names, embed_in)
    )
    if setting == "auto":
        return fastest(candidates, BOUND) or EXACT
    for each in candidates:
        if each.name == setting and each.agreement < BOUND:
            raise SetupError(
                f"MODEL_PRECISION={setting} changes the vectors of {settings.embedding_model} too "
                f"much: a cosine of {each.agreement:.4f} with float32; the limit is {BOUND}. Set "
                "MODEL_PRECISION=auto or fp32."
            )
    return setting


def measure(names: Sequence[str], embed_in: Callable[[str], Embed]) -> list[Candidate]:
    """Embed the probe images in each precision, in turns with float32, and compare.

    The agreement is the cosine of the worst image.
    """
    exact, images = embed_in(EXACT), probe_images()
    expected = exact(images)
    candidates = []
    for name in names:
        if name == EXACT:
            continue
        embed = embed_in(name)
        cosine = float((embed(images) * expected).sum(1).min())
        gain = speedup(exact, embed, images)
        log.info("%s: %.2f times float32's speed, cosine %.5f.", name, gain, cosine)
        candidates.append(Candidate(name, cosine, gain))
    return candidates


def is_small(model: Any) -> bool:
    """Tell whether reading an image costs more than embedding it: then there is nothing to gain."""
    encoder = getattr(model, "vision_model", model)
    return bool(sum(each.numel() for each in encoder.parameters()) < SMALL)
