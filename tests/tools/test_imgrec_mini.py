"""The bundled model: small, loaded like any CLIP, and it knows drawn products."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.embed.clip import Clip, load_clip
from pipeline.settings import Settings
from tools.drawing import COLORS, Product, draw
from tools.imgrec_mini import reweight_projection
from tools.imgrec_mini.augment import random_view
from tools.imgrec_mini.captions import (
    PHOTO_CATEGORIES,
    caption,
    every_claim,
    random_claim,
    truth,
    words,
)
from tools.imgrec_mini.evaluate import crop, embed, jpeg, mirror
from tools.imgrec_mini.loss import contrast, same
from tools.imgrec_mini.projection import WORDS_DIM
from tools.imgrec_mini.tokenizer import build_tokenizer

MODEL = Path(__file__).parents[2] / "models" / "imgrec-mini"
CATEGORIES = ("shoe", "bag", "mug", "dress", "chair", "watch")
SEED = 987_654_321  # not one of training's


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip(Settings(embedding_model=str(MODEL), device="cpu"))


def product(category: str, color: str, seed: int = SEED) -> Product:
    return Product(category, color, "plain", "casual", seed)


def test_the_model_folder_has_at_most_15_megabytes() -> None:
    assert sum(file.stat().st_size for file in MODEL.iterdir()) <= 15_000_000


def test_the_weights_are_in_half_precision() -> None:
    from safetensors import safe_open

    with safe_open(MODEL / "model.safetensors", framework="pt") as weights:
        kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    assert kinds <= {"F16", "I64"}  # I64: batch counters of the normalisation


def test_an_embedding_has_512_numbers_of_which_texts_use_those_for_words(clip: Clip) -> None:
    assert clip.dim == 512
    assert not clip.embed_texts(["a red shoe"])[:, WORDS_DIM:].any()


def test_images_and_texts_become_unit_vectors_of_one_space(clip: Clip) -> None:
    images = embed(clip, [draw(product("shoe", "red"), 224)])
    texts = clip.embed_texts(["a red shoe", "Ünknown wörds \U0001f45f only", "", "word " * 100])
    assert images.shape == (1, clip.dim)
    assert texts.shape == (4, clip.dim)
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)


def test_a_text_is_read_regardless_of_case_and_of_unknown_words(clip: Clip) -> None:
    plain, loud, chatty = clip.embed_texts(["a red shoe", "A RED SHOE!", "gorgeous red shoe"])
    np.testing.assert_allclose(plain, loud, atol=1e-5)
    assert plain @ chatty > 0.8


def test_the_categories_of_drawn_products_are_known(clip: Clip) -> None:
    pictures = [draw(product(category, "blue"), 224) for category in CATEGORIES]
    texts = clip.embed_texts([f"a photo of a {category}" for category in CATEGORIES])
    best = (embed(clip, pictures) @ texts.T).argmax(axis=1)
    assert [CATEGORIES[index] for index in best] == list(CATEGORIES)


def test_the_colors_of_drawn_products_are_known(clip: Clip) -> None:
    pictures = [draw(product("mug", color), 224) for color in COLORS]
    texts = clip.embed_texts([f"a photo of a {color} mug" for color in COLORS])
    best = (embed(clip, pictures) @ texts.T).argmax(axis=1)
    right = sum(COLORS[index] == color for index, color in zip(best, COLORS, strict=True))
    assert right >= len(COLORS) - 1


def test_a_changed_copy_finds_its_original_first(clip: Clip) -> None:
    originals = [
        draw(product(category, "red", SEED + number), 224)
        for category in CATEGORIES
        for number in range(4)
    ]
    catalogue = embed(clip, originals)
    for change in (jpeg, crop, mirror):
        found = (embed(clip, [change(image) for image in originals]) @ catalogue.T).argmax(axis=1)
        # Four of a kind, all red: a mirrored one may find its neighbour.
        assert (found == np.arange(len(originals))).mean() >= 0.9, change.__name__


def test_the_logit_scale_gives_confidences_that_are_neither_flat_nor_certain(clip: Clip) -> None:
    scale = float(clip._model.logit_scale.exp())
    assert 5 <= scale <= 100


def test_a_view_has_the_asked_size_and_follows_from_its_seed() -> None:
    image = draw(product("shoe", "red"), 224)
    one, two = (random_view(image, 96, np.random.default_rng(5)) for _ in range(2))
    assert one.shape == (96, 96, 3)
    np.testing.assert_array_equal(one, two)


def test_the_truth_of_a_claim_is_unknown_where_the_facts_are_silent() -> None:
    photo, drawn = {"category": "shoe"}, {"category": "shoe", "color": "red"}
    claims = [{"category": "shoe"}, {"color": "red"}, {"category": "bag", "color": "red"}]
    np.testing.assert_array_equal(truth([photo, drawn], claims), [[1, 0, -1], [1, 1, -1]])


def test_the_tokenizer_knows_every_word_that_a_caption_can_contain() -> None:
    facts = {"category": "t-shirt", "color": "gray", "pattern": "dotted", "style": "vintage"}
    photo = {"category": PHOTO_CATEGORIES["pants"]}
    tokenizer = build_tokenizer(words([facts, photo]), 32)
    rng = np.random.default_rng(0)
    for claim in (*(random_claim(facts, rng) for _ in range(300)), *every_claim([photo])):
        text = caption(claim, rng).replace("[UNK]", "")
        assert tokenizer.unk_token not in tokenizer.tokenize(text), text


def test_a_right_answer_competes_with_wrong_ones_only() -> None:
    scores, matches = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1, 0, -1]])
    expected = torch.log1p(torch.exp(torch.tensor(2.0)))
    torch.testing.assert_close(contrast(scores, matches), expected)


def test_a_picture_is_not_compared_with_itself() -> None:
    expected = torch.tensor([[0, -1, 1], [-1, 0, -1], [1, -1, 0]])
    torch.testing.assert_close(same(torch.tensor([4, 7, 4])), expected)


def test_the_stretch_moves_images_along_the_categories_names_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = {"mug": [1.0, 0, 0, 0], "shoe": [0, 1.0, 0, 0]}
    rows = torch.tensor([names[name] for name in sorted(names)])
    monkeypatch.setattr(reweight_projection, "encode_texts", lambda model, tokenizer, texts: rows)
    model = SimpleNamespace(visual_projection=torch.nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        model.visual_projection.weight.copy_(torch.eye(4))
    reweight_projection.emphasise(model, None, sorted(names))
    stretched = model.visual_projection(torch.eye(4)).detach()
    along = torch.tensor([1.0, -1, 0, 0]) / 2**0.5  # in which mug and shoe differ
    torch.testing.assert_close(stretched @ along, reweight_projection.FACTOR * along)
    for other in ([1.0, 1, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1.0]):
        torch.testing.assert_close(stretched @ torch.tensor(other), torch.tensor(other))
