"""Load a vision model of transformers once; embed images with it, and texts where it has words."""

from __future__ import annotations

import contextlib
import copy
import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.embed import int8, numeric_precision, unread_text
from pipeline.embed.architecture import ARCHITECTURES, Architecture, context_of, pool
from pipeline.embed.fingerprint import model_revision, require_readable_model
from pipeline.embed.image_inputs import ImageToInputs, load_image_to_inputs
from pipeline.embed.not_loadable import not_loadable, unknown_kind
from pipeline.errors import SetupError
from pipeline.settings import Settings

Vectors = NDArray[np.float32]

# A small model is mostly convolutions on many pixels, whose results exceed the CPU's caches:
# imgrec-mini took 12 ms per image in batches of 4, and 37 ms in batches of 32.
SMALL_BATCH = 4


class Clip:
    """An image encoder with its own image processor; a dual encoder has a text side and tokenizer.

    Constants and sizes come from the model's own files. Any thread may call it. Forward passes
    are serialised by a lock: one at a time uses all the threads that this process may use.
    """

    def __init__(
        self,
        name: str,
        architecture: Architecture,
        model: Any,
        to_inputs: ImageToInputs,
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
        self.name, self.architecture = name, architecture
        self.device, self.precision = device, precision
        self._model = model
        self._max_batch = max_batch
        self._to_inputs = to_inputs
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        # A tokenizer keeps padding and truncation in itself, from one call to the next: another
        # thread's call in between would change them.
        self._tokenizer_lock = threading.Lock()
        if architecture.has_words:
            self._max_tokens = context_of(architecture, model.config, tokenizer)
        self.dim = self._dimension()

    @property
    def has_words(self) -> bool:
        """Whether texts can be embedded, too."""
        return self.architecture.has_words and self._tokenizer is not None

    @property
    def logit_scale(self) -> float:
        """What the model multiplies cosines with before a softmax: its own inverse temperature."""
        return float(self._model.logit_scale.detach().exp())

    def embed_images(self, images: Sequence[Image.Image]) -> Vectors:
        """Embed RGB images -> (n, dim) float32, L2-normalised, in the same order."""
        if not images:
            return np.zeros((0, self.dim), np.float32)
        inputs = self._to_inputs(images)
        if self.device == "cuda":
            inputs = {name: tensor.pin_memory() for name, tensor in inputs.items()}
        bf16 = self.precision == "bf16"
        step = self._max_batch or len(images)
        return np.concatenate(
            [
                self._forward(
                    self._image_features,
                    bf16,
                    **{name: tensor[at : at + step] for name, tensor in inputs.items()},
                )
                for at in range(0, len(images), step)
            ]
        )

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Embed texts -> (n, dim) float32, L2-normalised; what exceeds the context is cut off.

        Raises:
            SetupError: the model has no text side, or its folder no tokenizer.
        """
        if not self.architecture.has_words:
            raise SetupError(
                f"The model {self.name} has no words: {self.architecture.name} embeds images only. "
                "Query with an image; to classify, train heads ('imgrec train', with "
                "--category-head for the category); or set EMBEDDING_MODEL to a model with words "
                "('imgrec models' lists some) and rebuild."
            )
        if self._tokenizer is None:
            raise SetupError("This model has no tokenizer: texts cannot be embedded with it.")
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        fixed_length = self.architecture.fixed_length_lower_case
        with self._tokenizer_lock:
            inputs = self._tokenizer(
                self._as_read(texts),
                padding="max_length" if fixed_length else True,
                return_attention_mask=not fixed_length,
                truncation=True,
                max_length=self._max_tokens,
                return_tensors="pt",
            )
        return self._forward(self._model.get_text_features, False, **inputs)

    def text_warnings(self, texts: Sequence[str]) -> list[str]:
        """Say what of some texts the model does not read."""
        if not self.has_words:
            return []
        with self._tokenizer_lock:
            return unread_text.warnings(self._tokenizer, self._as_read(texts), self._max_tokens)

    def _as_read(self, texts: Sequence[str]) -> list[str]:
        lower = self.architecture.fixed_length_lower_case
        return [text.lower() if lower else text for text in texts]

    def _image_features(self, **inputs: Any) -> Any:
        if self.architecture.has_words:
            return self._model.get_image_features(**inputs)
        return pool(self._model(**inputs), self.architecture.pooling)

    def _dimension(self) -> int:
        if not self.architecture.has_words:
            return int(self.embed_images([Image.new("RGB", (224, 224))]).shape[1])
        projection = getattr(self._model.config, "projection_dim", None)
        if projection:
            return int(projection)
        return int(self._model.config.vision_config.hidden_size)  # SigLIP has no projection

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
            if tensor.ndim != 2:
                raise SetupError(f"The model {self.name} does not make one vector of an image.")
            unit = torch.nn.functional.normalize(tensor.float(), dim=-1)
            vectors: Vectors = unit.cpu().numpy()
        return vectors


def load_clip(settings: Settings) -> Clip:
    """Load the model that the settings name, from a folder, the hub cache or the hub.

    No code of the model's own is run, and no weights that are not there are made up.

    Raises:
        SetupError: not found, not loadable, of an unknown kind, or the device is missing.
        OSError: the folder of the model, or HF_HOME, lacks a right or space, see `access.explain`.
    """
    import torch

    require_readable_model(settings.embedding_model)
    device = choose_device(settings.device)
    torch.set_num_threads(settings.threads)
    checkpoint = _load_checkpoint(settings.embedding_model, settings.embedding_revision)
    model = checkpoint.model.eval().to(device)
    small = numeric_precision.is_small(model)
    max_batch = SMALL_BATCH if device == "cpu" and small else None

    @functools.cache
    def clip_in(precision: str) -> Clip:
        """Return the model in a numeric precision; all share their weights."""
        in_int8 = precision == "int8"
        encoder = int8.make_encoder(model, settings.threads) if in_int8 else None
        return Clip(
            settings.embedding_model,
            checkpoint.architecture,
            model if encoder is None else _with_image_encoder(model, encoder),
            checkpoint.to_inputs,
            checkpoint.tokenizer,
            device,
            precision,
            max_batch,
        )

    if settings.model_precision == "auto" and small:
        return clip_in("fp32")
    return clip_in(
        numeric_precision.choose(
            settings,
            model_revision(settings.embedding_model, settings.embedding_revision),
            device,
            numeric_precision.available(model, device),
            lambda precision: clip_in(precision).embed_images,
        )
    )


@dataclass(frozen=True)
class _Checkpoint:
    """What a model's folder holds; `tokenizer` is None where texts cannot be embedded."""

    architecture: Architecture
    model: Any
    to_inputs: Any
    tokenizer: Any


def _load_checkpoint(name: str, revision: str) -> _Checkpoint:
    import torch
    import transformers

    folder = Path(name).expanduser()
    source = str(folder) if folder.is_dir() else name
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    safe: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    auto: Any = transformers  # its from_pretrained methods are untyped
    try:
        model_type = auto.AutoConfig.from_pretrained(source, **safe).model_type
        architecture = ARCHITECTURES.get(model_type)
        if architecture is None:
            raise unknown_kind(name, model_type)
        model, loading = auto.AutoModel.from_pretrained(
            source,
            dtype=torch.float32,
            output_loading_info=True,
            **safe,
            **dict(architecture.options),
        )
        to_inputs = load_image_to_inputs(source, **safe)
    except SetupError:
        raise
    except Exception as error:  # each model class raises its own kinds; all mean "not loadable"
        raise not_loadable(name, error) from error
    if loading["missing_keys"]:
        first = min(loading["missing_keys"])
        raise SetupError(
            f"The model {name} cannot be loaded: {len(loading['missing_keys'])} of its weights are "
            f"missing, e.g. {first}. Get the checkpoint of the whole {architecture.name} model."
        )
    tokenizer = _load_tokenizer(name, source, safe) if architecture.has_words else None
    return _Checkpoint(architecture, model, to_inputs, tokenizer)


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


def _load_tokenizer(name: str, source: str, safe: dict[str, Any]) -> Any:
    import transformers

    auto: Any = transformers
    folder = Path(source)
    files = ("*token*", "*.model", "vocab.*")
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in files):
        return None  # image search works without; asking for a text says what is missing
    try:
        return auto.AutoTokenizer.from_pretrained(source, **safe)
    except Exception as error:  # as above
        raise not_loadable(name, error) from error
