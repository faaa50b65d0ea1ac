"""Load rembg's network, in the fastest runtime there is, and hand it out as a plain function."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.errors import SetupError
from pipeline.measure_once import (
    Measured,
    fastest,
    measurement_key,
    probe_images,
    remembered,
    speedup,
)
from pipeline.preprocess import mnn, onnx_batched, openvino
from pipeline.preprocess.prepare import FOREGROUND, Remover
from pipeline.settings import Settings

log = logging.getLogger(__name__)

# IoU with onnxruntime's masks, over the pixels of all probe pictures. Not of the worst one: where
# U2Net itself is unsure, bfloat16 tips many pixels. On 147 photos of clothing u2net's masks in
# bfloat16 had a median IoU of 0.998 and a worst of 0.971, in a mask that is refused as implausible
# either way; the vectors of all 147 kept a cosine of 0.9957, within `precision.BOUND`.
MASK_BOUND = 0.98
MASK_PROBES = 4
BACKENDS: dict[str, Any] = {"mnn": mnn, "openvino": openvino}


def load_remover(settings: Settings, *, threads: int, at_once: int = 1) -> Remover:
    """Return the function that draws the mask of a picture's foreground.

    With REMBG_BACKEND=auto the network runs in MNN or OpenVINO where that is installed, and was
    found to be the fastest here and to draw the same masks. The session must be made after any
    fork: onnxruntime's threads do not survive one (microsoft/onnxruntime#31961). The function may
    be called from several threads; on a GPU their pictures share one call.

    Args:
        threads: compute threads of one call.
        at_once: threads that call.

    Raises:
        SetupError: rembg, a backend or the weights are missing; the sentence names the ways out.
    """
    model, device, wanted = settings.rembg_model, settings.device, settings.rembg_backend
    if wanted in BACKENDS:
        _require(wanted, model, device)
    session = _load_session(model, threads, device)
    if _on_gpu(session):
        return _remover(_batched(session, threads, at_once))
    if wanted != "onnxruntime":
        names = [wanted] if wanted in BACKENDS else list(BACKENDS)
        names = [name for name in names if BACKENDS[name].can_run(model)]
        if names:
            session = _faster(session, settings, names, threads, at_once)
    return _remover(session)


def _faster(
    session: Any, settings: Settings, names: Sequence[str], threads: int, at_once: int
) -> Any:
    """Return the session with its network in the fastest backend, or itself where none gains.

    Raises:
        SetupError: one was asked for by name, and cannot read the weights or draws other masks.
    """
    by_name = settings.rembg_backend in BACKENDS
    digest = _digest(Path(session.download_models()))

    def make(name: str) -> Any:
        return _with_network(session, BACKENDS[name], threads, at_once)

    def compare(name: str) -> list[Measured]:
        return [_compare(name, session, make(name), at_once)]

    found = list[Measured]()
    for name in names:
        backend = f"{BACKENDS[name].PACKAGE} {version(BACKENDS[name].PACKAGE)}"
        key = measurement_key(f"{digest} {threads} x {at_once} {backend}", "cpu")
        try:
            found += remembered(settings.data_dir, key, partial(compare, name))
            if by_name and found[0].agreement < MASK_BOUND:
                raise SetupError(
                    f"REMBG_BACKEND={name} draws other masks than onnxruntime here (IoU "
                    f"{found[0].agreement:.3f}, the limit is {MASK_BOUND}): set REMBG_BACKEND=auto."
                )
        except SetupError as error:
            if by_name:
                raise
            log.warning("Background removal goes on without %s. %s", backend, error)
    chosen = names[0] if by_name else fastest(found, MASK_BOUND)
    if chosen not in BACKENDS:
        return session
    try:
        return make(chosen)
    except SetupError as error:  # what worked when it was measured
        if by_name:
            raise
        log.warning("Background removal goes on in onnxruntime. %s", error)
        return session


def _with_network(session: Any, backend: Any, threads: int, at_once: int) -> Any:
    """Return a copy of rembg's session that computes in a backend's `Network`.

    Raises:
        SetupError: the backend cannot run the weights.
    """
    made = copy.copy(session)
    weights = Path(session.download_models())
    made.inner_session = backend.Network(weights, session.inner_session, threads, at_once)
    return made


def _batched(session: Any, threads: int, at_once: int) -> Any:
    """Return the session with a network that takes as many pictures as there are threads."""
    if at_once == 1 or getattr(session, "inner_session", None) is None:
        return session
    try:
        return _with_network(session, onnx_batched, threads, at_once)
    except SetupError as error:
        log.warning("Background removal goes on one by one. %s", error)
        return session


def _compare(name: str, session: Any, other: Any, at_once: int) -> Measured:
    """Compare masks, and the speed of as many calls at once as there will be."""
    exact, fast = _remover(session), _remover(other)
    pictures = probe_images()[:MASK_PROBES]
    agreement = iou(*(_in_a_row(remove, pictures) for remove in (exact, fast)))
    with ThreadPoolExecutor(at_once) as pool:
        gain = speedup(
            lambda many: list(pool.map(exact, many)),
            lambda many: list(pool.map(fast, many)),
            [pictures[0]] * at_once,
        )
    log.info("%s: %.2f times onnxruntime's speed, mask IoU %.4f.", name, gain, agreement)
    return Measured(name, agreement, gain)


def _in_a_row(remove: Remover, pictures: Sequence[Image.Image]) -> Image.Image:
    return Image.fromarray(np.hstack([np.asarray(remove(each)) for each in pictures]))


def iou(first: Image.Image, second: Image.Image) -> float:
    """Return the intersection over union of two masks' foregrounds; 1.0 where both are empty."""
    a, b = (np.asarray(mask) >= FOREGROUND for mask in (first, second))
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def _remover(session: Any) -> Remover:
    def remove(image: Image.Image) -> Image.Image:
        mask: Image.Image = session.predict(image)[0]
        return mask.convert("L")

    return remove


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _require(backend: str, model: str, device: str) -> None:
    """Refuse a backend that was asked for by name and cannot run."""
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
            f"{module.PACKAGE} that starts. Set REMBG_BACKEND=auto."
        )


