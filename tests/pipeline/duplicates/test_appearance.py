"""What pixels say about two images: the same encoded anew, mirrored, cropped, or another one."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from pipeline.duplicates.appearance import Appearance, appearance, compare
from pipeline.duplicates.pairs import Kind
from pipeline.images.decode import Decoded, Limits, decode_with_warnings

LIMITS = Limits(10**8, 10**8)


def scene(seed: int, width: int = 320, height: int = 240) -> Image.Image:
    """Draw something with shapes of several sizes, as photos have them."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for side, weight in ((4, 1.0), (9, 0.7), (20, 0.4)):
        coarse = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        smooth = coarse.resize((width, height), Image.Resampling.BICUBIC)
        total += weight * np.asarray(smooth, float)
    return Image.fromarray((total / 2.1).astype(np.uint8))


def look(image: Image.Image) -> Appearance:
    return appearance(Decoded(image, (), image.size))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue()))


@pytest.mark.parametrize("seed", range(4))
def test_an_image_encoded_or_resized_anew_is_the_same(seed: int) -> None:
    image = scene(seed)
    for copy in (jpeg(image, 30), image.resize((130, 98)), image.resize((640, 480))):
        assert compare(look(image), look(copy.convert("RGB"))) == Kind.REENCODED


@pytest.mark.parametrize("seed", range(4))
def test_a_mirror_image_is_told(seed: int) -> None:
    image = scene(seed)
    mirrored = jpeg(ImageOps.mirror(image), 80)
    assert compare(look(image), look(mirrored)) == Kind.MIRRORED
    assert compare(look(mirrored), look(image)) == Kind.MIRRORED


@pytest.mark.parametrize("box", [(0, 0, 240, 200), (60, 30, 300, 210), (40, 0, 320, 240)])
@pytest.mark.parametrize("seed", range(3))
def test_a_part_of_an_image_is_told_from_either_side(
    seed: int, box: tuple[int, int, int, int]
) -> None:
    image = scene(seed)
    part = jpeg(image.crop(box).resize((400, 400 * (box[3] - box[1]) // (box[2] - box[0]))), 80)
    assert compare(look(image), look(part)) == Kind.CROPPED
    assert compare(look(part), look(image)) == Kind.CROPPED


@pytest.mark.parametrize("seed", range(8))
def test_other_images_are_not_the_same(seed: int) -> None:
    assert compare(look(scene(seed)), look(scene(seed + 100))) is None


def test_another_color_of_the_same_shape_is_not_the_same() -> None:
    image = scene(1)
    red, green, blue = image.split()
    other = Image.merge("RGB", (red.point(lambda v: v // 3), green, ImageOps.invert(blue)))
    assert compare(look(image), look(other)) is None


def test_a_blurred_image_is_less_sharp_and_size_is_the_file_s() -> None:
    image = scene(2, 1600, 1200)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    decoded = decode_with_warnings(buffer.getvalue(), LIMITS, (255, 255, 255), 256)
    assert decoded.image.width < 1600  # reduced while it was decoded
    known = appearance(decoded)
    assert (known.width, known.height) == (1600, 1200)
    sharp, blurred = look(scene(2)), look(scene(2).filter(ImageFilter.GaussianBlur(4)))
    assert sharp.sharpness > blurred.sharpness


def test_images_without_any_shape_are_compared_by_their_colors() -> None:
    white, black = Image.new("RGB", (64, 64), "white"), Image.new("RGB", (64, 64), "black")
    assert compare(look(white), look(black)) is None
