"""Which image formats are read, how their files are named, and what else a file may be."""

from __future__ import annotations

import io
import re
from functools import lru_cache

# By suffix, in lower case; the content decides about the rest.
SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".pjpeg", ".pjp", ".mpo"),
        *(".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
        *(".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif", ".jxl"),
        *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    }
)
SUFFIX_OF = {  # Pillow's name of a format
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "GIF": ".gif",
    "BMP": ".bmp",
    "DIB": ".bmp",
    "TIFF": ".tif",
    "AVIF": ".avif",
    "HEIF": ".heic",
    "JPEG2000": ".jp2",
}
COMMON = "jpg, png, webp, avif, heic, gif, bmp, tif, jp2"  # for a sentence

ALWAYS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF")
# Brands of ISO media files (ISO/IEC 14496-12), which HEIC, AVIF and videos share.
AVIF_BRANDS = (b"avif", b"avis")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1")

RAW = re.compile(rb"II\*\0.{4}CR", re.DOTALL)
OTHERS = (
    (re.compile(rb"8BPS"), "a Photoshop file"),
    (re.compile(rb"%PDF-"), "a PDF document"),
    (RAW, "a camera's raw file"),
    (re.compile(rb"FUJIFILMCCD-RAW|IIRO|IIU\0"), "a camera's raw file"),
    (
        # A comment ends at its first -->, or the time would double with each that follows.
        re.compile(
            rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--(?:[^-]|-(?!->))*-->\s*)*"
            rb"(?:<!DOCTYPE svg[^>]*>\s*)?<svg\b"
        ),
        "SVG",
    ),
    (re.compile(rb"\s*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE), "an HTML page"),
    (re.compile(rb"\s*[\[{]\s*[\"\]}]"), "JSON text"),
    (re.compile(rb"\x00\x00\x01\x00"), "an icon file"),
    (re.compile(rb"PK\x03\x04"), "a ZIP archive"),
    (re.compile(rb"\x1f\x8b"), "a gzip archive"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "PostScript"),
    (re.compile(rb".{4}ftyp", re.DOTALL), "a video or another ISO media file"),
)


@lru_cache(maxsize=1)
def readable() -> tuple[str, ...]:
    """Return Pillow's names of the formats that this process can read."""
    from PIL import features

    formats = list(ALWAYS)
    if features.check("avif"):
        formats.append("AVIF")
    if features.check("jpg_2000"):
        formats.append("JPEG2000")
    if _heif():
        formats.append("HEIF")
    return tuple(formats)


def suffix_of(data: bytes) -> str:
    """Return the suffix of an image by its content, e.g. .jpg; an empty text for no image."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=readable()) as image:
            return SUFFIX_OF.get(image.format or "", "")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return ""


def _heif() -> bool:
    """Teach Pillow to read HEIC and HEIF, where pi-heif is installed."""
    try:
        from pi_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener(thumbnails=False)
    return True


def _unread(name: str, what: str) -> str:
    """Say why an image of a format that Pillow may know cannot be read."""
    if name in readable():
        return f"the file is {what} that is corrupt or cut off: its content cannot be read"
    return f"the file is {what}, which this Pillow cannot read: update it"


def unsupported(data: bytes) -> str:
    """Say what a file is that cannot be read, and what would help."""
    head = data[:512]
    if head[4:8] == b"ftyp":
        if head[8:12] in AVIF_BRANDS:
            return _unread("AVIF", "an AVIF image")
        if head[8:12] in HEIF_BRANDS:
            if "HEIF" in readable():
                return "the HEIC image is corrupt: its content cannot be read"
            return "the file is a HEIC image: 'pip install pi-heif' makes imgrec read it"
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")):
        return "the file is a JPEG XL image, which imgrec does not read: save it as PNG or JPEG"
    if head.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")):
        return _unread("JPEG2000", "a JPEG 2000 image")
    if head.startswith((b"II*\0", b"MM\0*")) and not RAW.match(head):
        return "the TIFF image cannot be read: it is corrupt, cut off or of a kind that is not read"
    if head.startswith(b"version https://git-lfs"):
        return "the file is a pointer of Git LFS: 'git lfs pull' fetches the image"
    if data and not data.strip(b"\0"):
        return "the file holds zeros only, as after an interrupted copy"
    names = ", ".join(name for name in readable() if name != "DIB")
    for start, name in OTHERS:
        if start.match(head):
            return f"the file is {name}, not an image of a supported format ({names})"
    return f"the file is not an image of a supported format ({names})"
