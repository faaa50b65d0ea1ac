"""Load rembg's session once a process and hand it out as a plain function."""

from __future__ import annotations

import hashlib
import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import precision, u2net
from pipeline.errors import SetupError
from pipeline.preprocess import FOREGROUND, Remover
from pipeline.settings import Settings

log = logging.getLogger(__name__)

MASK_BOUND = 0.98  # intersection over union with the float32 mask


def load_remover(
    model: str, threads: int, device: str = "auto", settings: Settings | None = None
) -> Remover:
    """Return the function that draws the mask of a picture's foreground.

    The session must be made after any fork: onnxruntime's threads do not survive one
    (microsoft/onnxruntime#31961). It may be called from several threads at once.

    Args:
        model: a rembg model name; its weights are looked up in `U2NET_HOME`, then downloaded.
        threads: compute threads of one call.
        settings: where they are given and their PRECISION allows it, u2net runs in integers on a
            CPU if that is faster here and its masks stay the same.

    Raises:
        SetupError: rembg, onnxruntime or the weights are missing; the sentence names the ways out.
    """
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
        session: Any = rembg.new_session(model, options, **providers)
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

    if settings is not None and active[:1] == ["CPUExecutionProvider"]:
        _use_integers(session, model, options, settings)

    def remove(image: Image.Image) -> Image.Image:
        mask: Image.Image = session.predict(image)[0]
        return mask.convert("L")

    return remove


def _use_integers(session: Any, model: str, options: Any, settings: Settings) -> None:
    """Give the session the network in integers, where that is wanted and no worse.

    What was measured is remembered as for embeddings (pipeline/precision.py). The cut-outs are of
    one kind: the masks' IoU moves a vector less than the bound of PRECISION does.
    """
    import onnxruntime

    if model != "u2net" or settings.precision not in ("auto", "int8") or not find_spec("onnx"):
        return
    weights = Path(type(session).download_models())
    with weights.open("rb") as stream:
        digest = hashlib.file_digest(stream, "md5").hexdigest()
    if digest != u2net.MD5:
        return
    exact = session.inner_session
    fast = onnxruntime.InferenceSession(
        u2net.quantise(weights), options, providers=["CPUExecutionProvider"]
    )

    def mask(network: Any, image: Image.Image) -> NDArray[np.bool_]:
        session.inner_session = network
        return np.asarray(session.predict(image)[0]) >= FOREGROUND

    def measure() -> list[precision.Measured]:
        images = precision.scenes()
        agreement = min(iou(mask(exact, image), mask(fast, image)) for image in images)
        gain = precision.speedup(
            lambda image: mask(exact, image), lambda image: mask(fast, image), images[0]
        )
        log.info("u2net in integers: %.2f times the speed, IoU %.4f.", gain, agreement)
        return [precision.Measured("int8", agreement, gain)]

    key = precision.measurement_key(f"u2net {digest} {u2net.VERSION}", "cpu")
    found = precision.remembered(settings.data_dir, key, measure)
    session.inner_session = fast if precision.fastest(found, MASK_BOUND) == "int8" else exact


def iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Return the intersection over union of two masks; 1 where both are empty."""
    union = int((first | second).sum())
    return float((first & second).sum() / union) if union else 1.0


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
