"""What an image will cost, told from its header; those that hide their cost are refused."""

from __future__ import annotations

import struct

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from pipeline.errors import BadImage, ImageTooLarge

# Memory at the peak of decoding, measured on files of 21 kinds: 3 to 20 bytes a pixel, the most
# with alpha, of which five copies are held. Of a progressive JPEG, libjpeg keeps every coefficient
# besides. Of a tiled TIFF, libtiff unpacks whole tiles, however little of one the image shows.
# A WebP with alpha failed with a room of 21 while it was scaled, and fits into 26.
BYTES_PER_PIXEL = 26
BYTES_PER_PROGRESSIVE_PIXEL = 8
BYTES_PER_TILE_PIXEL = 4
# Gray of 16 bits or more is scaled in float64, thinned out to so many pixels first.
BYTES_PER_SCALED_PIXEL, SCALED_PIXELS = 32, 2048 * 2048
TILE_WIDTH, TILE_LENGTH = 322, 323

# Each scan of a progressive JPEG goes over the whole image, and needs no more than 100 bytes of
# file: 50 MB of them would keep a thread busy for hours. Encoders write 10; libtiff allows 100.
MAX_SCANS = 100
START_OF_SCAN = b"\xff\xda"
MAX_MARKERS = 1000  # before the first scan; a camera writes some twenty
WITHOUT_LENGTH = bytes([0x00, 0x01, *range(0xD0, 0xDA)])


def require_pixels(size: tuple[int, int], max_pixels: int) -> None:
    """Refuse an image of more pixels.

    Raises:
        ImageTooLarge.
    """
    width, height = size
    if width * height > max_pixels:
        raise ImageTooLarge(
            f"the image has {width}x{height} = {width * height:,} pixels, "
            f"more than MAX_IMAGE_PIXELS ({max_pixels:,})"
        )


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Return the size that a WebP declares; None for other files.

    Told before the file is opened: Pillow's decoder then asks for two canvases of that size.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return width, height
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def reject_decompression_bomb(image: Image.Image, data: bytes, max_pixels: int) -> None:
    """Refuse an image, opened but not loaded, that costs far more than its size tells.

    Raises:
        BadImage: its tiles are larger than any image may be, or its scans too many.
    """
    tile = _tile_pixels(image)
    if tile > max_pixels:
        raise BadImage(
            f"the image is stored in tiles of {tile:,} pixels, more than MAX_IMAGE_PIXELS "
            f"({max_pixels:,})"
        )
    if image.format in ("JPEG", "MPO") and not _one_scan(image, data):
        scans = data.count(START_OF_SCAN)
        if scans > MAX_SCANS:
            raise BadImage(
                f"the image has {scans:,} scans, more than {MAX_SCANS}: save it again as a plain "
                "JPEG"
            )


def _one_scan(image: Image.Image, data: bytes) -> bool:
    """Tell whether a JPEG ends with its first scan, as a camera's does: nothing to look through.

    One that is not progressive and whose first scan has all components: libjpeg takes no second.
    """
    if image.info.get("progressive"):
        return False
    place = 2  # behind the start of the image
    for _ in range(MAX_MARKERS):
        if data[place : place + 1] != b"\xff":
            break
        if data[place : place + 2] == START_OF_SCAN:
            return data[place + 4 : place + 5] == bytes([len(image.getbands())])
        if data[place + 1 : place + 2] == b"\xff":  # padding
            place += 1
        elif data[place + 1 : place + 2] in WITHOUT_LENGTH:
            return False  # what follows is no length: one could lead us to another scan
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return False


def decode_cost(image: Image.Image, full_pixels: int) -> int:
    """Return the bytes that loading and converting an image may need.

    Args:
        image: opened; a JPEG reduced by `draft`, where that was possible.
        full_pixels: of the image before that.
    """
    cost = BYTES_PER_PIXEL * image.width * image.height
    cost += BYTES_PER_TILE_PIXEL * _tile_pixels(image)
    if image.mode.startswith(("I", "F")):
        cost += BYTES_PER_SCALED_PIXEL * min(image.width * image.height, SCALED_PIXELS)
    if image.info.get("progressive"):
        cost += BYTES_PER_PROGRESSIVE_PIXEL * full_pixels
    return cost


def _tile_pixels(image: Image.Image) -> int:
    if not isinstance(image, TiffImageFile):
        return 0
    return int(image.tag_v2.get(TILE_WIDTH, 0)) * int(image.tag_v2.get(TILE_LENGTH, 0))
