"""The same picture has the same colors, however its file stores them; a blank one is told."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw

from pipeline.errors import BadImage
from pipeline.images import color
from pipeline.images.decode import BLANK, Limits, decode, decode_with_warnings

LIMITS = Limits(max_pixels=1_000_000, max_bytes=10_000_000)
WHITE = (255, 255, 255)


def fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def profile(colors: dict[str, tuple[float, float, float]], gamma: float, space: bytes) -> bytes:
    """Return a small ICC profile (version 2) of the colors of its primaries."""

    def xyz(value: tuple[float, float, float]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(fixed, value))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + b"\0" * 78
    tags = {"desc": text, "wtpt": xyz((0.9642, 1, 0.8249)), "cprt": b"text\0\0\0\0none\0"}
    tags |= {f"{name}XYZ": xyz(value) for name, value in colors.items()}
    tags |= {f"{name}TRC": curve for name in colors or "k"}
    table, data, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        data += b"\0" * (-len(data) % 4)
        table += name.encode() + struct.pack(">II", start + len(data), len(content))
        data += content
    head = struct.pack(
        ">I4sI4s4s4s", start + len(data), b"test", 0x02400000, b"mntr", space, b"XYZ "
    )
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28
    head += fixed(0.9642) + fixed(1) + fixed(0.8249) + b"\0" * 48
    return head + table + data


PROFILES = {
    "prophoto": profile(
        {"r": (0.79767, 0.28804, 0), "g": (0.13519, 0.71188, 0), "b": (0.03134, 0.00009, 0.82491)},
        1.8,
        b"RGB ",
    ),
    "adobe": profile(
        {
            "r": (0.60974, 0.31111, 0.01947),
            "g": (0.20528, 0.62567, 0.06087),
            "b": (0.14919, 0.06322, 0.74457),
        },
        2.2,
        b"RGB ",
    ),
    "p3": profile(
        {
            "r": (0.51512, 0.2412, -0.00105),
            "g": (0.29198, 0.69225, 0.04189),
            "b": (0.1571, 0.06657, 0.78407),
        },
        2.2,
        b"RGB ",
    ),
}
GRAY = profile({}, 1.0, b"GRAY")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def product() -> Image.Image:
    image = Image.new("RGB", (120, 90), (240, 240, 240))
    drawing = ImageDraw.Draw(image)
    drawing.rectangle((20, 20, 60, 70), fill=(210, 40, 40))
    drawing.rectangle((60, 20, 100, 70), fill=(40, 90, 180))
    return image


def stored(image: Image.Image, icc: bytes) -> Image.Image:
    """Return the image's numbers in the space of a profile."""
    source, target = ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(icc))
    changed = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    assert changed is not None
    return changed


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def difference(image: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(image).astype(int) - np.asarray(other)).max())


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_the_numbers_of_an_embedded_profile_become_srgb(name: str, kind: str) -> None:
    image = stored(product(), PROFILES[name])
    assert difference(image, product()) > 10
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    data = encoded(image, kind, icc_profile=PROFILES[name], **options.get(kind, {}))
    decoded = decode_with_warnings(data, LIMITS, WHITE)
    assert decoded.warnings == ()
    assert difference(decoded.image, product()) <= (25 if kind == "JPEG" else 4)


def test_alpha_survives_a_profile_and_the_background_stays_srgb() -> None:
    image = stored(product(), PROFILES["prophoto"]).convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 10, 90))
    data = encoded(image, "PNG", icc_profile=PROFILES["prophoto"])
    flat = decode(data, LIMITS, (10, 20, 200))
    assert flat.getpixel((5, 50)) == (10, 20, 200)
    assert difference(flat.crop((20, 0, 120, 90)), product().crop((20, 0, 120, 90))) <= 4


def test_a_gray_profile_and_one_of_rgb_on_a_gray_image_are_applied() -> None:
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (20, 1)))
    linear = np.asarray(decode(encoded(ramp, "PNG", icc_profile=GRAY), LIMITS, WHITE))[5, :, 0]
    assert linear[55] > 120  # of linear light, a fifth looks like half
    wide = decode(encoded(ramp, "PNG", icc_profile=PROFILES["prophoto"]), LIMITS, WHITE)
    assert np.asarray(wide)[5, 128, 0] not in (127, 128, 129)


