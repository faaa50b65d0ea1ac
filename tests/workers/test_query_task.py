"""The tasks of queue `query`: bytes in, matches out; nothing is read that no index names."""

from __future__ import annotations

import base64
import io
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from catalogue_files import import_rows
from inline_worker import InlineWorker
from PIL import Image

from pipeline.classify.head import CATEGORY, Head, HeadName
from pipeline.classify.head_store import save_head
from pipeline.errors import (
    BadImage,
    FingerprintMismatch,
    HeadBroken,
    IndexMissing,
    ServerUnavailable,
    SetupError,
    WrongUse,
)
from pipeline.images.decode import sha256
from pipeline.micro_batcher import Batcher
from pipeline.preprocess.prepare import PreparedImage
from pipeline.search.rank import VERSION, recommend
from pipeline.settings import Settings
from workers import query
from workers.product_images import MAX_THUMBNAILS, thumbnails
from workers.query import classify_image
from workers.query_images import prepare_image
from workers.resources import Resources


@pytest.fixture
def asked(inline_worker: InlineWorker) -> list[int]:
    """The sizes of the batches that the model was asked for by queries."""
    sizes: list[int] = []

    def embed(images: Sequence[Image.Image]) -> np.ndarray:
        sizes.append(len(images))
        return inline_worker.toy.embed_images(list(images))

    inline_worker.resources.batcher = Batcher(embed, 8)
    return sizes


def query_image(
    inline_worker: InlineWorker, *args: Any, query_id: str | None = None
) -> dict[str, Any]:
    return query.query_image(inline_worker.resources, *args, query_id=query_id)


def product(inline_worker: InlineWorker, name: str = "kind0/04.png") -> bytes:
    return (inline_worker.toy.root / name).read_bytes()


def jpeg(color: str, *, blank: bool = False) -> bytes:
    buffer = io.BytesIO()
    image = Image.new("RGB", (32, 32), color)
    if not blank:
        image.paste("black", (0, 0, 4, 4))
    image.save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize("broken", [True, False])
