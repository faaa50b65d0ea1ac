"""Choose how exactly the image side computes: by measurement, once a machine and model.

The rule that lets workers differ: **no precision is used whose vectors leave the bound**, a cosine
of `BOUND` with the float32 vector of the same picture, for the worst of the probe pictures. So the
precision is no part of the fingerprint: vectors of two workers are of one kind, whatever each
has chosen, and an index stays good when the next machine is a faster one. A precision that was
asked for by name and leaves the bound is refused with its figure, never mixed in. Texts are always
float32: they are few.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from PIL import Image

from pipeline import int8
from pipeline.drawing import CATEGORIES, COLORS, PATTERNS, Product, draw
from pipeline.errors import SetupError
from pipeline.files import write_atomic
from pipeline.settings import Settings

log = logging.getLogger(__name__)

BOUND = 0.995
FASTER = 1.15  # a lesser gain is within the noise of a busy machine
SMALL = 4_000_000  # weights of an image side that costs no more than decoding its pictures
PROBES = 12
ROUNDS = 3
LOCK_WAIT_S = 180.0  # another process is measuring; longer than any measurement
VERSION = 1  # of this page: raise it where what was measured before no longer holds

Vectors = NDArray[np.float32]
Embed = Callable[[Sequence[Image.Image]], Vectors]


@dataclass(frozen=True)
class Measured:
    """What one precision gave on the probe pictures, in float32's company.

    `agreement` is the worst picture's: the cosine of vectors, the IoU of masks.
    """

    precision: str
    agreement: float
    speedup: float


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
        took[kind] = min(_seconds(lambda a=a, b=b: a @ b) for _ in range(3))  # type: ignore[misc]
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
    wanted = settings.precision
    if wanted == "fp32" or (wanted == "auto" and list(names) == ["fp32"]):
        return "fp32"
    if wanted != "auto" and wanted not in names:
        raise SetupError(
            f"PRECISION={wanted} cannot run here with {settings.embedding_model}; what can: "
            f"{', '.join(names)}. Set PRECISION=auto to use the fastest of them."
        )
    found = remembered(settings.data_dir, key, measure)
    if wanted == "auto":
        return fastest(found, BOUND)
    for each in found:
        if each.precision == wanted and each.agreement < BOUND:
            raise SetupError(
                f"PRECISION={wanted} changes the vectors of {settings.embedding_model} too much: a "
                f"cosine of {each.agreement:.4f} with float32, the limit is {BOUND}. Set "
                "PRECISION=auto or fp32."
            )
    return wanted


def fastest(found: Sequence[Measured], bound: float) -> str:
    """Return the fastest precision that agrees with float32, or float32."""
    good = [each for each in found if each.agreement >= bound and each.speedup >= FASTER]
    return max(good, key=lambda each: each.speedup).precision if good else "fp32"


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


def speedup(
    exact: Callable[[Any], Any], other: Callable[[Any], Any], work: Any, rounds: int = ROUNDS
) -> float:
    """Return how many times faster `other` is: the best of some rounds, taken in turns."""
    pairs = [(_seconds(lambda: exact(work)), _seconds(lambda: other(work))) for _ in range(rounds)]
    return min(a for a, _ in pairs) / max(min(b for _, b in pairs), 1e-9)


def is_small(model: Any) -> bool:
    """Tell whether reading a picture costs more than embedding it: then nothing is to be gained."""
    return bool(sum(each.numel() for each in model.vision_model.parameters()) < SMALL)


def probes() -> list[Image.Image]:
    """Draw the pictures that precisions are compared on: many kinds, colours and patterns."""
    return [
        draw(Product(CATEGORIES[n], COLORS[n % len(COLORS)], PATTERNS[n % 4], "casual", n), 224)
        for n in range(PROBES)
    ]


def scenes() -> list[Image.Image]:
    """Draw a few products before a coloured wall, for the comparison of masks."""
    found = []
    for n, color in enumerate(("#8fa3ad", "#c9b79c", "#5d6b57")):
        product = draw(Product(CATEGORIES[4 * n], COLORS[3 + n], "plain", "casual", n), 320)
        pixels = np.asarray(product).min(axis=2)  # products are drawn on white
        wall = Image.new("RGB", product.size, color)
        found.append(Image.composite(product, wall, Image.fromarray(pixels < 245)))
    return found


def measurement_key(revision: str | None, device: str) -> str:
    """Name what a measurement depends on: machine, model, versions."""
    parts = [str(VERSION), str(revision), device, processor()]
    for package in ("torch", "transformers", "onnxruntime"):
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            parts.append(f"no {package}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def processor() -> str:
    """Name this machine's processor and the instructions that matter, or its GPU."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    return f"{platform.machine()} {platform.processor()} {torch.backends.cpu.get_cpu_capability()}"


def remembered(folder: Path, key: str, measure: Callable[[], list[Measured]]) -> list[Measured]:
    """Return what was measured before under this key, or measure and keep it."""
    file = folder / "precision.json"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{file}.lock")
    try:
        lock.acquire(timeout=LOCK_WAIT_S)
    except Timeout:  # measuring twice is better than not working
        return measure()
    try:
        known = _read(file)
        if key not in known:
            known[key] = measure()
            rows = {name: [asdict(each) for each in found] for name, found in known.items()}
            write_atomic(file, json.dumps(rows, indent=1).encode())
        return known[key]
    finally:
        lock.release()


def _read(file: Path) -> dict[str, list[Measured]]:
    try:
        rows = json.loads(file.read_bytes())
        return {key: [Measured(**row) for row in found] for key, found in rows.items()}
    except (OSError, ValueError, TypeError, AttributeError):  # none yet, or not ours: measure anew
        return {}


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