@pytest.mark.parametrize(
    "icc",
    [
        *(b"not a profile", SRGB[:200], SRGB[:300], GRAY, b"x" * 16 + b"Lab " + b"x" * 200),
        *(SRGB[:16] + b"CMYK", SRGB.replace(b"rTRC", b"xTRC"), SRGB.replace(b"mntr", b"link")),
    ],
    ids=["text", "cut", "cut later", "gray", "lab", "cmyk", "without rTRC", "a link"],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_profile_that_cannot_be_used_is_a_warning_and_changes_no_pixel(
    icc: bytes, kind: str
) -> None:
    decoded = decode_with_warnings(encoded(product(), kind, icc_profile=icc), LIMITS, WHITE)
    (warning,) = decoded.warnings
    assert "color profile" in warning
    plain = decode(encoded(product(), kind), LIMITS, WHITE)
    assert difference(decoded.image, plain) == 0


def test_a_profile_of_srgb_changes_nothing_and_is_built_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = encoded(product(), "PNG", icc_profile=SRGB)
    assert difference(decode(data, LIMITS, WHITE), product()) == 0

    def refuse(*args: object) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(ImageCms, "buildTransform", refuse)
    assert difference(decode(data, LIMITS, WHITE), product()) == 0
    assert color._transform(SRGB, "RGB") is None


def gray_tiff(bits: int, white_is_zero: bool, little: bool = True) -> bytes:
    """Return a TIFF of a ramp from black to white; Pillow writes no such file."""
    width, height = 64, 16
    values = np.tile(np.linspace(0, 2**bits - 1, width).round().astype(np.uint32), (height, 1))
    if white_is_zero:
        values = 2**bits - 1 - values
    if bits == 16:
        strip = values.astype("<u2" if little else ">u2").tobytes()
    elif bits == 12:
        pairs = values.reshape(height, -1, 2)
        low = np.stack(
            (
                pairs[..., 0] >> 4,
                (pairs[..., 0] & 15) << 4 | pairs[..., 1] >> 8,
                pairs[..., 1] & 255,
            ),
            -1,
        )
        strip = low.astype(np.uint8).tobytes()
    else:
        strip = values.astype(np.uint8).tobytes()
    order = "<" if little else ">"
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 0 if white_is_zero else 1)]
    tags += [(273, 200), (277, 1), (278, height), (279, len(strip))]
    head = (b"II" if little else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    for tag, value in tags:
        head += struct.pack(f"{order}HHI", tag, 4, 1) + struct.pack(f"{order}I", value)
    return (head + b"\0" * 4).ljust(200, b"\0") + strip


@pytest.mark.parametrize(
    ("bits", "white_is_zero"),
    [(8, False), (8, True), (12, False), (16, False), (16, True)],  # 12 inverted: Pillow refuses
)
def test_gray_tiff_keeps_its_brightness_whichever_end_is_white(
    bits: int, white_is_zero: bool
) -> None:
    row = np.asarray(decode(gray_tiff(bits, white_is_zero), LIMITS, WHITE))[5, :, 0].astype(int)
    assert np.abs(row - np.linspace(0, 255, 64)).max() <= 2


def test_inverted_cmyk_of_photoshop_is_turned() -> None:
    """Pillow writes JPEGs as Adobe does: inverted, with Adobe's marker."""
    data = encoded(product().convert("CMYK"), "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in data
    assert difference(decode(data, LIMITS, WHITE), product()) < 16


def test_a_bmp_whose_alpha_is_zero_everywhere_is_opaque() -> None:
    image = product().convert("RGBA")
    image.putalpha(0)
    data = encoded(image, "BMP")
    assert difference(decode(data, LIMITS, WHITE), product()) == 0


def blank_files() -> dict[str, bytes]:
    transparent = product().convert("RGBA")
    transparent.putalpha(0)
    empty = Image.new("RGBA", (120, 90))
    paper = np.random.default_rng(1).normal(245, 3, (300, 200, 3)).clip(0, 255).astype(np.uint8)
    frames = [product().convert("RGBA")]
    return {
        "white": encoded(Image.new("RGB", (300, 300), "white"), "JPEG"),
        "black": encoded(Image.new("L", (300, 300)), "PNG"),
        "transparent": encoded(transparent, "PNG"),
        "first frame": encoded(empty, "GIF", save_all=True, append_images=frames, disposal=2),
        "paper": encoded(Image.fromarray(paper), "JPEG"),
        "16 bit": encoded(Image.fromarray(np.full((40, 40), 40_000, np.uint16)), "PNG"),
    }


@pytest.mark.parametrize("kind", blank_files())
def test_a_blank_image_is_indexed_with_a_warning(kind: str) -> None:
    assert decode_with_warnings(blank_files()[kind], LIMITS, WHITE).warnings == (BLANK,)


@pytest.mark.parametrize("shade", [225, 238])
def test_a_white_product_on_white_ground_is_not_blank(shade: int) -> None:
    image = Image.new("RGB", (400, 400), (255, 255, 255))
    ImageDraw.Draw(image).ellipse((150, 100, 250, 300), fill=(shade, shade, shade))
    assert decode_with_warnings(encoded(image, "JPEG"), LIMITS, WHITE).warnings == ()


def planar_tiff(bits: int) -> bytes:
    """Return a TIFF of a red and a green half whose colors lie apart."""
    pixels = np.zeros((3, 16, 32), "<u2" if bits == 16 else "u1")
    pixels[0, :, :16] = pixels[1, :, 16:] = 2**bits - 1
    plane = pixels[0].nbytes
    start = 8 + 2 + 12 * 9 + 4  # of what does not fit into an entry
    entries = [
        *((256, 1, 32), (257, 1, 16), (258, 3, start), (259, 1, 1), (262, 1, 2)),
        *((273, 3, start + 6), (277, 1, 3), (279, 3, start + 18), (284, 1, 2)),
    ]
    kinds = {273: 4, 279: 4}  # 4-byte numbers; the others have 2
    ifd = b"".join(struct.pack("<HHII", tag, kinds.get(tag, 3), n, v) for tag, n, v in entries)
    data = start + 30
    blobs = struct.pack("<3H", *[bits] * 3)
    blobs += struct.pack("<3I", *(data + plane * n for n in range(3)))
    blobs += struct.pack("<3I", *[plane] * 3)
    return struct.pack("<2sHIH", b"II", 42, 8, 9) + ifd + bytes(4) + blobs + pixels.tobytes()


def test_colors_that_lie_apart_are_read_or_refused_and_never_mixed_up() -> None:
    pixels = np.asarray(decode(planar_tiff(8), LIMITS, WHITE))
    assert pixels[8, [3, 28]].tolist() == [[255, 0, 0], [0, 255, 0]]
    with pytest.raises(BadImage, match="16 bits in separate planes"):  # Pillow would read 8 bits
        decode(planar_tiff(16), LIMITS, WHITE)
