"""Choose among implementations by measurement, once per machine, and remember the result."""

from __future__ import annotations

import hashlib
import json
import logging
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

log = logging.getLogger(__name__)

FASTER = 1.15  # a smaller gain is within the noise of a busy machine
ROUNDS = 3
LOCK_WAIT_S = 180.0  # while another process measures; longer than any measurement
VERSION = 2  # part of every key; raise it where earlier measurements no longer hold
PROBES = Path(__file__).parent / "probe_images"


@dataclass(frozen=True)
class Candidate:
    """An implementation, compared with the exact one on the probe images.

    `agreement` is 1.0 for equal results: a cosine for vectors, an IoU for masks.
    """

    name: str
    agreement: float
    speedup: float


def fastest(candidates: Sequence[Candidate], bound: float) -> str | None:
    """Return the name of the fastest candidate that agrees; None if the exact one is as good."""
    good = [each for each in candidates if each.agreement >= bound and each.speedup >= FASTER]
    return max(good, key=lambda each: each.speedup).name if good else None


def speedup(exact: Callable[[Any], Any], other: Callable[[Any], Any], work: Any) -> float:
    """Return how many times faster `other` is: the best of some rounds, taken in turns."""
    pairs = [(seconds(lambda: exact(work)), seconds(lambda: other(work))) for _ in range(ROUNDS)]
    return min(a for a, _ in pairs) / max(min(b for _, b in pairs), 1e-9)


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def probe_images() -> list[Image.Image]:
    """Load the images that implementations are compared on: drawn products of 12 categories."""
    return [Image.open(file).convert("RGB") for file in sorted(PROBES.glob("*.jpg"))]


def measurement_key(model: str, setup: str, packages: Sequence[str]) -> str:
    """Return a digest of what a measurement depends on, this machine's processor included.

    Args:
        model: identifies the content of the weights.
        setup: device and threads.
        packages: distributions whose versions matter.
    """
    parts = [str(VERSION), model, setup, processor()]
    for package in packages:
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            parts.append(f"no {package}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def processor() -> str:
    """Return the name of this machine's GPU, or its CPU and the CPU's vector instructions."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    return f"{platform.machine()} {platform.processor()} {torch.backends.cpu.get_cpu_capability()}"


def remembered(file: Path, key: str, measure: Callable[[], list[Candidate]]) -> list[Candidate]:
    """Return what was measured under this key before, or measure and remember it.

    The file is a cache: one that is damaged, or of an earlier format, is measured anew.
    """
    lock = FileLock(f"{file}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=LOCK_WAIT_S)
    except Timeout:  # measuring twice is better than not working
        return measure()
    except OSError as error:  # a query needs no folder that it may write to
        measurements = _read(file)
        if key not in measurements:
            log.warning("What is measured now cannot be stored in %s: %s", file, error)
        return measurements.get(key) or measure()
    try:
        measurements = _read(file)
        if key not in measurements:
            measurements[key] = measure()
            rows = {name: [asdict(each) for each in of] for name, of in measurements.items()}
            write_atomic(file, json.dumps(rows, indent=1).encode())
        return measurements[key]
    finally:
        lock.release()


def _read(file: Path) -> dict[str, list[Candidate]]:
    try:
        rows = json.loads(file.read_bytes())
        return {key: [Candidate(**row) for row in of] for key, of in rows.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
