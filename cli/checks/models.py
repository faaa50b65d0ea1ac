"""Rows about the device and the models."""

from __future__ import annotations

import shutil
import time
from importlib.metadata import version

from cli.checks.row import CheckContext, CheckFailed


def are_loaded(context: CheckContext) -> bool:
    return context.load_models


def background_is_removed(context: CheckContext) -> bool:
    return context.load_models and context.settings.use_bg_removal


def device(context: CheckContext) -> str:
    """The GPU is used by all who could, or there is none to use."""
    from pipeline.embed.clip import choose_device, gpu_name
    from pipeline.preprocess.onnx_runtime import sees_gpu

    settings = context.settings
    choice = settings.device
    if choose_device(choice) == "cpu":
        threads = f"{settings.threads} CPU threads"
        if gpu := gpu_name():
            return f"DEVICE=cpu: {gpu} is available but not used, {threads}"
        if choice == "auto" and shutil.which("nvidia-smi"):
            raise CheckFailed(
                f"an NVIDIA driver is installed, but torch {version('torch')} finds no GPU",
                "nvidia-smi, and install imgrec with the extra 'gpu'; or set DEVICE=cpu in .env",
            )
        return f"DEVICE={choice}: no GPU found, {threads}"
    if settings.use_bg_removal and not sees_gpu():
        raise CheckFailed(
            f"{gpu_name()} is used for embeddings, but onnxruntime does not find it",
            "pip uninstall onnxruntime onnxruntime-gpu, and install imgrec with the extra 'gpu'",
        )
    return f"{gpu_name()} is used"


def model(context: CheckContext) -> str:
    """The embedding model loads and embeds an image."""
    from PIL import Image

    settings = context.settings
    start = time.monotonic()
    clip = context.resources.clip
    clip.embed_images([Image.new("RGB", settings.preprocess_size)])
    seconds = time.monotonic() - start
    return f"{settings.embedding_model}, {clip.dim} dimensions, loaded in {seconds:.1f} s"


def removal(context: CheckContext) -> str:
    """The background removal model loads and cuts an image out."""
    from PIL import Image

    context.resources.remover(Image.new("RGB", (64, 64)))
    return f"{context.settings.rembg_model} works"
