"""Find the models of rembg and their weights, without importing all of rembg.

`import rembg` imports its alpha matting, too, which nothing here uses: numba compiles it for
minutes at the first import, and each worker would hold 140 MB of it. So `rembg.sessions`, which
imports nothing of its parent, is imported as a package of its own.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.access import unavailable_cause
from pipeline.errors import SetupError, one_line
from pipeline.preprocess.onnx_runtime import require_cuda
from pipeline.preprocess.prepare import Remover

PACKAGE = "rembg_sessions"
OR_WITHOUT = "or set USE_BG_REMOVAL=false to work without background removal"


def session_class(model: str) -> Any:
    """Return rembg's class of a model.

    Raises:
        SetupError: rembg or onnxruntime is not installed, or rembg does not know the model.
    """
    for package, install in (("rembg", "rembg"), ("onnxruntime", "'.[cpu]' or '.[gpu]'")):
        if find_spec(package) is None:
            raise SetupError(
                f"{package} is not installed: run `pip install {install}`, {OR_WITHOUT}."
            )
    sessions = _import_sessions().sessions
    if model not in sessions:
        raise SetupError(
            f"REMBG_MODEL={model} is unknown to rembg. Available models: {', '.join(sessions)}."
        )
    return sessions[model]


@lru_cache(maxsize=1)
def _import_sessions() -> Any:
    (rembg,) = find_spec("rembg").submodule_search_locations  # type: ignore[union-attr, misc]
    folder = Path(rembg) / "sessions"
    spec = spec_from_file_location(
        PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = sys.modules[PACKAGE] = module_from_spec(spec)
    spec.loader.exec_module(package)
    return package


def weights_file(model: str) -> Path:
    """Return the ONNX file of a model: looked up in rembg's folders, else downloaded.

    Raises:
        SetupError: it is not there, and could not be downloaded.
    """
    try:
        return Path(session_class(model).download_models())
    except SetupError:
        raise
    except Exception as error:  # rembg lets through whatever its downloader raises
        raise unavailable_cause(error) or no_weights(model, error) from error


def load_remover(model: str, threads: int, device: str) -> Remover:
    """Load a session of rembg and return the function that predicts a mask with it.

    Raises:
        SetupError: the weights are missing, or onnxruntime cannot run them on the device.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    providers = {"providers": ["CPUExecutionProvider"]} if device == "cpu" else {}
    session_of = session_class(model)
    try:
        session = session_of(model, options, **providers)
    except Exception as error:  # as above, or onnxruntime's
        raise no_weights(model, error) from error
    inner = getattr(session, "inner_session", None)
    if device == "cuda" and inner is not None:
        require_cuda(inner)

    def remove(image: Image.Image) -> Image.Image:
        mask: Image.Image = session.predict(image)[0]
        return mask.convert("L")

    return remove


def no_weights(model: str, cause: Exception) -> SetupError:
    """Return the error of weights that cannot be loaded."""
    home = Path(os.environ.get("U2NET_HOME") or Path.home() / ".u2net").expanduser()
    return SetupError(
        f"The weights of the background removal model {model} could not be loaded from "
        f"{home / f'{model}.onnx'} nor downloaded ({one_line(cause)}): put the file there, point "
        f"U2NET_HOME to the folder that holds it, {OR_WITHOUT}."
    )
