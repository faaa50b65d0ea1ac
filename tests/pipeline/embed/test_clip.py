"""Our vectors are transformers' vectors; what cannot be loaded says why."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from pipeline.embed.clip import load_clip
from pipeline.embed.fingerprint import find_fingerprint
from pipeline.errors import SetupError
from pipeline.settings import Settings

TEXTS = ["a red shoe", "blue mug, checked", "x" * 500]


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(7)
    return [
        Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)) for _ in range(count)
    ]


def unit(features: object) -> np.ndarray:
    tensor = features if isinstance(features, torch.Tensor) else features.pooler_output
    return torch.nn.functional.normalize(tensor, dim=-1).detach().numpy()


def test_embeddings_equal_those_of_transformers_own_processor_and_model(settings: Settings) -> None:
    folder = settings.embedding_model
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
    images = pictures(5)
    theirs = unit(model.get_image_features(**processor(images=images, return_tensors="pt")))
    ours = load_clip(settings).embed_images(images)
    assert ours.dtype == np.float32
    assert ((ours * theirs).sum(1) > 0.9999).all()

    options = {"padding": True, "truncation": True, "max_length": 32, "return_tensors": "pt"}
    theirs = unit(model.get_text_features(**processor.tokenizer(TEXTS, **options)))
    ours = load_clip(settings).embed_texts(TEXTS)
    assert ((ours * theirs).sum(1) > 0.9999).all()


def test_vectors_are_unit_length_and_keep_their_order_in_any_batch(settings: Settings) -> None:
    clip, images = load_clip(settings), pictures(7)
    whole = clip.embed_images(images)
    singly = np.concatenate([clip.embed_images([image]) for image in images])
    assert np.allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)
    assert np.allclose(whole, singly, atol=1e-5)
    assert not np.allclose(whole[0], whole[1], atol=1e-4)
    assert clip.embed_images([]).shape == (0, clip.dim)


def test_a_siglip_is_loaded_by_the_same_code(settings: Settings, tmp_path: Path) -> None:
    from transformers.models.siglip import SiglipImageProcessorPil

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    sizes["num_attention_heads"] = 2
    config = transformers.SiglipConfig(
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        text_config={**sizes, "vocab_size": 200, "max_position_embeddings": 16},
    )
    torch.manual_seed(0)
    model = transformers.SiglipModel(config).eval()
    model.save_pretrained(tmp_path)
    processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    # The tokenizer of the tiny CLIP stands in: its ids fit the vocabulary.
    tokenizer = transformers.AutoTokenizer.from_pretrained(settings.embedding_model)
    tokenizer.save_pretrained(tmp_path)
    clip = load_clip(settings.model_copy(update={"embedding_model": str(tmp_path)}))
    images = pictures(2)
    theirs = unit(model.get_image_features(**processor(images=images, return_tensors="pt")))
    assert ((clip.embed_images(images) * theirs).sum(1) > 0.9999).all()
    # SigLIP is trained on texts padded to the full context: a lone text must equal a padded one.
    ids = tokenizer(["red"], padding="max_length", max_length=16, return_tensors="pt").input_ids
    theirs = unit(model.get_text_features(input_ids=ids))
    assert (clip.embed_texts(["red"]) @ theirs.T).item() > 0.9999


def broken(settings: Settings, folder: Path | str) -> str:
    with pytest.raises(SetupError) as caught:
        load_clip(settings.model_copy(update={"embedding_model": str(folder)}))
    return str(caught.value)


def test_a_model_that_cannot_be_loaded_says_what_is_missing(
    settings: Settings, tmp_path: Path
) -> None:
    assert "not a folder" in broken(settings, "nobody/no-such-model")
    assert "config.json, model.safetensors, preprocessor_config.json" in broken(settings, tmp_path)
    folder = tmp_path / "half"
    shutil.copytree(settings.embedding_model, folder)
    (folder / "model.safetensors").unlink()
    assert "lacks model.safetensors" in broken(settings, folder)
    transformers.BertModel(
        transformers.BertConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            vocab_size=50,
        )
    ).save_pretrained(tmp_path / "bert")
    shutil.copy(folder / "preprocessor_config.json", tmp_path / "bert")
    assert "is of type 'bert'" in broken(settings, tmp_path / "bert")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_that_is_not_there_is_refused_and_never_the_cpu_in_silence(settings: Settings) -> None:
    with pytest.raises(SetupError, match="DEVICE=cuda"):
        load_clip(settings.model_copy(update={"device": "cuda"}))


def test_the_fingerprint_follows_what_changes_a_vector_and_nothing_else(
    settings: Settings, tmp_path: Path
) -> None:
    def of(**changes: object) -> str:
        found = find_fingerprint(settings.model_copy(update=changes))
        assert found is not None
        return found.id

    same = tmp_path / "elsewhere"
    shutil.copytree(settings.embedding_model, same)
    (same / "README.md").write_text("a model card")
    assert of(embedding_model=str(same)) == of()
    assert of(embed_batch_size=3, cpu_threads=2, top_k=9, device="cpu") == of()
    assert of(rembg_model="u2netp") == of()  # removal is off: its model does not matter
    weights = bytearray((same / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (same / "model.safetensors").write_bytes(weights)
    different = {
        of(),
        of(embedding_model=str(same)),
        of(preprocess_size=(64, 64)),
        of(preprocess_bg_color=(0, 0, 0)),
        of(use_bg_removal=True),
        of(use_bg_removal=True, rembg_model="u2netp"),
        of(use_bg_removal=True, preprocess_padding=0.2),
    }
    assert len(different) == 7


def test_a_hub_model_that_was_never_downloaded_has_no_fingerprint_yet(settings: Settings) -> None:
    assert find_fingerprint(settings.model_copy(update={"embedding_model": "nobody/none"})) is None


def test_weights_that_would_run_code_are_not_run(settings: Settings, tmp_path: Path) -> None:
    """A pickle from a stranger's model folder must not own the worker."""
    folder = tmp_path / "model"
    shutil.copytree(settings.embedding_model, folder)
    (folder / "model.safetensors").unlink()
    torch.save(RunsWhenLoaded(tmp_path / "owned"), folder / "pytorch_model.bin")
    broken(settings, folder)
    assert not (tmp_path / "owned").exists()


