"""One image by its address: asked for only if it changed, checked while it comes."""

from __future__ import annotations

import email.utils
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from pipeline.errors import BadImage
from pipeline.fetch.robots import refused_by
from pipeline.images.decode_cost import require_pixels, webp_size
from pipeline.images.formats import OTHERS, SUFFIX_OF, readable, unsupported
from pipeline.outbound import AddressRefused, AnswerRefused, Client, FetchFailed, Response

RETRIED = (408, 425, 429, 500, 502, 503, 504)
FIRST_LOOK = 512  # bytes; the next look at what came is at twice as many, and so on
# Formats whose size stands in their first bytes.
EARLY = ("JPEG", "PNG", "GIF", "BMP")


class ImageRefused(Exception):
    """An address gives no image that may be used; the next attempt would not, either."""


class TryAgain(Exception):
    """A host does not answer now.

    Attributes:
        answered: it has answered, with a status that asks to wait.
        after_s: the seconds that it asks to wait, if it does.
    """

    def __init__(self, reason: str, *, answered: bool, after_s: float | None = None) -> None:
        super().__init__(reason)
        self.answered = answered
        self.after_s = after_s


@dataclass(frozen=True)
class Downloaded:
    """An image's file; `data` is None where it has not changed since it was fetched."""

    data: bytes | None
    suffix: str = ""
    etag: str = ""
    last_modified: str = ""


def download(
    client: Client,
    url: str,
    *,
    etag: str = "",
    last_modified: str = "",
    max_pixels: int,
    robots: frozenset[str],
) -> Downloaded:
    """Ask for an image.

    Args:
        etag, last_modified: of the file that is there already; empty where there is none.
        robots: the directives that are honoured.

    Raises:
        ImageRefused, TryAgain.
    """
    headers = {"Accept": "image/*"}
    if etag:
        headers["If-None-Match"] = etag
    if last_modified:
        headers["If-Modified-Since"] = last_modified
    body = _ImageBody(max_pixels)
    try:
        response = client.request(url, headers, body)
    except (AddressRefused, AnswerRefused, BadImage) as error:
        raise ImageRefused(_plain(str(error), url)) from error
    except FetchFailed as error:
        raise TryAgain(_plain(str(error), url), answered=False) from error
    directive = refused_by(response.robots, robots)
    if directive:
        raise ImageRefused(f"the site refuses it by X-Robots-Tag: {directive}")
    if response.status == 304 and (etag or last_modified):
        return Downloaded(None, "", etag, last_modified)
    if response.status != 200:
        _raise_for(response)
    try:
        suffix = body.finish()
    except BadImage as error:
        raise ImageRefused(_plain(str(error), url)) from error
    return Downloaded(bytes(body.data), suffix, *validators(response.headers))


def retry_after_s(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Read Retry-After: seconds, or a date (RFC 9110, section 10.2.3)."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        at = email.utils.parsedate_to_datetime(text)
        wait_s = at.timestamp() - (time.time() if now is None else now)
    except (TypeError, ValueError, OverflowError):  # a year of twenty digits
        return None
    return max(0.0, wait_s)


def validators(headers: Mapping[str, str]) -> tuple[str, str]:
    """Return ETag and Last-Modified, or an empty string for one that no database could store."""
    etag, last_modified = (
        text if (text := headers.get(name, "")[:1000]).isprintable() else ""
        for name in ("etag", "last-modified")
    )
    return etag, last_modified


def _raise_for(response: Response) -> None:
    reason = f"status {response.status}"
    if response.status not in RETRIED:
        raise ImageRefused(reason)
    raise TryAgain(reason, answered=True, after_s=retry_after_s(response.headers))


def _plain(sentence: str, url: str) -> str:
    """Return a sentence as the reason of a failure, which names the address by itself."""
    return sentence.removesuffix(".").replace(f"'{url.partition('?')[0][:200]}'", "the address")


class _ImageBody:
    """Takes the bytes of an image, and ends the request where they are none or too many pixels."""

    def __init__(self, max_pixels: int) -> None:
        self.data = bytearray()
        self._max_pixels = max_pixels
        self._next_look = FIRST_LOOK
        self._measured = False

    def begin(self) -> None:
        self.data.clear()
        self._next_look, self._measured = FIRST_LOOK, False

    def write(self, piece: bytes) -> None:
        self.data += piece
        if not self._measured and len(self.data) >= self._next_look:
            self._next_look = 2 * len(self.data)
            self._look()

    def finish(self) -> str:
        """Return the suffix of the whole file by its content.

        Raises:
            BadImage: it is none that can be read, or has too many pixels.
        """
        data = bytes(self.data)
        if not data:
            raise BadImage("the answer is empty (0 bytes)", "fetch")
        if (size := webp_size(data)) is not None:
            require_pixels(size, self._max_pixels)
        try:
            with Image.open(io.BytesIO(data), formats=readable()) as image:
                require_pixels(image.size, self._max_pixels)
                return SUFFIX_OF.get(image.format or "", "")
        except BadImage:
            raise
        except Exception as error:  # whatever a broken field does to Pillow's plugins
            raise BadImage(unsupported(data).replace("the file", "the content"), "fetch") from error

    def _look(self) -> None:
        data = bytes(self.data)
        for start, name in OTHERS:
            if start.match(data[:FIRST_LOOK]) and not _is_iso_image(data):
                raise BadImage(f"the content is {name}, not an image", "fetch")
        size = webp_size(data)
        if size is None:
            try:
                with Image.open(io.BytesIO(data), formats=EARLY) as image:
                    size = image.size
            except Exception:
                return  # the header has not come whole, or it stands elsewhere: the end decides
        self._measured = True
        require_pixels(size, self._max_pixels)


def _is_iso_image(data: bytes) -> bool:
    """AVIF and HEIC begin like videos; the end decides about them."""
    return data[4:8] == b"ftyp"
