"""Choose how exactly the image side computes: by measurement, once a machine and model.

The rule that lets workers differ: **no precision is used whose vectors leave the bound**, a cosine
of `BOUND` with the float32 vector of the same picture, for the worst of the probe pictures. So the
precision is no part of the fingerprint: vectors of two workers are of one kind, whatever each
has chosen, and an index stays good when the next machine is a faster one. A precision that was
asked for by name and leaves the bound is refused with its figure, never mixed in. Texts are always
float32: they are few.
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
from pipeline.measure_once import FASTER, Measured, fastest, remembered, seconds, speedup
from pipeline.settings import Settings
from tools.drawing import CATEGORIES, COLORS, PATTERNS, Product, draw

log = logging.getLogger(__name__)

BOUND = 0.995
SMALL = 4_000_000  # weights of an image side that costs no more than decoding its pictures
PROBES = 12

Vectors = NDArray[np.float32]
Embed = Callable[[Sequence[Image.Image]], Vectors]


def available(model: Any, device: str) -> list[str]:
    """Name the precisions that can run here at all, float32 first."""
    import torch

    if device == "cuda":
        return ["fp32", "bf16"] if torch.cuda.is_bf16_supported() else ["fp32"]
    names = ["fp32"]
    if _bf16_pays():
        names.append("bf16")
    if find_spec("onnx") and find_spec("onnxruntime") and int8.can_run(model):
        names.append("int8")
    return names


def _bf16_pays() -> bool:
    """Tell whether this CPU multiplies bfloat16 faster than float32, or only imitates it."""
    import torch

    took = {}
    for kind in (torch.float32, torch.bfloat16):
        a, b = torch.ones(128, 512, dtype=kind), torch.ones(512, 512, dtype=kind)
        took[kind] = min(seconds(lambda a=a, b=b: a @ b) for _ in range(3))  # type: ignore[misc]
    return took[torch.bfloat16] * FASTER < took[torch.float32]


def choose(
    settings: Settings, key: str, names: Sequence[str], measure: Callable[[], list[Measured]]
) -> str:
    """Return the precision to use: the one that is asked for, or the fastest within the bound.

    Args:
        key: what the measurement depends on (`measurement_key`).
        measure: compares the precisions; called when nothing is remembered under the key.

    Raises:
        SetupError: the precision asked for cannot run here or leaves the bound.
    """
    wanted = settings.model_precision
    if wanted == "fp32" or (wanted == "auto" and list(names) == ["fp32"]):
        return "fp32"
    if wanted != "auto" and wanted not in names:
        raise SetupError(
            f"MODEL_PRECISION={wanted} cannot run here with {settings.embedding_model}; what can: "
            f"{', '.join(names)}. Set MODEL_PRECISION=auto to use the fastest of them."
        )
    found = remembered(settings.data_dir, key, measure)
    if wanted == "auto":
        return fastest(found, BOUND)
    for each in found:
        if each.precision == wanted and each.agreement < BOUND:
            raise SetupError(
                f"MODEL_PRECISION={wanted} changes the vectors of {settings.embedding_model} too "
                f"much: a cosine of {each.agreement:.4f} with float32, the limit is {BOUND}. Set "
                "MODEL_PRECISION=auto or fp32."
            )
    return wanted


def measure(names: Sequence[str], make: Callable[[str], Embed]) -> list[Measured]:
    """Embed the probe pictures in each precision, in turns with float32, and compare.

    Args:
        make: gives the function that embeds in a precision.
    """
    exact, pictures = make("fp32"), probes()
    expected = exact(pictures)
    found = []
    for name in names:
        if name == "fp32":
            continue
        embed = make(name)
        cosine = float((embed(pictures) * expected).sum(1).min())
        found.append(Measured(name, cosine, speedup(exact, embed, pictures)))
        log.info("%s: %.2f times float32's speed, cosine %.5f.", name, found[-1].speedup, cosine)
    return found


def is_small(model: Any) -> bool:
    """Tell whether reading a picture costs more than embedding it: then nothing is to be gained."""
    return bool(sum(each.numel() for each in model.vision_model.parameters()) < SMALL)


def probes() -> list[Image.Image]:
    """Draw the pictures that precisions are compared on: many kinds, colours and patterns."""
    return [
        draw(Product(CATEGORIES[n], COLORS[n % len(COLORS)], PATTERNS[n % 4], "casual", n), 224)
        for n in range(PROBES)
    ]
