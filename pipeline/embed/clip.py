"""Load any transformers CLIP or SigLIP once and embed images and texts with it."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.embed import int8, numeric_precision
from pipeline.embed.fingerprint import model_revision
from pipeline.embed.image_tensor import ImageToTensor
from pipeline.errors import SetupError, one_line
from pipeline.settings import Settings

Vectors = NDArray[np.float32]

# A small model is mostly convolutions on many pixels, whose results exceed the CPU's caches:
# imgrec-mini took 12 ms per image in batches of 4, and 37 ms in batches of 32.
SMALL_BATCH = 4


class Clip:
    """A dual encoder with its own image processor and tokenizer.

    Constants and sizes come from the model's own files. Calls are serialised by a lock: one
    forward pass at a time uses all the threads that this process may use.
    """

    def __init__(
        self,
        model: Any,
        image_processor: Any,
        tokenizer: Any,
        device: str,
        precision: str,
        max_batch: int | None = None,
    ) -> None:
        """Wrap a loaded model.

        Args:
            precision: numeric precision of the image encoder that `model` has.
            max_batch: images in one forward pass; None: as many as `embed_images` is given.
        """
        self._model = model
        self._max_batch = max_batch
        self._to_tensor = ImageToTensor(image_processor)
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self.device = device
        self.precision = precision
        self.dim = _dimension(model)

    @property
    def logit_scale(self) -> float:
        """What the model multiplies cosines with before a softmax: its own inverse temperature."""
        return float(self._model.logit_scale.detach().exp())

    def embed_images(self, images: Sequence[Image.Image]) -> Vectors:
        """Embed RGB images -> (n, dim) float32, L2-normalised, in the same order."""
        if not images:
            return np.zeros((0, self.dim), np.float32)
        pixels = self._to_tensor(images)
        if self.device == "cuda":
            pixels = pixels.pin_memory()
        bf16 = self.precision == "bf16"
        parts = pixels.split(self._max_batch or len(pixels))
        return np.concatenate(
            [self._forward(self._model.get_image_features, bf16, pixel_values=p) for p in parts]
        )

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Embed texts -> (n, dim) float32, L2-normalised; what exceeds the context is cut off.

        Raises:
            SetupError: the model's folder has no tokenizer.
        """
        if self._tokenizer is None:
            raise SetupError("This model has no tokenizer: texts cannot be embedded with it.")
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        config = self._model.config
        text_config = getattr(config, "text_config", config)
        # SigLIP was trained on texts padded to its full context and without a mask, CLIP on texts
        # as long as they are (their model cards).
        siglip = "siglip" in config.model_type
        inputs = self._tokenizer(
            list(texts),
            padding="max_length" if siglip else True,
            return_attention_mask=not siglip,
            truncation=True,
            max_length=text_config.max_position_embeddings,
            return_tensors="pt",
        )
        return self._forward(self._model.get_text_features, False, **inputs)

    def _forward(self, features: Any, bf16: bool, **inputs: Any) -> Vectors:
        import torch

        rounded: Any = (
            torch.autocast(self.device, torch.bfloat16) if bf16 else contextlib.nullcontext()
        )
        with self._lock, torch.inference_mode(), rounded:
            output = features(
                **{name: value.to(self.device, non_blocking=True) for name, value in inputs.items()}
            )
            # transformers 5 returns an output object whose pooled field is the projected embedding
            tensor = output if isinstance(output, torch.Tensor) else output.pooler_output
            unit = torch.nn.functional.normalize(tensor.float(), dim=-1)
            vectors: Vectors = unit.cpu().numpy()
        return vectors


