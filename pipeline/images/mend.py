"""Files whose pixels are whole although something around them is not."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from math import ceil

PNG_START = b"\x89PNG\r\n\x1a\n"
# What makes the pixels of a PNG, and how they are turned.
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
# Two ways to go on with a JPEG that ends too early. Where a pixel is missing, they give two images.
FILLERS = (b"\0" * 64, b"\x5a\xa6" * 32)
# Behind the bits of a scan; not a restart. Bytes 0xFF that fill before it count as bits: a search
# for all of them would start anew at each byte of erased memory.
MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
RESTART = re.compile(rb"\xff[\xd0-\xd7]")
SCAN, END, INTERVAL = 0xDA, 0xD9, 0xDD
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # the kinds of JPEG
MAX_SEGMENTS = 2000


def without_metadata(data: bytes) -> bytes | None:
    """Return a PNG with nothing but its pixels; None where there is nothing else."""
    if not data.startswith(PNG_START):
        return None
    pieces, place = [PNG_START], len(PNG_START)
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        kind, end = data[place + 4 : place + 8], place + 12 + length
        if kind in PNG_PIXELS:
            pieces.append(data[place:end])
        place = end
        if kind == b"IEND":
            break
    pixels = b"".join(pieces)
    return pixels if len(pixels) < len(data) else None


def completions(data: bytes) -> tuple[bytes, bytes] | None:
    """Return two complete JPEGs made of one that lacks its end.

    They show the same image only if no pixel is missing. None where some are for sure.
    """
    if not data.startswith(JPEG_START) or not _all_coefficients(data):
        return None
    body = data.rstrip(b"\xff")
    one, other = (body + filler + JPEG_END for filler in FILLERS)
    return one, other


def _all_coefficients(data: bytes) -> bool:
    """Tell whether the scans of a JPEG, the last of them included, carry every coefficient.

    A progressive JPEG sends them in turns (ITU-T T.81, annex G).
    """
    missing: dict[int, bytearray] = {}
    units, interval, scans, restarts = 0, 0, 0, 0
    for marker, head, body in _segments(data):
        if marker in FRAMES:
            missing, units = _frame(head)
        elif marker == INTERVAL and len(head) >= 2:
            (interval,) = struct.unpack_from(">H", head)
        elif marker == SCAN:
            scans += 1
            restarts = len(RESTART.findall(body)) if interval else 0
            if not _receive(missing, head):
                return False
    if not missing or any(any(planes) for planes in missing.values()):
        return False
    # Cut off between two intervals, both completions would show the same. Of several scans, the
    # number of intervals is another one in each.
    return not interval or (scans == 1 and restarts == ceil(units / interval) - 1)


def _frame(head: bytes) -> tuple[dict[int, bytearray], int]:
    """Return the coefficients to come, by component, and the number of coded units."""
    height, width, count = struct.unpack_from(">HHB", head, 1)
    parts = [head[6 + 3 * n : 9 + 3 * n] for n in range(count)]
    across = 8 * max(part[1] >> 4 for part in parts)
    down = 8 * max(part[1] & 15 for part in parts)
    if count == 1:  # one component alone is coded block by block
        across = down = 8
    missing = {part[0]: bytearray(b"\1" * 64) for part in parts}
    return missing, ceil(width / max(1, across)) * ceil(height / max(1, down))


def _receive(missing: dict[int, bytearray], head: bytes) -> bool:
    """Note what a scan brings; False for a broken one."""
    count = head[0]
    first, last, bits = struct.unpack_from("BBB", head, 1 + 2 * count)
    for n in range(count):
        planes = missing.get(head[1 + 2 * n])
        if planes is None or last > 63:
            return False
        planes[first : last + 1] = bytes([bits & 15]) * (last + 1 - first)
    return True


def _segments(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield (marker, content, coded bits behind it) of a JPEG's segments, to its end."""
    place = len(JPEG_START)
    for _ in range(MAX_SEGMENTS):
        if data[place : place + 1] != b"\xff" or len(data) < place + 4:
            return
        marker = data[place + 1]
        if marker == 0xFF:  # padding
            place += 1
            continue
        if marker == END:
            return
        start = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        head, place = data[place + 4 : start], start
        body = b""
        if marker == SCAN:
            following = MARKER.search(data, start)
            place = following.start() if following else len(data)
            body = data[start:place]
        yield marker, head, body
