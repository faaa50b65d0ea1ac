"""The visual projection of the bundled model, and the views that it is computed from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tools.drawing import Product, draw
from tools.imgrec_mini import projection, text_targets
from tools.imgrec_mini.examples import Example
from tools.imgrec_mini.hard_views import (
    CLEAN,
    DRAWN_KINDS,
    PHOTO_KINDS,
    hard_view,
    onto_square,
    onto_white,
)
from tools.imgrec_mini.interpolate import interpolate
from tools.imgrec_mini.projection import Matrix, Views, fit, invariant, learn_words
from tools.imgrec_mini.same_photo import color_distance, part
from tools.imgrec_mini.text_targets import towards_facts
from tools.imgrec_mini.view_features import central_color, cut_out

MUG = Product("mug", "red", "plain", "casual", 987_654_321)
WIDTH, WORDS = 24, 6


def views_of(rng: np.random.Generator, loud: int, colors: bool) -> Views:
    """Products whose views differ along feature `loud` more than the products do."""
    count = 200
    categories = np.array(["mug", "shoe"])[rng.integers(0, 2, count)]
    own = rng.normal(size=(count, WIDTH)).astype(np.float32)
    own[:, 0] += 3 * (categories == "mug")
    features = np.repeat(own[:, None], 4, axis=1) + rng.normal(0, 0.1, (count, 4, WIDTH))
    features[:, 1:, loud] += rng.normal(0, 12, (count, 3))
    words = rng.normal(0, 0.1, (count, WORDS)) + (categories == "mug")[:, None]
    names = np.array(["blue", "red"])[rng.integers(0, 2, count)]
    return Views(
        features.astype(np.float32),
        words.astype(np.float32),
        categories,
        names if colors else own[:, 1:4],
    )


@pytest.fixture
def views() -> tuple[Views, Views]:
    rng = np.random.default_rng(0)
    return views_of(rng, 5, colors=False), views_of(rng, 5, colors=True)


def found(projected: Matrix) -> float:
    """Return how often a view's nearest whole product is its own; `projected` is (n, v, d)."""
    unit = projected / np.linalg.norm(projected, axis=-1, keepdims=True)
    return float(((unit[:, 1] @ unit[:, 0].T).argmax(axis=1) == np.arange(len(unit))).mean())


def test_what_differs_between_views_of_one_product_counts_little(
    views: tuple[Views, Views],
) -> None:
    photos, drawn = views
    weight = invariant(photos, drawn, WIDTH)
    assert found(photos.features) < 0.8
    assert found(photos.features @ weight.T) > 0.95


