"""Choose among implementations by measurement, once a machine, and remember the choice."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from PIL import Image

from pipeline.atomic_files import write_atomic

FASTER = 1.15  # a lesser gain is within the noise of a busy machine
ROUNDS = 3
LOCK_WAIT_S = 180.0  # another process is measuring; longer than any measurement
VERSION = 2  # part of every key; raise it where earlier measurements no longer hold
PROBES = Path(__file__).parent / "probe_images"


@dataclass(frozen=True)
class Measured:
    """What one precision gave on the probe pictures, in float32's company.

    `agreement` is the worst picture's: the cosine of vectors, the IoU of masks.
    """

    precision: str
    agreement: float
    speedup: float


def fastest(found: Sequence[Measured], bound: float) -> str:
    """Return the fastest precision that agrees with float32, or float32."""
    good = [each for each in found if each.agreement >= bound and each.speedup >= FASTER]
    return max(good, key=lambda each: each.speedup).precision if good else "fp32"


def speedup(
    exact: Callable[[Any], Any], other: Callable[[Any], Any], work: Any, rounds: int = ROUNDS
) -> float:
    """Return how many times faster `other` is: the best of some rounds, taken in turns."""
    pairs = [(seconds(lambda: exact(work)), seconds(lambda: other(work))) for _ in range(rounds)]
    return min(a for a, _ in pairs) / max(min(b for _, b in pairs), 1e-9)


def probe_images() -> list[Image.Image]:
    """Load the images that implementations are compared on: drawn products of 12 categories."""
    return [Image.open(file).convert("RGB") for file in sorted(PROBES.glob("*.jpg"))]


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


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
