"""Load a background removal model of rembg, in the fastest runtime that computes its masks."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from pipeline.atomic_files import file_sha256
from pipeline.errors import SetupError
from pipeline.measure_once import (
    Candidate,
    fastest,
    measurement_key,
    probe_images,
    remembered,
    speedup,
)
from pipeline.preprocess import mnn, onnx_runtime, openvino, rembg_models, u2net
from pipeline.preprocess.prepare import FOREGROUND, Remover
from pipeline.preprocess.u2net import Network
from pipeline.settings import Settings

log = logging.getLogger(__name__)

# IoU with onnxruntime's masks, over the pixels of all probe images. Not of the worst one: where
# U2Net itself is unsure, bfloat16 changes many pixels. On 147 photos of clothing u2net's masks in
# bfloat16 had a median IoU of 0.998 and a worst of 0.971, in a mask that is refused as implausible
# either way; the vectors of all 147 kept a cosine of 0.9957, within `numeric_precision.BOUND`.
MASK_BOUND = 0.98
MASK_PROBES = 4
BACKENDS: dict[str, ModuleType] = {"mnn": mnn, "openvino": openvino}


def load_remover(settings: Settings, *, threads: int, at_once: int = 1) -> Remover:
    """Return the function that computes the mask of an image's foreground.

    With REMBG_BACKEND=auto a U2-Net runs in MNN or OpenVINO where that is installed, and was
    measured to be the fastest here and to compute the same masks; other models run in rembg's own
    sessions. Call this after any fork: onnxruntime's threads do not survive one
    (microsoft/onnxruntime#31961). The function may be called by several threads; on a GPU, their
    images share a forward pass.

    Args:
        threads: compute threads of one call.
        at_once: threads that call.

    Raises:
        SetupError: rembg, a backend or the weights are missing; the message says what to do.
    """
    model, device = settings.rembg_model, settings.device
    if settings.rembg_backend in BACKENDS:
        _require(settings.rembg_backend, model, device)
    rembg_models.session_class(model)
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # a shop's machines report to nobody
    if device == "cuda" and not onnx_runtime.sees_gpu():
        raise SetupError(
            "DEVICE=cuda, but this onnxruntime has no CUDA: install imgrec[gpu] into an "
            "environment without the CPU package onnxruntime, or set DEVICE=cpu."
        )
    if model not in u2net.MODELS:
        return rembg_models.load_remover(model, threads, device)
    weights = rembg_models.weights_file(model)
    if device != "cpu" and onnx_runtime.sees_gpu():
        try:
            network = onnx_runtime.load_on_gpu(weights, threads, at_once)
            return u2net.make_remover(model, network)
        except SetupError as error:
            if device == "cuda":
                raise
            log.warning("Background removal runs on the CPU. %s", error)
    return u2net.make_remover(model, _load_on_cpu(settings, weights, threads, at_once))


def _load_on_cpu(settings: Settings, weights: Path, threads: int, at_once: int) -> Network:
    """Load a network in the requested runtime, or in the fastest that computes the same masks.

    Raises:
        SetupError: the requested one cannot read the weights or computes other masks.
    """
    model, backend_name = settings.rembg_model, settings.rembg_backend

    @functools.cache
    def load(runtime: str) -> Network:
        if runtime in BACKENDS:
            network: Network = BACKENDS[runtime].load(weights, threads, at_once)
            return network
        try:
            return onnx_runtime.load(weights, threads)
        except Exception as error:  # onnxruntime's own kinds share no base
            raise rembg_models.no_weights(model, error) from error

    @functools.cache
    def digest() -> str:
        return file_sha256(weights)

    def measure(name: str) -> Candidate:
        packages = ("onnxruntime", BACKENDS[name].PACKAGE)
        key = measurement_key(digest(), f"cpu {threads} x {at_once}", packages)
        (candidate,) = remembered(
            settings.data_dir / "rembg_backend.json",
            key,
            lambda: [_compare(model, load("onnxruntime"), name, load(name), at_once)],
        )
        return candidate

    if backend_name == "onnxruntime":
        return load("onnxruntime")
    if backend_name in BACKENDS:
        agreement = measure(backend_name).agreement
        if agreement < MASK_BOUND:
            raise SetupError(
                f"REMBG_BACKEND={backend_name} computes different masks than onnxruntime here (IoU "
                f"{agreement:.3f}, at least {MASK_BOUND} is required): set REMBG_BACKEND=auto."
            )
        return load(backend_name)
    chosen = _fastest(model, measure) or "onnxruntime"
    try:
        return load(chosen)
    except SetupError as error:
        if chosen == "onnxruntime":
            raise
        # It worked when it was measured.
        log.warning("Background removal continues in onnxruntime. %s", error)
        return load("onnxruntime")


def _fastest(model: str, measure: Callable[[str], Candidate]) -> str | None:
    """Return the fastest backend whose masks agree with onnxruntime's; None where it is fastest."""
    candidates = []
    for name, backend in BACKENDS.items():
        if backend.can_run(model):
            try:
                candidates.append(measure(name))
            except SetupError as error:
                log.warning("Background removal continues without %s. %s", backend.PACKAGE, error)
    return fastest(candidates, MASK_BOUND)


def _compare(model: str, exact: Network, name: str, other: Network, at_once: int) -> Candidate:
    """Compare masks, and the speed of as many concurrent calls as there will be."""
    images = probe_images()[:MASK_PROBES]
    remove_exactly, remove = (u2net.make_remover(model, network) for network in (exact, other))
    agreement = iou(_in_a_row(remove_exactly, images), _in_a_row(remove, images))
    with ThreadPoolExecutor(at_once) as pool:
        gain = speedup(
            lambda images: list(pool.map(remove_exactly, images)),
            lambda images: list(pool.map(remove, images)),
            [images[0]] * at_once,
        )
    log.info("%s: %.2f times onnxruntime's speed, mask IoU %.4f.", name, gain, agreement)
    return Candidate(name, agreement, gain)


def _in_a_row(remove: Remover, images: Sequence[Image.Image]) -> Image.Image:
    return Image.fromarray(np.hstack([np.asarray(remove(image)) for image in images]))


def iou(first: Image.Image, second: Image.Image) -> float:
    """Return the intersection over union of two masks' foregrounds; 1.0 where both are empty."""
    a, b = (np.asarray(mask) >= FOREGROUND for mask in (first, second))
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def _require(backend: str, model: str, device: str) -> None:
    """Refuse a backend that was requested and cannot run."""
    module = BACKENDS[backend]
    if find_spec(module.PACKAGE) is None:
        raise SetupError(
            f"REMBG_BACKEND={backend}, but {module.PACKAGE} is not installed: run "
            f"`pip install {module.PACKAGE}`, or set REMBG_BACKEND=auto."
        )
    if model not in module.MODELS or device == "cuda":
        raise SetupError(
            f"REMBG_BACKEND={backend} is for {', '.join(sorted(module.MODELS))} on a CPU; this is "
            f"REMBG_MODEL={model} with DEVICE={device}. Set REMBG_BACKEND=auto."
        )
    if not module.can_run(model):
        raise SetupError(
            f"REMBG_BACKEND={backend} cannot run here: it needs a CPU with bfloat16 and a "
            f"working {module.PACKAGE}. Set REMBG_BACKEND=auto."
        )
