"""Pictures that a hostile or unlucky world makes of good ones; each batch is made by its seed."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

SIDE = 64
SUFFIX = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
MODES: dict[str, tuple[str, ...]] = {
    "JPEG": ("RGB", "L", "CMYK", "progressive", "exif"),
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16", "interlaced"),
    "WEBP": ("RGB", "RGBA", "lossless", "animated"),
    "GIF": ("P", "animated"),
    "BMP": ("RGB", "P", "L"),
    "TIFF": ("RGB", "RGBA", "L", "CMYK", "F", "I;16", "lzw", "deflate", "jpeg"),
}


@dataclass(frozen=True)
class Mutant:
    """A file's bytes; `hopeless` ones can be no picture, the others may still be one."""

    kind: str
    suffix: str
    data: bytes
    hopeless: bool


@cache
def original(form: str, mode: str, number: int) -> bytes:
    """Return a valid file of 64 x 64 pixels."""
    rng = np.random.default_rng(number)
    small = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    options: dict[str, object] = {}
    if mode in ("RGBA", "L", "LA", "P", "1", "CMYK", "F"):
        image = image.convert(mode)
    elif mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 200)
    elif mode == "progressive":
        options = {"progressive": True, "subsampling": 0}
    elif mode == "exif":
        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = 6, "a picture"
        options = {"exif": exif, "dpi": (72, 72)}
    elif mode == "lossless":
        options = {"lossless": True}
    elif mode == "animated":
        options = {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
    elif mode in ("lzw", "deflate", "jpeg"):
        options = {"compression": {"lzw": "tiff_lzw", "deflate": "tiff_deflate"}.get(mode, mode)}
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def mutants(seed: int, count: int) -> Iterator[Mutant]:
    """Yield the mutants of a seed."""
    rng = random.Random(seed)
    forms = [(form, mode) for form, modes in MODES.items() for mode in modes]
    for _ in range(count):
        form, mode = rng.choice(forms)
        data = original(form, mode, rng.randrange(50))
        kind = rng.choices(list(KINDS), [weight for weight, _, _ in KINDS.values()])[0]
        _, hopeless, change = KINDS[kind]
        yield Mutant(f"{form}-{mode}-{kind}", SUFFIX[form], change(rng, form, data), hopeless)


def _flip(rng: random.Random, form: str, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 64))):
        # The header more often than its share: there the fields are.
        place = rng.randrange(min(len(changed), rng.choice((32, 300, len(changed)))))
        changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(rng: random.Random, form: str, data: bytes) -> bytes:
    return data[: rng.randrange(1, len(data))]


def _stub(rng: random.Random, form: str, data: bytes) -> bytes:
    """Less than any format needs to name its size."""
    return data[: rng.randrange(0, 9)]


def _splice(rng: random.Random, form: str, data: bytes) -> bytes:
    """Pieces twice, missing, or in another place."""
    start, end = sorted(rng.randrange(len(data)) for _ in range(2))
    piece, at = data[start:end], rng.randrange(len(data))
    without = data[:start] + data[end:]
    return rng.choice((data[:at] + piece + data[at:], without, without[:at] + piece))


def _header(rng: random.Random, form: str, data: bytes) -> bytes:
    """The beginning of a format, the rest of nothing that could be one."""
    heads = [original(form, modes[0], 0)[:12] for form, modes in MODES.items()]
    return rng.choice(heads) + rng.randbytes(rng.randrange(300))


def _noise(rng: random.Random, form: str, data: bytes) -> bytes:
    return b"\x00" + rng.randbytes(rng.randrange(4096))


def _text(rng: random.Random, form: str, data: bytes) -> bytes:
    texts = (b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7\n", b"<html>")
    return rng.choice((*texts, b"<!---->" * 73))


def _huge(rng: random.Random, form: str, data: bytes) -> bytes:
    """A declared size that no limit allows."""
    return declare(form, data, *rng.choice(((65_500, 65_500), (65_535, 2_000), (9_000, 9_000))))


def _large(rng: random.Random, form: str, data: bytes) -> bytes:
    """A declared size that is allowed, with the pixels of a small one."""
    return declare(form, data, rng.randrange(2_000, 5_000), rng.randrange(2_000, 5_000))


def declare(form: str, data: bytes, width: int, height: int) -> bytes:
    """Write another size into a file's header, checksums and all."""
    changed = bytearray(data)
    if form == "JPEG":
        place = next(
            at for at in range(len(data)) if data[at] == 0xFF and data[at + 1] in (0xC0, 0xC2)
        )
        struct.pack_into(">HH", changed, place + 5, height, width)
    elif form == "PNG":
        struct.pack_into(">II", changed, 16, width, height)
        struct.pack_into(">I", changed, 29, zlib.crc32(bytes(changed[12:29])))
    elif form == "GIF":
        struct.pack_into("<HH", changed, 6, width, height)
    elif form == "BMP":
        struct.pack_into("<ii", changed, 18, width, height)
    elif form == "TIFF":
        (start,) = struct.unpack_from("<I", data, 4)
        (entries,) = struct.unpack_from("<H", data, start)
        for at in range(start + 2, start + 2 + 12 * entries, 12):
            tag = struct.unpack_from("<H", data, at)[0]
            if tag in (256, 257):
                struct.pack_into("<HII", changed, at + 2, 4, 1, width if tag == 256 else height)
    elif data[12:16] == b"VP8X":
        struct.pack_into("<I", changed, 24, width - 1)
        changed[27:30] = struct.pack("<I", height - 1)[:3]
    elif data[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        bits = bits & 0xF0000000 | (height - 1 & 0x3FFF) << 14 | (width - 1 & 0x3FFF)
        struct.pack_into("<I", changed, 21, bits)
    else:
        struct.pack_into("<HH", changed, 26, width & 0x3FFF, height & 0x3FFF)
    return bytes(changed)


Change = Callable[[random.Random, str, bytes], bytes]
# name: share, whether nothing can be left of the picture, how
KINDS: dict[str, tuple[int, bool, Change]] = {
    "flip": (40, False, _flip),
    "cut": (15, False, _cut),
    "splice": (10, False, _splice),
    "stub": (5, True, _stub),
    "header": (8, False, _header),
    "noise": (5, True, _noise),
    "text": (2, True, _text),
    "huge": (10, True, _huge),
    "large": (1, False, _large),
}
