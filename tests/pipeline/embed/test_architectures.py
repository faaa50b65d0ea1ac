"""Each kind of model gives the vectors of transformers' own processor and model, pooled as its card
says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image

from pipeline.embed.architecture import ARCHITECTURES
from pipeline.embed.clip import Clip, load_clip
from pipeline.errors import SetupError
from pipeline.settings import Settings


def images() -> list[Image.Image]:
    """Two squares as `prepare` makes them, one of the models' own size and one larger."""
    rng = np.random.default_rng(3)
    return [
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for side in (64, 224)
    ]


def unit(features: Any) -> np.ndarray:
    tensor = features if isinstance(features, torch.Tensor) else features.pooler_output
    array: np.ndarray = torch.nn.functional.normalize(tensor.flatten(1), dim=-1).detach().numpy()
    return array


def load(settings: Settings, folder: Path | str) -> Clip:
    changes = {"embedding_model": str(folder), "model_precision": "fp32"}
    return load_clip(settings.model_copy(update=changes))


def same(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert np.allclose(ours, theirs, atol=1e-4)
    assert not np.allclose(ours[0], ours[1], atol=2e-3)  # two inputs, two vectors: it can fail


@pytest.mark.parametrize("kind", tiny_models.DUAL)
def test_a_dual_encoder_embeds_images_as_its_own_processor_and_model_do(
    settings: Settings, tmp_path: Path, kind: str
) -> None:
    model, processor = tiny_models.make(kind, tmp_path)
    clip = load(settings, tmp_path)
    inputs = processor(images=images(), return_tensors="pt")
    ours = clip.embed_images(images())
    same(ours, unit(model.get_image_features(**inputs)))
    assert ours.shape == (2, clip.dim)
    singly = np.concatenate([clip.embed_images([image]) for image in images()])
    assert np.allclose(ours, singly, atol=1e-5)


# What each card does with the output of a forward pass.
FIRST: Callable[[Any], Any] = lambda output: output.last_hidden_state[:, 0]  # noqa: E731
MEAN: Callable[[Any], Any] = lambda output: output.last_hidden_state.mean(1)  # noqa: E731
CARDS = {"vit": FIRST, "vit_msn": FIRST, "dinov2": FIRST, "dinov3_vit": FIRST, "ijepa": MEAN}


@pytest.mark.parametrize("kind", tiny_models.IMAGE_ONLY)
def test_an_image_encoder_is_pooled_as_its_card_has_it(
    settings: Settings, tmp_path: Path, kind: str
) -> None:
    model, processor = tiny_models.make(kind, tmp_path)
    base = model.base_model if "ForImage" in type(model).__name__ else model
    inputs = (
        dinov3_inputs() if processor is None else processor(images=images(), return_tensors="pt")
    )
    with torch.inference_mode():
        output = base(**inputs)
    clip = load(settings, tmp_path)
    pooled = CARDS.get(kind, lambda output: output.pooler_output)(output)
    same(clip.embed_images(images()), unit(pooled))
    assert clip.dim == pooled.flatten(1).shape[1]
    assert not clip.has_words


def dinov3_inputs() -> dict[str, torch.Tensor]:
    """What DINOv3ViTImageProcessor does, in torch: rescale, resize with antialiasing, normalise."""
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    planes = []
    for image in images():
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        resized = torch.nn.functional.interpolate(
            pixels[None], (64, 64), mode="bilinear", antialias=True
        )[0]
        planes.append((resized - mean) / std)
    return {"pixel_values": torch.stack(planes)}


def test_a_text_without_words_in_the_model_is_one_sentence_that_names_the_ways_out(
    settings: Settings, tmp_path: Path
) -> None:
    tiny_models.make("dinov2", tmp_path)
    clip = load(settings, tmp_path)
    assert clip.text_warnings(["a red shoe"]) == []
    with pytest.raises(SetupError, match="has no words: DINOv2 embeds images only") as caught:
        clip.embed_texts(["a red shoe"])
    assert "imgrec train" in str(caught.value)


@pytest.mark.parametrize("kind", ["metaclip2", "chinese_clip"])
def test_texts_of_any_length_equal_those_of_the_model_s_own_tokenizer(
    settings: Settings, tmp_path: Path, kind: str
) -> None:
    from transformers import AutoTokenizer

    model, _ = tiny_models.make(kind, tmp_path)
    texts = ["abc de" if kind == "metaclip2" else "红色连衣裙", "b c a d"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    same(load(settings, tmp_path).embed_texts(texts), unit(model.get_text_features(**inputs)))


@pytest.mark.parametrize("kind", ["siglip", "siglip2_naflex"])
def test_siglip_reads_lower_case_texts_padded_to_its_context(
    settings: Settings, tmp_path: Path, kind: str
) -> None:
    from transformers import AutoTokenizer

    model, _ = tiny_models.make(kind, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    options = {"padding": "max_length", "max_length": 32, "return_tensors": "pt"}
    ids = tokenizer(["red dress", "blue shoe"], **options).input_ids
    clip = load(settings, tmp_path)
    theirs = unit(model.get_text_features(input_ids=ids))
    same(clip.embed_texts(["red dress", "blue shoe"]), theirs)
    same(clip.embed_texts(["Red DRESS", "Blue Shoe"]), theirs)


@pytest.mark.parametrize("kind", ["siglip", "siglip2_naflex", "metaclip2"])
def test_a_text_beyond_the_context_of_a_model_is_told(
    settings: Settings, tmp_path: Path, kind: str
) -> None:
    tiny_models.make(kind, tmp_path)
    clip = load(settings, tmp_path)
    assert clip.text_warnings(["a b c"]) == []
    (sentence,) = clip.text_warnings(["a b c d " * 30])
    assert "and the model reads the first" in sentence


def test_chinese_clip_reads_as_many_tokens_as_it_was_trained_on(
    settings: Settings, tmp_path: Path
) -> None:
    tiny_models.make("chinese_clip", tmp_path)
    clip = load(settings, tmp_path)
    long = "红" * 60
    assert "62 tokens, and the model reads the first 52" in clip.text_warnings([long])[0]
    assert np.allclose(clip.embed_texts([long]), clip.embed_texts(["红" * 50]), atol=1e-5)


def test_a_clip_of_the_old_layout_answers_texts(settings: Settings, tmp_path: Path) -> None:
    """vocab.json and merges.txt, no tokenizer.json; weights in pytorch_model.bin."""
    import shutil

    from transformers import CLIPModel

    old = tmp_path / "old"
    shutil.copytree(settings.embedding_model, old)
    for file in old.glob("*token*"):
        file.unlink()
    torch.save(CLIPModel.from_pretrained(old).state_dict(), old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    new, clip = load(settings, settings.embedding_model), load(settings, old)
    texts = ["a red shoe", "blue mug"]
    assert np.allclose(clip.embed_texts(texts), new.embed_texts(texts), atol=1e-6)
    assert np.allclose(clip.embed_images(images()), new.embed_images(images()), atol=1e-6)


def broken(settings: Settings, folder: Path) -> str:
    with pytest.raises(SetupError) as caught:
        load(settings, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_that_lacks_weights_is_refused_and_not_filled_with_random_ones(
    settings: Settings, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    tiny_models.make("convnext", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(key for key in weights if key.startswith("encoder.stages.2"))
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    sentence = broken(settings, tmp_path)
    assert f"1 of its weights are missing, e.g. {name}" in sentence


def test_code_of_a_model_s_own_is_neither_run_nor_asked_about(
    settings: Settings, tmp_path: Path
) -> None:
    tiny_models.make("dinov2", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    assert "Python code of its own, which imgrec does not run" in broken(settings, tmp_path)
    assert not (tmp_path / "owned").exists()


def test_a_kind_that_is_not_known_names_those_that_are(settings: Settings, tmp_path: Path) -> None:
    tiny_models.make("dinov2", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "vit_mae"}))
    sentence = broken(settings, tmp_path)
    assert "is of type 'vit_mae'" in sentence
    assert "DINOv2" in sentence
    assert "SigLIP" in sentence


def test_folders_of_other_programs_are_told_what_to_do(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "open_clip_config.json").write_text("{}")
    assert "OpenCLIP's own format" in broken(settings, tmp_path / "open")
    (tmp_path / "st" / "0_CLIPModel").mkdir(parents=True)
    (tmp_path / "st" / "0_CLIPModel" / "config.json").write_text("{}")
    assert "its sub-folder 0_CLIPModel does" in broken(settings, tmp_path / "st")


def test_every_kind_that_is_offered_is_one_of_transformers_own() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    assert set(ARCHITECTURES) <= set(CONFIG_MAPPING)
