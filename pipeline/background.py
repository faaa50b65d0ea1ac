"""Load rembg's network, in the fastest runtime there is, and hand it out as a plain function."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline import mnn
from pipeline.errors import SetupError
from pipeline.precision import (
    Measured,
    fastest,
    measurement_key,
    probes,
    remembered,
    speedup,
)
from pipeline.preprocess import FOREGROUND, Remover
from pipeline.settings import Settings

log = logging.getLogger(__name__)

MASK_BOUND = 0.98  # IoU with onnxruntime's mask, of the worst probe picture
MASK_PROBES = 3


def load_remover(settings: Settings, *, threads: int, at_once: int = 1) -> Remover:
    """Return the function that draws the mask of a picture's foreground.

    With REMBG_BACKEND=auto the network runs in MNN where that is installed, and was found to be
    faster here and to draw the same masks. The session must be made after any fork: onnxruntime's
    threads do not survive one (microsoft/onnxruntime#31961). The function may be called from
    several threads.

    Args:
        threads: compute threads of one call.
        at_once: threads that call.

    Raises:
        SetupError: rembg, a backend or the weights are missing; the sentence names the ways out.
    """
    model, device, wanted = settings.rembg_model, settings.device, settings.rembg_backend
    if wanted == "mnn":
        _require_mnn(model, device)
    session = _load_session(model, threads, device)
    on_cpu = device != "cuda" and not _on_gpu(session)
    if wanted != "onnxruntime" and on_cpu and mnn.can_run(model):
        session = _faster(session, settings, threads, at_once)
    return _remover(session)


def _faster(session: Any, settings: Settings, threads: int, at_once: int) -> Any:
    """Return the session with its network in MNN, or itself where MNN gains nothing here.

    Raises:
        SetupError: MNN was asked for by name, and cannot read the weights or draws other masks.
    """
    by_name = settings.rembg_backend == "mnn"
    weights = Path(session.download_models())
    key = measurement_key(f"{_digest(weights)} {threads} x {at_once} MNN {version('MNN')}", "cpu")

    @cache
    def in_mnn() -> Any:
        made = copy.copy(session)
        made.inner_session = mnn.Network(weights, session.inner_session, threads, at_once)
        return made

    try:
        found = remembered(settings.data_dir, key, lambda: [_compare(session, in_mnn(), at_once)])
        if by_name and found[0].agreement < MASK_BOUND:
            raise SetupError(
                "REMBG_BACKEND=mnn draws other masks than onnxruntime here (IoU "
                f"{found[0].agreement:.3f}, the limit is {MASK_BOUND}): set REMBG_BACKEND=auto."
            )
        return in_mnn() if by_name or fastest(found, MASK_BOUND) == "mnn" else session
    except SetupError as error:
        if by_name:
            raise
        log.warning("Background removal goes on in onnxruntime. %s", error)
        return session


def _compare(session: Any, in_mnn: Any, at_once: int) -> Measured:
    """Compare masks, and the speed of as many calls at once as there will be."""
    exact, other = _remover(session), _remover(in_mnn)
    pictures = probes()[:MASK_PROBES]
    agreement = min(iou(exact(each), other(each)) for each in pictures)
    with ThreadPoolExecutor(at_once) as pool:
        gain = speedup(
            lambda many: list(pool.map(exact, many)),
            lambda many: list(pool.map(other, many)),
            [pictures[0]] * at_once,
        )
    log.info("MNN: %.2f times onnxruntime's speed, mask IoU %.4f.", gain, agreement)
    return Measured("mnn", agreement, gain)


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


def _require_mnn(model: str, device: str) -> None:
    if find_spec("MNN") is None:
        raise SetupError(
            "REMBG_BACKEND=mnn, but MNN is not installed: run `pip install MNN`, or set "
            "REMBG_BACKEND=auto."
        )
    if model not in mnn.MODELS or device == "cuda":
        raise SetupError(
            f"REMBG_BACKEND=mnn is for {', '.join(sorted(mnn.MODELS))} on a CPU; this is "
            f"REMBG_MODEL={model} with DEVICE={device}. Set REMBG_BACKEND=auto."
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