def _on_gpu(session: Any) -> bool:
    inner = getattr(session, "inner_session", None)
    return inner is None or inner.get_providers() != ["CPUExecutionProvider"]


def _load_session(model: str, threads: int, device: str) -> Any:
    """Load rembg's session of a model; its weights are looked up in U2NET_HOME, then downloaded."""
    ways_out = "or set USE_BG_REMOVAL=false to work without background removal"
    for package, install in (("rembg", "rembg"), ("onnxruntime", "'imgrec[cpu]' or 'imgrec[gpu]'")):
        if find_spec(package) is None:
            raise SetupError(
                f"{package} is not installed: run `pip install {install}`, {ways_out}."
            )
    import onnxruntime
    import rembg

    onnxruntime.disable_telemetry_events()  # a shop's machines report to nobody
    if device == "cuda" and not sees_gpu():
        raise SetupError(
            "DEVICE=cuda, but this onnxruntime has no CUDA: install imgrec[gpu] into an "
            "environment without the CPU package onnxruntime, or set DEVICE=cpu."
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    providers = {"providers": ["CPUExecutionProvider"]} if device == "cpu" else {}
    try:
        # Without the name, rembg takes no notice and each call would take all cores.
        session: Any = rembg.new_session(model, sess_opts=options, **providers)
    except ValueError as error:
        if "No session class" not in str(error):
            raise _no_weights(model, ways_out, error) from error
        known = ", ".join(rembg.sessions.sessions_names)
        raise SetupError(f"REMBG_MODEL={model} is unknown to rembg; it knows {known}.") from error
    except Exception as error:  # rembg lets through whatever its downloader and onnxruntime raise
        raise _no_weights(model, ways_out, error) from error

    active = session.inner_session.get_providers() if hasattr(session, "inner_session") else []
    if device == "cuda" and active and "CUDAExecutionProvider" not in active:
        # onnxruntime falls back to the CPU in silence when a CUDA library is missing.
        raise SetupError(
            "DEVICE=cuda, but onnxruntime could not start on CUDA: its CUDA and cuDNN libraries "
            "are missing or of another version; mend them or set DEVICE=cpu."
        )

    return session


def sees_gpu() -> bool:
    """Tell whether background removal could run on a GPU here."""
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def _no_weights(model: str, ways_out: str, cause: Exception) -> SetupError:
    home = Path(os.environ.get("U2NET_HOME") or Path.home() / ".u2net").expanduser()
    reason = (
        str(cause).strip().splitlines()[0][:200] if str(cause).strip() else type(cause).__name__
    )
    return SetupError(
        f"The weights of the background removal model {model} could not be loaded from "
        f"{home / f'{model}.onnx'} nor downloaded ({reason}): put the file there, point U2NET_HOME "
        f"to the folder that holds it, {ways_out}."
    )