class RunsWhenLoaded:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.file), "w")


def test_a_model_without_a_tokenizer_serves_images_and_says_what_it_lacks_for_texts(
    settings: Settings, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(settings.embedding_model, folder)
    for file in [*folder.glob("*token*"), *folder.glob("vocab*"), *folder.glob("merges*")]:
        file.unlink()
    clip = load_clip(settings.model_copy(update={"embedding_model": str(folder)}))
    assert clip.embed_images(pictures(1)).shape == (1, clip.dim)
    with pytest.raises(SetupError, match="no tokenizer"):
        clip.embed_texts(["a red shoe"])


def test_a_broken_file_of_a_model_is_one_sentence(settings: Settings, tmp_path: Path) -> None:
    for number, (name, content) in enumerate(
        [("config.json", "{"), ("model.safetensors", "short"), ("preprocessor_config.json", "[")]
    ):
        folder = tmp_path / str(number)
        shutil.copytree(settings.embedding_model, folder)
        (folder / name).write_text(content)
        sentence = broken(settings, folder)
        assert sentence.startswith(f"The model in the folder {folder} cannot be loaded: ")
        assert "\n" not in sentence
        assert len(sentence) < 600


def test_threads_that_embed_at_once_get_their_own_vectors(settings: Settings) -> None:
    clip, images = load_clip(settings), pictures(8)
    expected = clip.embed_images(images)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda image: clip.embed_images([image])[0], images))
    assert np.allclose(found, expected, atol=1e-5)
