"""A cut-out is made once a content and kind; a hit is the very picture, or it is none."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pipeline.embed import embed_images
from pipeline.embed.embed_images import Embedder, build_embedder, embed_shard
from pipeline.images.decode import Limits
from pipeline.images.find import ImageFile
from pipeline.images.source import ImageFolder
from pipeline.preprocess import prepare
from pipeline.preprocess.cutout_cache import PreparedCache
from pipeline.preprocess.prepare import PreparedImage, Preprocessing
from pipeline.settings import Settings

SPEC = Preprocessing((32, 32), 0.1, (255, 255, 255), "toy")
LIMITS = Limits(1_000_000, 1_000_000)
LARGE = 10**9


def picture(seed: int) -> PreparedImage:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return PreparedImage(Image.fromarray(pixels), "half transparent (40%)" if seed % 2 else None)


def name(seed: int) -> str:
    return f"{seed:064x}"


def test_a_kept_picture_comes_back_to_the_pixel_with_its_warning(tmp_path: Path) -> None:
    PreparedCache(tmp_path, SPEC, LIMITS, LARGE).put(name(1), picture(1))
    found = PreparedCache(tmp_path, SPEC, LIMITS, LARGE).get(name(1))
    assert found is not None
    assert found.image.tobytes() == picture(1).image.tobytes()
    assert found.warning == "half transparent (40%)"
    assert PreparedCache(tmp_path, SPEC, LIMITS, LARGE).get(name(2)) is None


@pytest.mark.parametrize(
    ("spec", "limits"),
    [
        (replace(SPEC, size=(32, 64)), LIMITS),
        (replace(SPEC, padding=0.2), LIMITS),
        (replace(SPEC, bg_color=(0, 0, 0)), LIMITS),
        (replace(SPEC, rembg_model="another"), LIMITS),
        (replace(SPEC, rembg_model=None), LIMITS),
        (SPEC, Limits(999, 1_000_000)),
    ],
)
def test_whatever_shapes_a_picture_is_a_part_of_its_name(
    tmp_path: Path, spec: Preprocessing, limits: Limits
) -> None:
    PreparedCache(tmp_path, SPEC, LIMITS, LARGE).put(name(1), picture(1))
    assert PreparedCache(tmp_path, spec, limits, LARGE).get(name(1)) is None


def test_another_version_of_the_preprocessing_finds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PreparedCache(tmp_path, SPEC, LIMITS, LARGE).put(name(1), picture(1))
    monkeypatch.setattr(prepare, "VERSION", prepare.VERSION + 1)
    assert PreparedCache(tmp_path, SPEC, LIMITS, LARGE).get(name(1)) is None


@pytest.mark.parametrize("damage", [b"", b"no picture", None])
def test_a_damaged_file_is_a_miss(tmp_path: Path, damage: bytes | None) -> None:
    cache = PreparedCache(tmp_path, SPEC, LIMITS, LARGE)
    cache.put(name(1), picture(1))
    (file,) = tmp_path.rglob("*.png")
    file.write_bytes(file.read_bytes()[:-40] if damage is None else damage)
    assert cache.get(name(1)) is None


def test_a_file_of_another_size_is_a_miss_and_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = PreparedCache(tmp_path, SPEC, LIMITS, LARGE)
    cache.put(name(1), picture(1))
    (file,) = tmp_path.rglob("*.png")
    Image.new("RGB", (64, 64)).save(file)
    loads = []
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: loads.append(self))
    assert cache.get(name(1)) is None
    assert loads == []


def test_the_folder_stays_within_its_limit_and_keeps_what_was_used_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.preprocess.cutout_cache.LOOK_EVERY", 1)
    limit = 20_000  # five or six of these pictures
    cache = PreparedCache(tmp_path, SPEC, LIMITS, limit)
    for seed in range(12):
        cache.put(name(seed), picture(seed))
        file = next(tmp_path.rglob(f"{name(seed)}.png"))
        os.utime(file, (seed, seed))
        if seed:
            assert cache.get(name(0)) is not None  # used again and again
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.png")) <= limit
    assert cache.get(name(1)) is None


def test_a_folder_that_cannot_be_written_costs_the_cache_and_not_the_rebuild(
    tmp_path: Path,
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    cache = PreparedCache(blocked, SPEC, LIMITS, LARGE)
    cache.put(name(1), picture(1))
    assert cache.get(name(1)) is None


class Colors:
    """An encoder of another model each time: the mean colour, times a number."""

    dim = 3

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def embed_images(self, images: list[Image.Image]) -> np.ndarray:
        return np.stack([np.asarray(each).mean((0, 1)) * self.factor for each in images]).astype(
            np.float32
        )


class Nothing:
    def get(self, digest: str) -> None:
        return None

    def put(self, vectors: object) -> None: ...


def test_a_second_model_cuts_nothing_out_again(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut: list[int] = []

    def load(*_: object, **__: object) -> prepare.Remover:
        def remove(image: Image.Image) -> Image.Image:
            cut.append(1)
            mask = Image.new("L", image.size, 0)
            mask.paste(255, (5, 5, 40, 40))
            return mask

        return remove

    monkeypatch.setattr(embed_images, "load_remover", load)
    images = []
    for seed in range(4):
        file = tmp_path / f"{seed}.png"
        Image.new("RGB", (64, 64), (50 * seed, 10, 10)).save(file)
        images.append(ImageFile(file.name, file.stat().st_size, 0))

    def run(tools: Embedder) -> np.ndarray:
        found = embed_shard(ImageFolder(tmp_path), images, tools, Nothing(), check=lambda _: None)
        return found.vectors.vectors

    removing = settings.model_copy(update={"use_bg_removal": True})
    first = run(build_embedder(removing, Colors(1)))
    assert len(cut) == 4
    second = run(build_embedder(removing, Colors(2)))
    assert len(cut) == 4
    assert np.allclose(second, 2 * first)
    run(build_embedder(removing.model_copy(update={"preprocess_padding": 0.3}), Colors(1)))
    assert len(cut) == 8
    run(build_embedder(removing.model_copy(update={"cutout_cache_bytes": 0}), Colors(1)))
    assert len(cut) == 12
