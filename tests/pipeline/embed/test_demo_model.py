"""The model of the demo finds a product again when its picture was changed on the way."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from cli.demo import MODEL, PRODUCTS
from pipeline.embed.clip import load_clip
from pipeline.images.decode import Limits, decode
from pipeline.preprocess.background_removal import load_remover
from pipeline.preprocess.prepare import Preprocessing, prepare
from pipeline.settings import Settings

ROOT = Path(__file__).parents[3]
EVERY = 4  # each fourth product is asked for; all of them are in the index


def recompressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40)
    return Image.open(buffer).convert("RGB")


def cropped(image: Image.Image) -> Image.Image:
    """Lose 10 % of the width and of the height, more on one side than on the other."""
    width, height = image.size
    return image.crop((width * 3 // 100, height * 6 // 100, width * 93 // 100, height * 96 // 100))


def name_of(file: Path) -> str:
    return file.relative_to(ROOT / PRODUCTS).with_suffix("").as_posix()


CHANGES = {"recompressed": recompressed, "cropped": cropped, "mirrored": ImageOps.mirror}


@pytest.mark.parametrize("remove_background", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_product_is_found_first_under_recompression_a_crop_and_in_the_mirror(
    remove_background: bool,
    demo_vectors: Mapping[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("U2NET_HOME", str(ROOT / "models" / "u2net"))
    settings = Settings(
        _env_file=None,
        embedding_model=str(ROOT / MODEL),
        use_bg_removal=remove_background,
        rembg_model="u2netp",
        data_dir=tmp_path,
    )
    clip, spec = load_clip(settings), Preprocessing.from_settings(settings)
    remover = load_remover(settings, threads=settings.threads) if remove_background else None
    limits = Limits(settings.max_image_pixels, settings.max_image_bytes)

    def embed(images: list[Image.Image]) -> np.ndarray:
        seen = [prepare(image, spec, remover).image for image in images]
        return np.concatenate(
            [clip.embed_images(seen[i : i + 16]) for i in range(0, len(seen), 16)]
        )

    files = sorted((ROOT / PRODUCTS).rglob("*.jpg"))
    assert len(files) >= 200
    asked = range(0, len(files), EVERY)
    images = {n: decode(files[n].read_bytes(), limits, spec.bg_color) for n in asked}
    if remove_background:
        index = embed([decode(file.read_bytes(), limits, spec.bg_color) for file in files])
    else:
        index = np.stack([demo_vectors[name_of(file)] for file in files])
    lost = []
    for name, change in CHANGES.items():
        best = (embed([change(images[row]) for row in asked]) @ index.T).argmax(axis=1)
        lost += [
            (name, files[row].name, files[hit].name)
            for row, hit in zip(asked, best, strict=True)
            if hit != row
        ]
    assert lost == []
