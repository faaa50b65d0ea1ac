"""Any picture becomes upright 8-bit RGB; anything else becomes one clear sentence."""

from __future__ import annotations

import errno
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.embed.clip import load_clip
from pipeline.errors import BadImage
from pipeline.images.decode import EXIF_ORIENTATION, Limits, decode, read_image
from pipeline.images.failure import Failure
from pipeline.images.find import ImageFile, confined, find_images
from pipeline.preprocess.prepare import Preprocessing, prepare
from pipeline.settings import Settings
from tools.drawing import Product, draw

LIMITS = Limits(max_pixels=1_000_000, max_bytes=1_000_000)
BLUE = (10, 20, 200)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def two_halves(mode: str = "RGB") -> Image.Image:
    """Red on the left, green on the right, 60x40."""
    image = Image.new("RGB", (60, 40), (220, 10, 10))
    image.paste((10, 220, 10), (30, 0, 60, 40))
    return image.quantize(8) if mode == "P" else image.convert(mode)


def noise() -> Image.Image:
    """A picture that no codec makes small, so that half of its file is half of its pixels."""
    rng = np.random.default_rng(3)
    return Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))


def corner(image: Image.Image, left: bool) -> np.ndarray:
    return np.asarray(image)[20, 5 if left else -5].astype(int)


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {"quality": 95}),
        ("JPEG", "CMYK", {"quality": 95}),
        ("PNG", "RGB", {}),
        ("PNG", "P", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("BMP", "RGB", {}),
        ("TIFF", "RGB", {}),
        ("TIFF", "CMYK", {}),
        ("GIF", "P", {}),
    ],
)
def test_every_format_and_mode_becomes_the_same_rgb(
    kind: str, mode: str, options: dict[str, object]
) -> None:
    image = decode(encoded(two_halves(mode), kind, **options), LIMITS, BLUE)
    assert image.mode == "RGB"
    assert image.size == (60, 40)
    assert np.abs(corner(image, left=True) - (220, 10, 10)).max() < 30
    assert np.abs(corner(image, left=False) - (10, 220, 10)).max() < 30


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_gray_keeps_its_brightness(kind: str) -> None:
    ramp = np.linspace(0, 65_535, 64, dtype=np.uint16)
    image = decode(encoded(Image.fromarray(np.tile(ramp, (32, 1))), kind), LIMITS, BLUE)
    row = np.asarray(image)[0, :, 0].astype(int)
    assert np.abs(row - ramp / 257).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_is_laid_on_the_background_colour(mode: str) -> None:
    image = Image.new("RGBA", (20, 20), (255, 255, 255, 0))
    image.paste((200, 200, 200, 255), (10, 0, 20, 20))
    image = image.quantize(16) if mode == "P" else image.convert(mode)
    flat = decode(encoded(image, "PNG"), LIMITS, BLUE)
    assert tuple(flat.getpixel((3, 10))) == BLUE
    assert np.abs(np.array(flat.getpixel((15, 10))) - 200).max() <= 2


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.abs(np.array(decode(data, LIMITS, BLUE).getpixel((10, 10))) - (255, 0, 0)).max() < 5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_honoured(orientation: int) -> None:
    upright = two_halves()
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode(encoded(stored, "JPEG", quality=95, exif=exif), LIMITS, BLUE)
    assert image.size == (60, 40)
    assert np.abs(corner(image, left=True) - (220, 10, 10)).max() < 30


def test_a_large_picture_is_reduced_to_the_working_size() -> None:
    image = decode(encoded(Image.new("RGB", (1400, 700)), "PNG"), LIMITS, BLUE)
    assert image.size == (1024, 512)


@pytest.mark.parametrize("width", [1, 7, 9, 49, 97, 104])
@pytest.mark.parametrize("upright", [True, False])
def test_a_long_strip_that_is_decoded_at_a_smaller_scale_is_whole(
    width: int, upright: bool
) -> None:
    """A chain or a belt: no black rows, and no half of it."""
    limits = Limits(max_pixels=10_000_000, max_bytes=1_000_000, min_side=1)
    size = (width, 8300) if upright else (8300, width)
    image = decode(encoded(Image.new("RGB", size, (220, 10, 10)), "JPEG"), limits, BLUE, 448)
    assert max(image.size) >= 448
    assert np.asarray(image)[..., 0].min() > 200


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises any number of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"hello", "not an image of a supported format"),
        (encoded(Image.new("RGB", (1, 1)), "PNG"), "1x1"),
        (encoded(noise(), "JPEG")[:2000], "cut off"),
        (encoded(noise(), "JPEG")[:100], "cut off"),
        (encoded(noise(), "PNG")[:5000], "cut off"),
        (bomb(20_000, 20_000), "400,000,000 pixels, more than MAX_IMAGE_PIXELS"),
        (encoded(two_halves(), "PPM"), "not an image of a supported format"),
    ],
)
def test_what_is_no_usable_picture_gets_a_clear_sentence(data: bytes, words: str) -> None:
    with pytest.raises(BadImage, match=words):
        decode(data, LIMITS, BLUE)


