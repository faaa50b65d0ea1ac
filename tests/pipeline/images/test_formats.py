"""Every format of a phone, a camera or a browser is read; what is not says what would help."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import BadImage
from pipeline.images import formats
from pipeline.images.decode import Limits, decode, decode_with_warnings

LIMITS = Limits(max_pixels=1_000_000, max_bytes=1_000_000)
WHITE = (255, 255, 255)
ROOT = Path(__file__).parents[3]
HEIC = Path(__file__).with_name("two_halves.heic").read_bytes()


def two_halves() -> Image.Image:
    image = Image.new("RGB", (64, 48), (220, 10, 10))
    image.paste((10, 220, 10), (32, 0, 64, 48))
    return image


def encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    two_halves().save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        encoded("AVIF", quality=90),
        encoded("JPEG2000"),
        encoded("JPEG2000", no_jp2=True),
        encoded("DIB"),
        encoded("MPO", quality=90),
        HEIC,
    ],
    ids=["avif", "jp2", "j2k", "dib", "mpo", "heic"],
)
def test_formats_of_phones_and_cameras_are_read_whatever_the_file_is_called(data: bytes) -> None:
    pixels = np.asarray(decode(data, LIMITS, WHITE)).astype(int)
    assert pixels.shape == (48, 64, 3)
    assert np.abs(pixels[20, 5] - (220, 10, 10)).max() < 30
    assert np.abs(pixels[20, -5] - (10, 220, 10)).max() < 30


@pytest.mark.parametrize("data", [encoded("AVIF"), encoded("JPEG2000"), HEIC])
def test_the_pixel_limit_holds_for_new_formats(data: bytes) -> None:
    with pytest.raises(BadImage, match="MAX_IMAGE_PIXELS"):
        decode(data, Limits(max_pixels=1000, max_bytes=1_000_000), WHITE)


@pytest.mark.parametrize("data", [encoded("AVIF"), encoded("JPEG2000"), HEIC])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_half_a_file_of_a_new_format_is_a_bad_image(data: bytes, share: float) -> None:
    with pytest.raises(BadImage):
        decode(data[: int(share * len(data))], LIMITS, WHITE)


def test_without_its_decoder_a_heic_image_names_what_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.images.decode.readable", lambda: ("JPEG", "PNG"))
    monkeypatch.setattr(formats, "readable", lambda: ("JPEG", "PNG"))
    with pytest.raises(BadImage, match="HEIC image: 'pip install pi-heif'"):
        decode(HEIC, LIMITS, WHITE)


@pytest.mark.parametrize(
    "data",
    [
        b"<!---->" * 70 + b"x",
        encoded("JPEG")[:-10] + b"\xff" * 5_000_000,  # a photo from a card, with erased memory
    ],
    ids=["comments", "erased memory"],
)
def test_no_bytes_hold_up_a_process(tmp_path: Path, data: bytes) -> None:
    """The time grows with their number, not with its square or faster."""
    (tmp_path / "image").write_bytes(data)
    code = "import sys; from pathlib import Path; from pipeline.images.decode import *; "
    code += "decode(Path(sys.argv[1]).read_bytes(), Limits(10**6, 10**7), (0, 0, 0))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "image")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "BadImage" in done.stderr or "UnsupportedImage" in done.stderr, done.stderr


@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
def test_a_file_whose_second_half_was_never_written_is_warned_about(kind: str) -> None:
    rng = np.random.default_rng(3)
    noise = Image.fromarray(rng.integers(0, 256, (300, 300, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    noise.save(buffer, kind, quality=90)
    whole = buffer.getvalue()
    assert decode_with_warnings(whole, LIMITS, WHITE).warnings == ()
    half = whole[: len(whole) // 2].ljust(len(whole), b"\0")
    (warning,) = decode_with_warnings(half, LIMITS, WHITE).warnings
    assert "ends in zeros" in warning


def test_gray_with_premultiplied_alpha_is_read() -> None:
    buffer = io.BytesIO()
    Image.new("LA", (40, 40), (60, 255)).save(buffer, "TIFF")
    extra_samples = struct.pack("<HHI", 338, 3, 1)  # a tag with one number: 1 is premultiplied
    data = buffer.getvalue()
    data = data.replace(extra_samples + b"\2\0", extra_samples + b"\1\0")
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "La"
    assert decode(data, LIMITS, WHITE).getpixel((20, 20)) == (60, 60, 60)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\xff\x0a" + b"x" * 99, "a JPEG XL image"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + b"x" * 99, "a JPEG XL image"),
        (b"8BPS\0\1" + b"x" * 99, "a Photoshop file"),
        (b"%PDF-1.7" + b"x" * 99, "a PDF document"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"<!DOCTYPE html><html>404 Not Found</html>", "an HTML page"),
        (b'{"error": "not found"}', "JSON text"),
        (b"\0\0\0\x20ftypisom" + b"x" * 99, "a video"),
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + b"\0" * 99, "HEIC image"),
        (b"PK\x03\x04" + b"x" * 99, "a ZIP archive"),
        (b"\x1f\x8b\x08" + b"x" * 99, "a gzip archive"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\n", "'git lfs pull'"),
        (bytes(5000), "zeros only"),
        (b"II*\0" + struct.pack("<I", 5000) + bytes(99), "the TIFF image cannot be read"),
        (encoded("AVIF")[:200], "an AVIF image that is corrupt"),
        (encoded("WEBP")[:100], "cut off"),
        (b"II*\0" + struct.pack("<I", 16) + b"CR\2\0" + b"x" * 99, "a camera's raw file"),
    ],
)
def test_what_is_not_read_is_called_by_its_name(data: bytes, words: str) -> None:
    with pytest.raises(BadImage, match=words):
        decode(data, LIMITS, WHITE)
