"""Say why a model cannot be loaded."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

from pipeline.access import require_writable, unavailable_cause
from pipeline.embed.architecture import ARCHITECTURES
from pipeline.errors import SetupError, one_line


def unknown_kind(name: str, model_type: str) -> SetupError:
    """Return the sentence for a model of a type that imgrec cannot embed with."""
    known = ", ".join(sorted({each.name for each in ARCHITECTURES.values()}, key=str.lower))
    return SetupError(
        f"The model {name} is of type {model_type!r}, which imgrec does not know how to make "
        f"vectors with. Set EMBEDDING_MODEL to one of these kinds: {known}; see 'imgrec models'."
    )


def not_loadable(name: str, error: Exception) -> Exception:
    """Return the error to raise for what transformers raised while it loaded a model.

    A folder without a right or space is no fault of the model: its OSError is returned as it is.
    """
    if cause := unavailable_cause(error):
        return cause
    folder = Path(name).expanduser()
    if folder.is_dir():
        return SetupError(
            f"The model in the folder {name} cannot be loaded: {_folder_reason(folder, error)}."
        )
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:  # it would have been downloaded
        require_writable(Path(constants.HF_HUB_CACHE), "HF_HOME")
    return SetupError(
        f"The model {name} cannot be loaded: it is not a folder, and the hub answered: "
        f"{_reason(error)}. Check the name and the network, or set EMBEDDING_MODEL to a folder "
        "with a transformers model."
    )


def _folder_reason(folder: Path, error: Exception) -> str:
    if not (folder / "config.json").is_file():
        if any(folder.glob("open_clip_*")):
            return (
                "it is in OpenCLIP's own format: take the model's transformers version, which has "
                "a config.json"
            )
        inner = sorted(file.parent.name for file in folder.glob("*/config.json"))
        if inner:
            return f"it has no config.json, but its sub-folder {inner[0]} does: name that one"
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if not (any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))):
        missing.append("model.safetensors")
    if not (folder / "preprocessor_config.json").is_file():
        missing.append("preprocessor_config.json")
    if missing:
        return f"the folder lacks {', '.join(missing)}"
    return _reason(error)


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"a JSON file is broken ({error})"
    if "trust_remote_code" in str(error):
        return (
            "it needs Python code of its own, which imgrec does not run: take a model that "
            "transformers itself knows"
        )
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
        return (
            "its weights file contains more than tensors, which could run code: take the model's "
            "safetensors version"
        )
    return one_line(error).rstrip(".")