def test_empty_large_and_missing_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "large.jpg").write_bytes(b"x" * 1_000_001)
    for name, words in (
        ("empty.jpg", "0 bytes"),
        ("large.jpg", "1,000,001 bytes, more than MAX_IMAGE_BYTES"),
        ("none.jpg", "No such file"),
    ):
        with pytest.raises(BadImage, match=words):
            read_image(tmp_path / name, LIMITS)


def test_paths_ascend_so_that_a_listing_and_a_version_can_be_read_side_by_side(
    tmp_path: Path,
) -> None:
    names = ["a.jpg", "a-b.jpg", "a/b.jpg", "a/z/1.jpg", "a-/1.jpg", "a0.jpg", "b/1.jpg", "Z.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = [item.path for item in find_images(tmp_path) if isinstance(item, ImageFile)]
    assert found == sorted(names)


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.EIO, BadImage),
        (errno.EACCES, BadImage),
        (errno.ESTALE, OSError),
        (errno.ECONNRESET, OSError),
        (errno.ENXIO, OSError),
        (errno.EMFILE, OSError),
    ],
)
def test_no_image_is_blamed_for_a_server_that_is_away_or_a_process_without_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    def fail(self: Path, mode: str) -> None:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(error, match=os.strerror(number)):
        read_image(tmp_path / "a.jpg", LIMITS)


def test_no_image_is_blamed_where_a_whole_disk_fails_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a soft mount of NFS does while its server is away."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "open", fail)
    monkeypatch.setattr(os, "statvfs", fail)
    with pytest.raises(OSError, match="Input/output error") as raised:
        read_image(tmp_path / "a.jpg", LIMITS)
    assert raised.value.errno == errno.EIO


def test_folders_are_walked_in_order_and_strangers_left_out(tmp_path: Path) -> None:
    for name in (
        "b/2.JPG",
        "b/1.png",
        "a/x/3.webp",
        "c.tiff",
        ".hidden/4.jpg",
        "b/.5.jpg",
        "n.txt",
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    (tmp_path / "a" / "circle").symlink_to(tmp_path)  # a failure: it would never end
    found = [item.path for item in find_images(tmp_path) if isinstance(item, ImageFile)]
    assert sorted(found) == ["a/x/3.webp", "b/1.png", "b/2.JPG", "c.tiff"]
    assert found == [item.path for item in find_images(tmp_path) if isinstance(item, ImageFile)]


def test_a_name_that_is_no_utf_8_is_reported_and_the_rest_found(tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(b"x")
    with open(os.fsencode(tmp_path) + b"/bad-\xff.jpg", "wb") as file:
        file.write(b"x")
    bad, good = sorted(find_images(tmp_path), key=lambda item: isinstance(item, ImageFile))
    assert isinstance(bad, Failure)
    assert bad.path == "bad-\\xff.jpg"
    assert "not UTF-8" in bad.reason
    assert isinstance(good, ImageFile)


def test_a_link_or_path_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "products"
    root.mkdir()
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"x")
    (root / "link.jpg").symlink_to(secret)
    for path in ("link.jpg", "../secret.jpg", str(secret)):
        with pytest.raises(BadImage, match="leads out"):
            confined(root, path)


def photo(width: int, height: int) -> Image.Image:
    """A drawn product of any size, with the grain of a camera."""
    rng = np.random.default_rng(width)
    small = draw(Product("shoe", "red", "striped", "casual", 3), 480)
    pixels = np.asarray(small.resize((width, height), Image.Resampling.LANCZOS)).astype(np.int16)
    grain = rng.normal(0, 4, (height, width, 1)).astype(np.int16)
    return Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(2996, 2244), (1803, 2404), (3001, 1999)])
def test_a_large_photo_is_decoded_small_and_stays_the_same_picture_for_the_model(
    size: tuple[int, int], settings: Settings
) -> None:
    """Sizes that are no multiple of 8 are the hard ones: their last block is a part of one."""
    mini = Path(__file__).parents[3] / "models" / "imgrec-mini"
    clip = load_clip(settings.model_copy(update={"embedding_model": str(mini)}))
    spec = Preprocessing((224, 224), 0.0, (255, 255, 255), None)
    data = encoded(photo(*size), "JPEG", quality=90)
    small = decode(data, Limits(50_000_000, 50_000_000), (255, 255, 255), 448)
    assert 448 <= max(small.size) < 900
    whole = Image.open(io.BytesIO(data)).convert("RGB")
    seen = [prepare(image, spec, None).image for image in (whole, small)]
    first, second = clip.embed_images(seen)
    assert float(first @ second) >= 0.999


def test_a_large_photo_that_lies_on_its_side_is_decoded_small_and_turned() -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    data = encoded(photo(2996, 1500), "JPEG", exif=exif)
    turned = decode(data, Limits(50_000_000, 50_000_000), (255, 255, 255), 448)
    assert turned.size == (375, 749)
