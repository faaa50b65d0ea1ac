"""Make an image ready for a message to the query workers."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.images.decode import MIN_SIDE, WORK_SIDE, Limits, decode, encode_jpeg

# A message of at most this many bytes carries the file as it is, so that its content hash finds
# cached vectors; a larger one carries the image at the size that workers reduce it to anyway.
MESSAGE_BYTES = 512 * 1024


def message_image(data: bytes, limits: Limits, background: tuple[int, int, int]) -> bytes:
    """Verify an image file; return the bytes to send.

    Raises:
        BadImage: it cannot be used.
    """
    large = len(data) > MESSAGE_BYTES
    side = WORK_SIDE if large else MIN_SIDE  # what is sent as it is needs only the check
    image = decode(data, limits, background, side)
    return encode_jpeg(image) if large else data


def message_images(images: Sequence[bytes]) -> bytes | list[bytes]:
    """Return the images of a query as its message has them: one as before there were several."""
    return images[0] if len(images) == 1 else list(images) or b""