def test_a_worker_whose_model_stops_working_ends_and_one_of_a_bad_image_does_not(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    inline_worker.rebuild()
    ends: list[tuple[int, int]] = []
    monkeypatch.setattr("workers.resources.os.kill", lambda *args: ends.append(args))
    monkeypatch.setattr(inline_worker.resources.memory_guard, "_is_worker", threading.Event())
    failing = True

    def embed(images: Sequence[Image.Image]) -> np.ndarray:
        gray = images[0].getpixel((0, 0)) == (128, 128, 128)
        if failing and (broken or not gray):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return inline_worker.toy.embed_images(list(images))

    inline_worker.resources.batcher = Batcher(embed, 8)
    sentence = "no longer embeds any image" if broken else "illegal memory access"
    with pytest.raises((SetupError, RuntimeError), match=sentence):
        query_image(inline_worker, jpeg("red"), 3)
    assert ends == []  # a command that does it itself
    inline_worker.resources.memory_guard._is_worker.set()
    with pytest.raises((SetupError, RuntimeError), match=sentence):
        query_image(inline_worker, jpeg("red"), 3)
    assert ends == ([(os.getpid(), signal.SIGTERM)] if broken else [])
    failing = False
    assert query_image(inline_worker, jpeg("red"), 3)["matches"]


@pytest.mark.parametrize("broken", [True, False])
def test_an_image_without_a_usable_vector_is_refused_by_whatever_asks_for_it(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    """Its scores would be no numbers, and its order any; it would be kept for others, too."""
    inline_worker.rebuild()

    def embed(images: Sequence[Image.Image]) -> np.ndarray:
        vectors = inline_worker.toy.embed_images(list(images))
        for vector, image in zip(vectors, images, strict=True):
            if broken or image.getpixel((0, 0)) != (128, 128, 128):
                vector[:] = np.nan
        return vectors

    resources = inline_worker.resources
    resources.batcher = Batcher(embed, 8)
    kind, sentence = (SetupError, "gray square") if broken else (BadImage, "no usable vector")
    for ask in (
        lambda: query_image(inline_worker, jpeg("red"), 3),
        lambda: query.image_vector(resources, jpeg("red")),
        lambda: classify_image(resources, jpeg("red")),
    ):
        with pytest.raises(kind, match=sentence):
            ask()
    resources.batcher = Batcher(lambda images: inline_worker.toy.embed_images(list(images)), 8)
    assert query_image(inline_worker, jpeg("red"), 3)["matches"]


def test_a_product_finds_itself_and_the_answer_has_the_shape_of_the_contract(
    inline_worker: InlineWorker, asked: list[int]
) -> None:
    inline_worker.rebuild()
    answer = query_image(inline_worker, product(inline_worker), 3)
    assert set(answer) == {"query_id", "index_version", "matches"}
    assert answer["index_version"] == "v0001"
    assert [match["rank"] for match in answer["matches"]] == [1, 2, 3]
    best = answer["matches"][0]
    assert set(best) == {"rank", "product_id", "filename", "score", "distance"}
    assert (best["filename"], best["product_id"]) == ("kind0/04.png", "kind0/04")
    scores = [match["score"] for match in answer["matches"]]
    assert scores == sorted(scores, reverse=True)
    assert all(abs(m["score"] + m["distance"] - 1) < 1e-6 for m in answer["matches"])


def test_a_picture_of_the_index_needs_no_model(
    inline_worker: InlineWorker, asked: list[int]
) -> None:
    inline_worker.rebuild()
    query_image(inline_worker, product(inline_worker), 3)
    assert asked == []


def test_a_new_picture_is_embedded_once_and_its_vector_and_answer_are_kept(
    inline_worker: InlineWorker, asked: list[int]
) -> None:
    inline_worker.rebuild()
    first = query_image(inline_worker, jpeg("red"), 3)
    assert query_image(inline_worker, jpeg("red"), 3) == first
    assert asked == [1]
    assert (
        len(query_image(inline_worker, jpeg("red"), 4)["matches"]) == 4
    )  # another answer, the same vector
    assert asked == [1]
    assert any(digest == sha256(jpeg("red")) for _, digest in inline_worker.memory.vectors)


def test_a_cached_answer_of_another_ranking_code_is_not_served(
    inline_worker: InlineWorker, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    inline_worker.rebuild()
    query_image(inline_worker, jpeg("red"), 3)
    ranked = []
    monkeypatch.setattr(
        "workers.query.recommend", lambda *args: ranked.append(1) or recommend(*args)
    )
    query_image(inline_worker, jpeg("red"), 3)
    assert ranked == []
    monkeypatch.setattr("workers.query.RANKING_VERSION", VERSION + 1)
    query_image(inline_worker, jpeg("red"), 3)
    assert ranked == [1]


def test_a_question_that_comes_while_the_model_loads_waits_for_it_and_is_answered(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    inline_worker.rebuild()
    loading, loaded = threading.Event(), threading.Event()

    def load(_: Settings) -> Any:
        loading.set()
        assert loaded.wait(20)
        return inline_worker.toy

    monkeypatch.setattr("workers.resources.load_clip", load)
    inline_worker.resources = Resources(
        inline_worker.resources.settings, inline_worker, cache=inline_worker.memory
    )
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(query_image, inline_worker, jpeg("red"), 3)
        assert loading.wait(20)
        assert not answer.done()
        loaded.set()
        assert len(answer.result(20)["matches"]) == 3


def test_without_background_removal_pictures_are_made_ready_side_by_side(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=20)

    def prepare(image: Image.Image, *_: object) -> PreparedImage:
        both.wait()  # breaks where one waits for the other
        return PreparedImage(image)

    monkeypatch.setattr("workers.resources.prepare", prepare)
    ready = inline_worker.resources.query_prepare
    with ThreadPoolExecutor(2) as pool:
        assert len(list(pool.map(ready, [Image.new("RGB", (9, 9))] * 2))) == 2


def test_several_images_of_one_product_are_averaged(
    inline_worker: InlineWorker, asked: list[int]
) -> None:
    inline_worker.rebuild()
    first, second = product(inline_worker), product(inline_worker, "kind1/07.png")
    answer = query_image(inline_worker, [first, second], 20)
    mean = sum(inline_worker.resources.versions.current().vectors[[4 // 2, 10 + 7 // 2]])
    scores = {match["product_id"]: match["score"] for match in answer["matches"]}
    length = float(np.linalg.norm(mean))
    assert scores["kind0/04"] == pytest.approx(scores["kind1/07"], abs=1e-5)
    assert scores["kind0/04"] == pytest.approx((1 + (length**2 / 2 - 1)) / length, abs=1e-4)
    again = query_image(inline_worker, [second, first], 20)
    assert again["matches"] == answer["matches"]
    assert (
        query_image(inline_worker, [first], 3)["matches"]
        == query_image(inline_worker, first, 3)["matches"]
    )


@pytest.mark.parametrize(
    ("images", "options", "sentence"),
    [
        (9, {}, "at most 8 images"),
        (2, {"box": [0, 0, 0.5, 0.5]}, "--box x,y,width,height is a part of one image"),
        (2, {"product": "kind0/04"}, "not with both"),
        (1, {"box": "auto"}, "--box auto needs background removal"),
        (1, {"box": "car"}, "Invalid --box 'car'"),
        (1, {"collapse": "everything"}, "Invalid --collapse 'everything'"),
    ],
)
def test_images_and_options_that_do_not_go_together_are_refused(
    inline_worker: InlineWorker, images: int, options: dict[str, Any], sentence: str
) -> None:
    inline_worker.rebuild()
    with pytest.raises(WrongUse, match=sentence):
        query_image(inline_worker, [product(inline_worker)] * images, 3, options)


def test_images_of_a_message_that_are_none_are_refused(inline_worker: InlineWorker) -> None:
    inline_worker.rebuild()
    for images in (["text"], [b"", product(inline_worker)], [None]):
        with pytest.raises((WrongUse, BadImage)):
            query_image(inline_worker, images, 3)


def test_an_automatic_box_holds_the_largest_object_alone(inline_worker: InlineWorker) -> None:
    inline_worker.start_again(use_bg_removal=True, preprocess_padding=0.0)
    image = Image.new("RGB", (100, 60), "white")
    image.paste("red", (10, 10, 50, 50))
    image.paste("blue", (80, 20, 90, 30))
    mask = image.convert("L").point(lambda value: 0 if value == 255 else 255)
    inline_worker.resources.remover = lambda image: mask
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    seen = prepare_image(inline_worker.resources, buffer.getvalue(), "auto").image
    assert (np.asarray(seen) == (255, 0, 0)).all()
    both = np.asarray(prepare_image(inline_worker.resources, buffer.getvalue(), None).image)
    assert (both == (0, 0, 255)).all(axis=2).any()


def test_an_automatic_box_without_an_object_is_a_sentence(inline_worker: InlineWorker) -> None:
    inline_worker.start_again(use_bg_removal=True)
    inline_worker.resources.remover = lambda image: Image.new("L", image.size, 0)
    with pytest.raises(BadImage, match="found no object: background removal kept almost nothing"):
        prepare_image(inline_worker.resources, jpeg("red"), "auto")


def test_a_cached_answer_does_not_outlive_the_version_that_gave_it(
    inline_worker: InlineWorker, asked: list[int]
) -> None:
    inline_worker.rebuild()
    assert (
        query_image(inline_worker, product(inline_worker), 1)["matches"][0]["filename"]
        == "kind0/04.png"
    )
    (inline_worker.toy.root / "kind0/04.png").rename(inline_worker.toy.root / "renamed.png")
    inline_worker.rebuild()
    answer = query_image(inline_worker, product(inline_worker, "renamed.png"), 1)
    assert (answer["index_version"], answer["matches"][0]["filename"]) == ("v0002", "renamed.png")


def test_two_shops_that_share_a_redis_never_get_each_other_s_answers(
    inline_worker: InlineWorker, asked: list[int]
) -> None:
    """Both published a v0001 with the same model, and the cache holds the other's answer."""
    inline_worker.rebuild()
    image = product(inline_worker)
    assert query_image(inline_worker, image, 1)["matches"][0]["filename"] == "kind0/04.png"

    (inline_worker.toy.root / "kind0/04.png").rename(inline_worker.toy.root / "other-name.png")
    folder = inline_worker.toy.root.parent
    inline_worker.start_again(
        data_dir=folder / "other-data", database_url=f"sqlite:///{folder}/other.db"
    )
    inline_worker.toy.settings = inline_worker.resources.settings
    inline_worker.toy.jobs, inline_worker.toy.versions = (
        inline_worker.resources.jobs,
        inline_worker.resources.versions,
    )
    inline_worker.rebuild()
    answer = query_image(inline_worker, image, 1)
    assert answer["index_version"] == "v0001"
    assert answer["matches"][0]["filename"] == "other-name.png"


def test_without_an_index_the_answer_is_the_sentence_that_says_what_to_do(
    inline_worker: InlineWorker,
) -> None:
    with pytest.raises(IndexMissing, match="Rebuild index first using 'enqueue-rebuild'"):
        query_image(inline_worker, jpeg("red"), 3)


def test_a_worker_of_another_model_compares_nothing(inline_worker: InlineWorker) -> None:
    inline_worker.rebuild()
    inline_worker.start_again(preprocess_size=(64, 64))
    with pytest.raises(FingerprintMismatch, match="64x64"):
        query_image(inline_worker, product(inline_worker), 3)


def test_the_worker_checks_again_what_the_command_has_checked(inline_worker: InlineWorker) -> None:
    """A message may come from anybody who reaches Redis."""
    inline_worker.rebuild()
    with pytest.raises(BadImage, match="not an image of a supported format"):
        query_image(inline_worker, b"no image", 3)
    for top_k in (0, -1, 1001):
        with pytest.raises(WrongUse, match="--top-k"):
            query_image(inline_worker, product(inline_worker), top_k)
    inline_worker.start_again(max_image_bytes=1024)
    with pytest.raises(BadImage, match="MAX_IMAGE_BYTES"):
        query_image(inline_worker, jpeg("red") + b"\0" * 2000, 3)


def test_more_matches_than_products_are_all_products(
    inline_worker: InlineWorker, asked: list[int]
) -> None:
    inline_worker.rebuild()
    assert len(query_image(inline_worker, product(inline_worker), 1000)["matches"]) == 20


def test_pictures_are_small_jpegs_of_the_products_that_the_version_names(
    inline_worker: InlineWorker,
) -> None:
    inline_worker.rebuild()
    found = thumbnails(inline_worker.resources, "v0001", ["kind0/04.png", "kind1/05.png"])
    assert set(found) == {"kind0/04.png", "kind1/05.png"}
    with Image.open(io.BytesIO(base64.b64decode(found["kind0/04.png"]))) as image:
        assert image.format == "JPEG"
        assert max(image.size) <= 256


def test_pictures_of_anything_else_are_left_out(inline_worker: InlineWorker) -> None:
    secret = inline_worker.toy.root.parent / "secret.png"
    inline_worker.toy.draw("later.png", seed=5)
    (inline_worker.toy.root / "later.png").rename(secret)
    inline_worker.rebuild()
    inline_worker.toy.draw("unindexed.png", seed=6)
    (inline_worker.toy.root / "kind0/00.png").unlink()  # gone
    (inline_worker.toy.root / "kind0/02.png").unlink()  # now a link that leads out
    (inline_worker.toy.root / "kind0/02.png").symlink_to(secret)
    (inline_worker.toy.root / "kind0/06.png").write_bytes(b"no image any more")
    names = ["../secret.png", str(secret), "unindexed.png", "kind0/04.png"]
    names += ["kind0/00.png", "kind0/02.png", "kind0/06.png"]
    assert set(thumbnails(inline_worker.resources, "v0001", names)) == {"kind0/04.png"}
    with pytest.raises(WrongUse, match="no index version"):
        thumbnails(inline_worker.resources, "../../etc", names)
    assert (
        len(
            thumbnails(
                inline_worker.resources,
                "v0001",
                [*("x" for _ in range(MAX_THUMBNAILS)), "kind0/04.png"],
            )
        )
        == 0
    )


TRICKS = (
    "..",
    "../..",
    "/",
    "kind0/../../secret.png",
    "kind0\0.png",
    "\0",
    "a" * 300,
    "👟.png",
    "",
)


@pytest.mark.parametrize("name", TRICKS)
def test_no_name_in_a_message_opens_anything_but_an_indexed_picture(
    inline_worker: InlineWorker, name: str
) -> None:
    inline_worker.rebuild()
    assert thumbnails(inline_worker.resources, "v0001", [name]) == {}
    with pytest.raises(WrongUse, match="no index version"):
        thumbnails(inline_worker.resources, name, ["kind0/04.png"])
    with pytest.raises(WrongUse):
        query_image(inline_worker, b"", 3, {"product": name})


def test_pictures_of_a_folder_outside_of_this_worker_s_roots_are_refused(
    inline_worker: InlineWorker,
) -> None:
    inline_worker.rebuild()
    inline_worker.start_again(image_roots="/somewhere/else")
    with pytest.raises(WrongUse, match="outside of IMAGE_ROOTS"):
        thumbnails(inline_worker.resources, "v0001", ["kind0/04.png"])


def test_a_text_or_a_product_asks_without_a_picture(
    inline_worker: InlineWorker, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    inline_worker.rebuild()
    vector = np.array(inline_worker.resources.versions.current().vectors[3])
    texts: list[str] = []

    def embed_texts(words: Sequence[str]) -> np.ndarray:
        texts.extend(words)
        return np.array([vector for _ in words]).reshape(-1, len(vector))

    monkeypatch.setattr(inline_worker.toy, "embed_texts", embed_texts, raising=False)
    by_text = query_image(inline_worker, b"", 2, {"text": "what the fourth looks like"})
    fourth = inline_worker.resources.versions.current().paths[3]
    assert by_text["matches"][0]["filename"] == fourth
    by_product = query_image(inline_worker, b"", 2, {"product": fourth.removesuffix(".png")})
    assert fourth not in [match["filename"] for match in by_product["matches"]]
    assert asked == []
    query_image(inline_worker, b"", 3, {"text": "what the fourth looks like"})
    assert texts == ["what the fourth looks like"]  # its vector is kept
    with pytest.raises(WrongUse, match="Name an image"):
        query_image(inline_worker, b"", 3)


def test_a_new_catalogue_is_seen_within_a_second_and_ends_cached_answers(
    inline_worker: InlineWorker, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store.refreshing.LOOK_EVERY_S", 0.0)
    inline_worker.rebuild()
    first = query_image(inline_worker, product(inline_worker), 1)
    assert "product" not in first["matches"][0]
    import_rows(
        inline_worker.resources.products,
        [{"product_id": "kind0/04", "price": 5}, {"product_id": "kind0", "price": 9}],
    )
    second = query_image(inline_worker, product(inline_worker), 20)
    assert second["matches"][0]["product"] == {"price": 5}
    # kind0 is now a product of several images, and one match.
    names = [match["product_id"] for match in second["matches"]]
    assert sorted(names)[:2] == ["kind0", "kind0/04"]
    assert len(names) == 2 + 10
    cheap = query_image(inline_worker, product(inline_worker), 20, {"where": ["price<6"]})
    assert [match["product_id"] for match in cheap["matches"]] == ["kind0/04"]


def test_the_last_catalogue_serves_while_the_database_is_away(
    inline_worker: InlineWorker, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store.refreshing.LOOK_EVERY_S", 0.0)
    inline_worker.rebuild()
    import_rows(inline_worker.resources.products, [{"product_id": "kind0/04", "price": 5}])
    assert query_image(inline_worker, product(inline_worker), 1)["matches"][0]["product"] == {
        "price": 5
    }

    def away(name: str) -> int:
        raise ServerUnavailable("The database does not answer.")

    monkeypatch.setattr(inline_worker.resources.database, "revision", away)
    assert query_image(inline_worker, product(inline_worker), 1)["matches"][0]["product"] == {
        "price": 5
    }


def test_an_answered_query_is_logged_with_what_it_showed(
    inline_worker: InlineWorker, asked: list[int]
) -> None:
    inline_worker.rebuild()
    answers = [
        query_image(inline_worker, product(inline_worker), 3, query_id=f"query-{n}")
        for n in range(2)  # the second one comes from the cache
    ]
    inline_worker.resources.query_log.flush()
    logged = inline_worker.resources.feedback_log.queries()
    assert [one.query_id for one in logged] == ["query-0", "query-1"]
    for one, answer in zip(logged, answers, strict=True):
        assert [name for name, _ in one.matches] == [m["product_id"] for m in answer["matches"]]
        assert one.index_version == "v0001"
        np.testing.assert_allclose(np.linalg.norm(one.vector), 1, rtol=1e-5)
    assert asked == []


def test_what_was_imported_or_said_a_moment_ago_counts_for_who_asks_by_it(
    inline_worker: InlineWorker, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store.refreshing.LOOK_EVERY_S", 3600.0)
    inline_worker.rebuild()
    import_rows(inline_worker.resources.products, [{"product_id": "kind0/04", "price": 5}])
    plain = query_image(inline_worker, product(inline_worker), 5, query_id="q")
    assert (
        query_image(inline_worker, product(inline_worker), 5, {"feedback": True})["matches"]
        == plain["matches"]
    )
    import_rows(inline_worker.resources.products, [{"product_id": "kind0/04", "price": 7}])
    assert (
        query_image(inline_worker, product(inline_worker), 5, {"where": ["price<6"]})["matches"]
        == []
    )
    inline_worker.resources.query_log.flush()
    logged = inline_worker.resources.feedback_log.query("q")
    assert logged is not None
    best = plain["matches"][0]["product_id"]
    inline_worker.resources.feedback_log.add(logged, best, "dislike", "ann", 1.0)
    mine = query_image(
        inline_worker, product(inline_worker), 5, {"user": "ann", "feedback": True, "explain": True}
    )
    parts = {match["product_id"]: match["explain"] for match in mine["matches"]}
    assert best not in parts or "disliked" in parts[best] or "personal" in parts[best]


def test_feedback_is_used_only_when_asked_for(
    inline_worker: InlineWorker, asked: list[int]
) -> None:
    inline_worker.rebuild()
    plain = query_image(inline_worker, product(inline_worker), 5, query_id="q")
    inline_worker.resources.query_log.flush()
    logged = inline_worker.resources.feedback_log.query("q")
    assert logged is not None
    best = plain["matches"][0]["product_id"]
    for n in range(30):
        inline_worker.resources.feedback_log.add(logged, best, "dislike", f"user{n}", float(n))
    assert query_image(inline_worker, product(inline_worker), 5)["matches"] == plain["matches"]
    sunk = query_image(
        inline_worker, product(inline_worker), 5, {"feedback": True, "explain": True}
    )["matches"]
    by_id = {match["product_id"]: match for match in sunk}
    assert best not in by_id or by_id[best]["explain"]["disliked"] < 0


class Words:
    """The text side of the toy encoder: any text, some direction."""

    logit_scale = 1.0

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.array([np.random.default_rng(len(text)).normal(size=12) for text in texts])
        rows = rows.reshape(-1, 12)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def head(
    inline_worker: InlineWorker, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Head]:
    """Make a head that is sure of its first class, whatever it sees."""
    monkeypatch.setattr(inline_worker.toy, "embed_texts", Words().embed_texts, raising=False)
    monkeypatch.setattr(inline_worker.toy, "logit_scale", 1.0, raising=False)

    def make(*classes: str) -> Head:
        weight, bias = np.zeros((len(classes), 12), np.float32), np.zeros(len(classes), np.float32)
        bias[0] = 9.0
        mine = inline_worker.resources.fingerprint
        return Head(weight, bias, 1.0, classes, mine.id, mine.summary, 1.0, 9)

    return make


def test_an_image_encoder_alone_classifies_by_heads_and_says_so_without_one(
    inline_worker: InlineWorker, head: Callable[..., Head], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_words(texts: Sequence[str]) -> np.ndarray:
        raise SetupError("This model has no words.")

    monkeypatch.setattr(inline_worker.toy, "embed_texts", no_words, raising=False)
    monkeypatch.setattr(inline_worker.toy, "has_words", False)
    for use_trained in (False, True):
        with pytest.raises(SetupError, match="no words"):
            classify_image(inline_worker.resources, jpeg("red"), use_trained)
    models = inline_worker.resources.settings.models_dir
    save_head(models, CATEGORY, head("shoe", "bag"), b"")
    save_head(models, HeadName.parse("shoe", "color"), head("crimson", "navy"), b"")
    answer = classify_image(inline_worker.resources, jpeg("red"), True)
    assert answer["category"]["label"] == "shoe"
    assert [(a["name"], a["label"]) for a in answer["attributes"]] == [("color", "crimson")]


def test_what_the_model_did_not_read_stands_beside_a_query_s_answer_and_a_cached_one(
    inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    inline_worker.rebuild()
    monkeypatch.setattr(inline_worker.toy, "embed_texts", Words().embed_texts, raising=False)
    told: list[list[str]] = []

    def text_warnings(texts: list[str]) -> list[str]:
        told.append(texts)
        return ["The model does not know the word 'bow' and ignores it."]

    monkeypatch.setattr(inline_worker.toy, "text_warnings", text_warnings)
    options = {"text": "a bow", "without": "laces"}
    first = query_image(inline_worker, b"", 2, options)
    assert first["warnings"] == ["The model does not know the word 'bow' and ignores it."]
    assert query_image(inline_worker, b"", 2, options) == first
    assert told == [["a bow", "laces"]] * 2
    assert "warnings" not in query_image(inline_worker, product(inline_worker), 2)


def test_a_blank_image_is_told_beside_each_answer(
    inline_worker: InlineWorker, head: Callable[..., Head]
) -> None:
    (inline_worker.toy.root / "blank.jpg").write_bytes(jpeg("white", blank=True))
    inline_worker.rebuild()
    for _ in range(2):  # neither a cached answer nor a known vector comes without the warning
        (warning,) = query_image(inline_worker, jpeg("white", blank=True), 2)["warnings"]
        assert warning.startswith("The query's image: the image is blank")
        (warning,) = classify_image(inline_worker.resources, jpeg("white", blank=True))["warnings"]
        assert warning.startswith("The image: the image is blank")


def test_what_the_model_did_not_read_of_the_labels_stands_beside_a_class(
    inline_worker: InlineWorker, head: Callable[..., Head], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline_worker.toy, "text_warnings", lambda texts: ["Too long."])
    for _ in range(2):
        answer = classify_image(inline_worker.resources, jpeg("red"))
        assert answer["warnings"] == ["Labels file: Too long."]


def test_a_head_that_is_trained_while_the_worker_runs_answers_the_next_question(
    inline_worker: InlineWorker, head: Callable[..., Head]
) -> None:
    models = inline_worker.resources.settings.models_dir
    assert "source" not in classify_image(inline_worker.resources, jpeg("red"), True)["category"]
    save_head(models, CATEGORY, head("shoe", "bag"), b"")
    save_head(models, HeadName.parse("shoe", "color"), head("crimson", "navy"), b"")

    def color(*args: bool) -> tuple[str, str]:
        found = classify_image(inline_worker.resources, jpeg("red"), *args)["attributes"]
        (answer,) = (attribute for attribute in found if attribute["name"] == "color")
        return answer["label"], answer["source"]

    assert color(True) == ("crimson", "trained")
    save_head(models, HeadName.parse("shoe", "color"), head("scarlet", "navy"), b"")
    assert color(True) == ("scarlet", "trained")
    assert color()[1] == color(False)[1] == "zero-shot"  # heads answer only who asks for them


def test_a_broken_head_is_the_answer_of_those_who_ask_for_it_and_of_nobody_else(
    inline_worker: InlineWorker, head: Callable[..., Head]
) -> None:
    models = inline_worker.resources.settings.models_dir
    save_head(models, CATEGORY, head("shoe", "bag"), b"")
    (models / "category_head" / "model.pt").write_bytes(b"broken")
    with pytest.raises(HeadBroken, match="imgrec train --category-head"):
        classify_image(inline_worker.resources, jpeg("red"), True)
    assert classify_image(inline_worker.resources, jpeg("red"))["attributes"]


def test_a_head_of_other_features_is_refused_by_the_worker(
    inline_worker: InlineWorker, head: Callable[..., Head]
) -> None:
    save_head(inline_worker.resources.settings.models_dir, CATEGORY, head("shoe", "bag"), b"")
    inline_worker.start_again(preprocess_size=(64, 64))
    with pytest.raises(FingerprintMismatch, match="64x64"):
        classify_image(inline_worker.resources, jpeg("red"), True)
