"""Load rembg's session once a process and hand it out as a plain function."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.errors import SetupError
from pipeline.preprocess import Remover


def load_remover(model: str, threads: int, device: str = "auto") -> Remover:
    """Return the function that draws the mask of a picture's foreground.

    The session must be made after any fork: onnxruntime's threads do not survive one
    (microsoft/onnxruntime#31961). It may be called from several threads at once.

    Args:
        model: a rembg model name; its weights are looked up in `U2NET_HOME`, then downloaded.
        threads: compute threads of one call.

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

    def remove(image: Image.Image) -> Image.Image:
        mask: Image.Image = session.predict(image)[0]
        return mask.convert("L")

    return remove


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
