"""Faster vectors are the same vectors, or they are not used; what was measured is remembered."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from pipeline import measure_once
from pipeline.embed import int8, numeric_precision
from pipeline.embed.clip import _with_image_encoder, load_clip
from pipeline.embed.fingerprint import find_fingerprint
from pipeline.embed.image_inputs import ImageToInputs
from pipeline.embed.numeric_precision import BOUND
from pipeline.errors import SetupError
from pipeline.measure_once import measurement_key, probe_images
from pipeline.settings import Settings

Embed = Callable[[Sequence[Image.Image]], np.ndarray]


def with_precision(settings: Settings, name: str) -> Settings:
    return settings.model_copy(update={"model_precision": name})


def unit(model: transformers.PreTrainedModel, pixels: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        features = model.get_image_features(pixel_values=pixels).pooler_output
    return torch.nn.functional.normalize(features, dim=-1).numpy()


def noise(count: int, side: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.nn.functional.interpolate(torch.randn(count, 3, 8, 8), size=side)


SIZES = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


def clip(act: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    vision = {**SIZES, "hidden_act": act, "image_size": 64, "patch_size": 16}
    config = transformers.CLIPConfig(vision_config=vision, text_config=SIZES, projection_dim=32)
    return transformers.CLIPModel(config).eval()


def siglip(act: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    vision = {**SIZES, "hidden_act": act, "image_size": 64, "patch_size": 16}
    config = transformers.SiglipConfig(vision_config=vision, text_config=SIZES)
    return transformers.SiglipModel(config).eval()


@pytest.mark.parametrize(
    ("make", "act"), [(clip, "quick_gelu"), (clip, "gelu"), (siglip, "gelu_pytorch_tanh")]
)
def test_the_integer_layers_of_a_clip_and_a_siglip_give_the_vectors_of_transformers(
    make: Callable[[str], transformers.PreTrainedModel], act: str
) -> None:
    model, pixels = make(act), noise(6, 64)
    assert int8.can_run(model)
    expected = unit(model, pixels)
    model.vision_model.encoder = int8.make_encoder(model, threads=1)
    found = unit(model, pixels)
    assert ((found * expected).sum(1) > BOUND).all()
    assert not np.array_equal(found, expected)  # it did run in integers


def test_int8_holds_the_bound_and_the_order_and_leaves_texts_alone(settings: Settings) -> None:
    exact = load_clip(with_precision(settings, "fp32"))
    fast = load_clip(with_precision(settings, "int8"))
    assert (exact.precision, fast.precision) == ("fp32", "int8")
    pictures = probe_images()
    a, b = exact.embed_images(pictures), fast.embed_images(pictures)
    assert ((a * b).sum(1) >= BOUND).all()
    assert (a @ b.T).argmax(1).tolist() == list(range(len(pictures)))
    assert np.array_equal(exact.embed_texts(["a red shoe"]), fast.embed_texts(["a red shoe"]))


@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_what_runs_after_the_measurement_is_exactly_what_was_chosen(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, gain: float
) -> None:
    """int8 is measured last; with no gain it must leave nothing behind."""
    monkeypatch.setattr(numeric_precision, "available", lambda *_: ["fp32", "int8"])
    monkeypatch.setattr(numeric_precision, "is_small", lambda model: False)
    monkeypatch.setattr(numeric_precision, "speedup", lambda *_: gain)
    images = probe_images()
    chosen = load_clip(with_precision(settings, "auto"))
    assert chosen.precision == ("int8" if gain > 1 else "fp32")
    same = load_clip(with_precision(settings, chosen.precision))
    assert np.array_equal(chosen.embed_images(images), same.embed_images(images))


def test_precisions_have_encoders_of_their_own_and_share_all_other_weights() -> None:
    model, pixels = clip("gelu"), noise(4, 64)
    exact = unit(model, pixels)
    twin = _with_image_encoder(model, int8.make_encoder(model, threads=1))
    fast = unit(twin, pixels)
    assert not np.array_equal(fast, exact)
    assert np.array_equal(unit(model, pixels), exact)
    assert np.array_equal(unit(twin, pixels), fast)
    shared = dict(twin.named_parameters())
    for name, weight in model.named_parameters():
        if name.startswith("vision_model.encoder."):
            assert name not in shared
        else:
            assert shared[name] is weight


def test_all_precisions_are_one_kind_for_the_fingerprint(settings: Settings) -> None:
    """They may be: none is used that leaves the bound."""
    found = [find_fingerprint(with_precision(settings, name)) for name in ("auto", "fp32", "int8")]
    assert len({each.id for each in found if each}) == 1


class Bench:
    """Precisions of known speed and error; counts how often they are measured."""

    def __init__(self) -> None:
        self.cosines = {"fp32": 1.0, "bf16": 0.9999, "int8": 0.9}
        self.seconds = {"fp32": 0.1, "bf16": 0.06, "int8": 0.02}
        self.clock, self.measured = 0.0, 0

    def embed_in(self, name: str) -> Embed:
        self.measured += name == "fp32"
        cosine = self.cosines[name]
        vector = np.array([cosine, np.sqrt(1 - cosine**2)], np.float32)

        def embed(images: Sequence[Image.Image]) -> np.ndarray:
            self.clock += self.seconds[name] * len(images)
            return np.tile(vector, (len(images), 1))

        return embed

    def choose(self, settings: Settings, revision: str, names: Sequence[str]) -> str:
        return numeric_precision.choose(settings, revision, "cpu", names, self.embed_in)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    bench = Bench()
    monkeypatch.setattr(measure_once.time, "perf_counter", lambda: bench.clock)
    gray = [Image.new("RGB", (8, 8))] * 2
    monkeypatch.setattr(numeric_precision, "probe_images", lambda: gray)
    return bench


ALL = ["fp32", "bf16", "int8"]


def test_auto_takes_the_fastest_within_the_bound(settings: Settings, bench: Bench) -> None:
    assert bench.choose(settings, "key", ALL) == "bf16"  # int8 is faster, and wrong
    bench.cosines["int8"] = 0.999
    assert bench.choose(settings, "another", ALL) == "int8"
    bench.seconds |= {"int8": 0.098, "bf16": 0.2}
    assert bench.choose(settings, "a third", ALL) == "fp32"  # no gain worth its error


def test_a_precision_that_was_asked_for_and_leaves_the_bound_is_refused(
    settings: Settings, bench: Bench
) -> None:
    with pytest.raises(SetupError, match=r"MODEL_PRECISION=int8 changes.*0\.9000.*limit is 0\.995"):
        bench.choose(with_precision(settings, "int8"), "key", ALL)
    assert bench.choose(with_precision(settings, "bf16"), "key", ALL) == "bf16"
    with pytest.raises(
        SetupError, match=r"MODEL_PRECISION=bf16 cannot run here.*available: fp32, int8"
    ):
        bench.choose(with_precision(settings, "bf16"), "key", ["fp32", "int8"])


def test_a_measurement_is_remembered_and_made_anew_for_another_key(
    settings: Settings, bench: Bench
) -> None:
    for _ in range(3):
        assert bench.choose(settings, "one", ALL) == "bf16"
    assert bench.measured == 1
    bench.choose(settings, "two", ALL)
    bench.choose(settings, "one", ALL)
    assert bench.measured == 2
    assert len(json.loads((settings.data_dir / "precision.json").read_text())) == 2


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"KEY": [{"speed": 1}]}',
        '{"KEY": 3}',
        '{"KEY": [{"precision": "int8", "agreement": 0.9, "speedup": 9.0}]}',  # an earlier format
    ],
)
def test_a_file_that_is_damaged_or_of_an_earlier_version_is_measured_anew(
    settings: Settings, bench: Bench, content: str
) -> None:
    settings.data_dir.mkdir(parents=True)
    key = measurement_key("one", "cpu", numeric_precision.PACKAGES)
    (settings.data_dir / "precision.json").write_text(content.replace("KEY", key))
    for _ in range(2):
        assert bench.choose(settings, "one", ALL) == "bf16"
    assert bench.measured == 1


def test_a_measurement_belongs_to_model_device_and_versions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = measurement_key("sha256:a", "cpu", ["numpy"])
    assert measurement_key("sha256:a", "cpu", ["numpy"]) == mine
    assert measurement_key("sha256:b", "cpu", ["numpy"]) != mine
    assert measurement_key("sha256:a", "cuda", ["numpy"]) != mine
    assert measurement_key("sha256:a", "cpu", ["torch"]) != mine
    monkeypatch.setattr(measure_once, "version", lambda package: "0.0.1")
    assert measurement_key("sha256:a", "cpu", ["numpy"]) != mine
    monkeypatch.undo()
    monkeypatch.setattr(measure_once, "processor", lambda: "another machine")
    assert measurement_key("sha256:a", "cpu", ["numpy"]) != mine


def test_a_model_that_costs_less_than_reading_an_image_is_not_measured(settings: Settings) -> None:
    assert load_clip(settings).precision == "fp32"
    assert not (settings.data_dir / "precision.json").exists()


def test_pixels_are_those_of_the_model_s_own_processor(model: Path) -> None:
    for folder in (model, Path(__file__).parents[3] / "models" / "imgrec-mini"):
        processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
        pixels = ImageToInputs(processor)
        rng = np.random.default_rng(0)
        for size in ((64, 64), (224, 224), (90, 70)):
            images = [
                Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
                for _ in range(3)
            ]
            expected = processor(images=images, return_tensors="pt")["pixel_values"]
            assert torch.allclose(pixels(images)["pixel_values"], expected, atol=1e-5)