def load_clip(settings: Settings) -> Clip:
    """Load the model that the settings name, from a folder, the hub cache or the hub.

    Raises:
        SetupError: not found, not readable, not a dual encoder, or the device is missing.
    """
    import torch
    import transformers

    name, revision = settings.embedding_model, settings.embedding_revision
    folder = Path(name).expanduser()
    source = str(folder) if folder.is_dir() else name
    device = choose_device(settings.device)
    torch.set_num_threads(settings.threads)
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        auto: Any = transformers  # its from_pretrained methods are untyped
        model = auto.AutoModel.from_pretrained(source, revision=revision, dtype=torch.float32)
        # The Pillow processors need no torchvision and are the reference for these models.
        image_processor = auto.AutoImageProcessor.from_pretrained(
            source, revision=revision, backend="pil"
        )
    except Exception as error:  # each model class raises its own kinds; all mean "not loadable"
        raise _not_loadable(name, error) from error
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise SetupError(
            f"The model {name} is a {type(model).__name__}, not a CLIP or SigLIP with an image "
            "and a text side: set EMBEDDING_MODEL to one."
        )
    model.eval().to(device)
    tokenizer = _load_tokenizer(source, revision)
    small = numeric_precision.is_small(model)
    max_batch = SMALL_BATCH if device == "cpu" and small else None

    @functools.cache
    def clip_in(precision: str) -> Clip:
        in_int8 = precision == "int8"
        encoder = int8.make_encoder(model, settings.threads) if in_int8 else None
        return Clip(
            model if encoder is None else _with_image_encoder(model, encoder),
            image_processor,
            tokenizer,
            device,
            precision,
            max_batch,
        )

    if settings.model_precision == "auto" and small:
        return clip_in("fp32")
    return clip_in(
        numeric_precision.choose(
            settings,
            model_revision(name, revision),
            device,
            numeric_precision.available(model, device),
            lambda precision: clip_in(precision).embed_images,
        )
    )


def _with_image_encoder(model: Any, encoder: Any) -> Any:
    """Return a copy of a model with other transformer layers on the image side.

    All other weights are shared; the given model is not changed.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, {**shared, id(model.vision_model.encoder): encoder})


def choose_device(setting: str) -> str:
    """Resolve DEVICE to `cpu` or `cuda`.

    Raises:
        SetupError: cuda was demanded and torch sees none.
    """
    import torch

    if setting == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if setting == "cuda":
        raise SetupError(
            f"DEVICE=cuda, but torch {torch.__version__} sees no CUDA device: check the driver and "
            "that torch is a CUDA build, or set DEVICE=cpu."
        )
    return "cpu"


def gpu_name() -> str | None:
    """Name the GPU that torch sees; None where it sees none."""
    import torch

    return str(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else None


def _load_tokenizer(source: str, revision: str) -> Any:
    import transformers

    auto: Any = transformers
    folder = Path(source)
    if folder.is_dir() and not any(folder.glob("*token*")) and not any(folder.glob("*.model")):
        return None  # image search works without; asking for a text says what is missing
    try:
        return auto.AutoTokenizer.from_pretrained(source, revision=revision)
    except Exception as error:  # as above
        raise _not_loadable(source, error) from error


def _dimension(model: Any) -> int:
    projection = getattr(model.config, "projection_dim", None)
    if projection:
        return int(projection)
    return int(model.config.vision_config.hidden_size)  # SigLIP pools without a projection


def _not_loadable(name: str, error: Exception) -> SetupError:
    folder = Path(name).expanduser()
    if folder.is_dir():
        missing = [] if (folder / "config.json").is_file() else ["config.json"]
        if not (any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))):
            missing.append("model.safetensors")
        if not (folder / "preprocessor_config.json").is_file():
            missing.append("preprocessor_config.json")
        reason = f"the folder lacks {', '.join(missing)}" if missing else _reason(error)
        return SetupError(f"The model in the folder {name} cannot be loaded: {reason}.")
    return SetupError(
        f"The model {name} cannot be loaded: it is not a folder, and the hub answered: "
        f"{_reason(error)}. Check the name and the network, or set EMBEDDING_MODEL to a folder "
        "with a transformers CLIP or SigLIP."
    )


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"a JSON file is broken ({error})"
    return one_line(error).rstrip(".")
