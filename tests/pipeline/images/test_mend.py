"""A file whose pixels are whole is indexed, whatever is wrong around them; a cut-off one never."""

from __future__ import annotations

import io
import os
import random
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from pipeline.errors import BadImage
from pipeline.images.decode import Limits, decode, decode_with_warnings

LIMITS = Limits(max_pixels=5_000_000, max_bytes=50_000_000)
WHITE = (255, 255, 255)
MIB = 1024**2
LARGE_TEXT = zlib.compress(b"x" * 99 * MIB, 1)  # once: a second with the usual level


def photo(width: int = 203, height: int = 155) -> Image.Image:
    rng = np.random.default_rng(5)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    grain = rng.integers(-9, 10, (height, width, 1))
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


JPEGS = {
    "baseline": encoded(photo(), "JPEG"),
    "gray": encoded(photo().convert("L"), "JPEG"),
    "cmyk": encoded(photo().convert("CMYK"), "JPEG"),
    "progressive": encoded(photo(), "JPEG", progressive=True),
    "4:4:4": encoded(photo(), "JPEG", subsampling=0),
    "restarts": encoded(photo(), "JPEG", restart_marker_rows=1),
    "thumbnail": encoded(photo(), "JPEG", comment=encoded(photo(32, 24), "JPEG")),
    "large": encoded(photo(2000, 1400), "JPEG"),
}


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("tail", [b"", b"\xff", b"\0" * 512, b"\r\n"])
def test_a_jpeg_that_lacks_nothing_but_its_end_marker_is_whole(kind: str, tail: bytes) -> None:
    data = JPEGS[kind]
    assert data.endswith(b"\xff\xd9")
    mended = decode_with_warnings(data[:-2] + tail, LIMITS, WHITE, 448)
    # Pillow itself passes over what may come before the marker.
    assert len(mended.warnings) == 1 or (tail.strip(b"\xff") and not mended.warnings)
    assert all("end marker" in warning for warning in mended.warnings)
    assert mended.image.tobytes() == decode(data, LIMITS, WHITE, 448).tobytes()


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_that_is_cut_off_anywhere_before_is_never_taken_as_whole(kind: str) -> None:
    data = JPEGS[kind]
    rng = random.Random(1)
    # The last byte or two may hold padding bits only: without them, no pixel is missing.
    cuts = {len(data) - 2 - missing for missing in (4, 5, 8, 20, 100)}
    cuts |= {rng.randrange(2, len(data) - 8) for _ in range(25)}
    cuts |= {match.start() for match in re.finditer(rb"\xff[\xd0-\xd7\xda\xc4]", data)}
    for cut in cuts - {0}:
        with pytest.raises(BadImage):
            decode(data[:cut], LIMITS, WHITE, 448)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    """Put chunks behind a PNG's header, which has 33 bytes."""
    return png[:33] + b"".join(chunks) + png[33:]


PNG = encoded(photo(), "PNG")


@pytest.mark.parametrize("size", [2 * MIB, 15 * MIB])
def test_a_png_with_megabytes_of_metadata_is_read_without_a_word(size: int) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "x" * size, zip=True)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for data in (
        encoded(photo(), "PNG", pnginfo=text),
        encoded(photo(), "PNG", icc_profile=srgb + os.urandom(64) * (size // 64)),
    ):
        decoded = decode_with_warnings(data, LIMITS, WHITE)
        assert decoded.warnings == ()
        assert decoded.image.tobytes() == photo().tobytes()


@pytest.mark.parametrize(
    "data",
    [
        with_chunks(PNG, chunk(b"zTXt", b"a\0\0" + LARGE_TEXT)),
        with_chunks(PNG, *[chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 9 * MIB))] * 9),
        with_chunks(PNG, chunk(b"iCCP", b"a\0\0" + LARGE_TEXT)),
        with_chunks(PNG, chunk(b"iCCP", b"a\0\7" + b"an unknown compression")),
        with_chunks(PNG, chunk(b"tEXt", b"a\0b")[:-4] + b"\0\0\0\0"),  # a wrong checksum
        with_chunks(PNG, chunk(b"gAMA", b"")),
        with_chunks(PNG, chunk(b"pHYs", b"1")),
    ],
    ids=["text", "texts", "profile", "compression", "checksum", "gamma", "size"],
)
def test_a_png_with_a_bomb_or_a_fault_in_its_metadata_is_read_without_it(data: bytes) -> None:
    decoded = decode_with_warnings(data, LIMITS, WHITE)
    assert decoded.image.tobytes() == photo().tobytes()
    assert all("metadata" in warning for warning in decoded.warnings)


@pytest.mark.parametrize("cut", [50, 500, -5000, -40])
def test_a_png_with_large_metadata_that_is_cut_off_stays_a_failure(cut: int) -> None:
    text = chunk(b"zTXt", b"a\0\0" + LARGE_TEXT)
    with pytest.raises(BadImage):
        decode(with_chunks(PNG[:cut], text), LIMITS, WHITE)


def test_a_png_without_its_end_chunk_is_whole() -> None:
    assert decode(PNG[:-12], LIMITS, WHITE).tobytes() == photo().tobytes()


def test_no_constant_of_a_library_is_called_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(self: Image.Image) -> None:
        raise ValueError("Decompressed data too large for PngImagePlugin.MAX_TEXT_CHUNK")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", explode)
    with pytest.raises(BadImage) as caught:
        decode(PNG, LIMITS, WHITE)
    assert "MAX_" not in caught.value.reason