def test_texts_lie_in_the_part_for_words_where_their_products_are(
    views: tuple[Views, Views], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, drawn = views
    monkeypatch.setattr(projection, "WORDS_DIM", 2)
    texts = np.stack([np.ones(WORDS), -np.ones(WORDS)]).astype(np.float32)  # a mug, no mug
    weight, basis = fit(photos, drawn, [], texts, 10)
    assert weight.shape == (10, WIDTH)
    scores = (photos.whole @ weight.T)[:, :2] @ (basis @ texts[0])
    mugs = photos.categories == "mug"
    assert scores[mugs].mean() > scores[~mugs].mean() + scores.std()


def test_views_that_weigh_little_change_the_words_little() -> None:
    rng = np.random.default_rng(0)
    one, other = views_of(rng, 5, colors=True), views_of(rng, 5, colors=True)
    other = replace(other, words=-other.words)
    alone = learn_words([one], np.eye(WORDS, dtype=np.float32))
    equal, little = (
        learn_words([one, replace(other, weight=weight)], np.eye(WORDS, dtype=np.float32))
        for weight in (1.0, 0.01)
    )
    assert np.abs(little - alone).max() < 0.1 * np.abs(equal - alone).max()


def test_known_values_move_a_product_towards_their_texts_and_unknown_ones_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    axes = {"mug": 0, "shoe": 1, "red": 2, "blue": 3}

    def encode(model: object, tokenizer: object, texts: list[str]) -> torch.Tensor:
        return torch.tensor([[float(word in text) for word in axes] + [0.1, 0.1] for text in texts])

    monkeypatch.setattr(text_targets, "encode_texts", encode)
    facts = [{"category": "mug", "color": "red"}, {"category": "mug", "color": "blue"}]
    facts += [{"category": "shoe"}]
    words = np.tile(np.eye(WORDS, dtype=np.float32)[5], (3, 1))
    views = Views(np.zeros((3, 1, 4), np.float32), words, np.array(["mug"] * 3), np.zeros(3))
    questions = [{"category": "mug"}, {"category": "shoe"}, {"color": "blue"}, {"color": "red"}]
    red, blue, shoe = towards_facts(None, None, views, facts, questions).words
    assert red[axes["red"]] > red[axes["blue"]]
    assert blue[axes["blue"]] > blue[axes["red"]]
    assert red[axes["mug"]] > red[axes["shoe"]]
    assert shoe[axes["red"]] == shoe[axes["blue"]]
    np.testing.assert_allclose(np.linalg.norm([red, blue, shoe], axis=1), 1, rtol=1e-5)


def test_the_weights_lie_between_the_backbone_s_and_the_trained_ones() -> None:
    backbone, trained = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    with torch.no_grad():
        trained.weight.fill_(3.0)
    trained.num_batches_tracked.fill_(7)
    interpolate(trained, backbone, share=0.25)
    torch.testing.assert_close(trained.weight.detach(), torch.full((2,), 1.5))
    assert int(trained.num_batches_tracked) == 7


@pytest.mark.parametrize("kind", sorted({*PHOTO_KINDS, *DRAWN_KINDS, CLEAN}))
def test_a_hard_view_has_the_asked_size_and_follows_from_its_seed(kind: str) -> None:
    image, alone = draw(MUG, 224), cut_out(MUG)
    one, two = (
        hard_view(kind, image, alone, [image], 96, np.random.default_rng(5)) for _ in range(2)
    )
    assert one.shape == (96, 96, 3)
    assert one.dtype == np.uint8
    np.testing.assert_array_equal(one, two)


def test_a_cut_out_product_has_its_own_color_and_nothing_around_it() -> None:
    alone = np.asarray(cut_out(MUG), float)
    opaque = alone[alone[..., 3] > 250]
    assert opaque[:, 0].mean() > 1.5 * opaque[:, 1].mean()
    assert (alone[..., 3] < 5).any()


def test_a_clean_view_shows_the_product_alone_with_a_margin() -> None:
    square = np.asarray(onto_white(Image.new("RGBA", (60, 30), (0, 0, 0, 255)), 72))
    assert square[:, :5].min() == square[:20].min() == 255
    assert square[36, 36].max() == 0


def test_a_photo_is_padded_to_a_square_with_white() -> None:
    square = np.asarray(onto_square(Image.new("RGB", (40, 20), "black"), 8))
    assert square[0].min() == 255
    assert square[4].max() == 0


def test_a_part_has_the_asked_share_of_each_edge() -> None:
    image = Image.new("RGB", (100, 60))
    assert part(0.5)(image, np.random.default_rng(0)).size == (50, 30)


def test_matches_of_the_query_s_color_have_a_small_color_distance() -> None:
    photos = [
        Example(Image.new("RGB", (20, 20), color), {"category": "mug"})
        for color in ["red"] * 5 + ["blue"] * 5
    ]
    vectors = np.repeat(np.eye(2, dtype=np.float32), 5, axis=0)
    assert color_distance(photos[:1], vectors[:1], photos, vectors) == 0
    assert color_distance(photos[:1], vectors[5:6], photos, vectors) == pytest.approx(2)
    assert central_color(photos[0].image)[1] > 50  # a* of red
