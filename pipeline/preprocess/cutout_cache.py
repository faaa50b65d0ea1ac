"""Cache prepared images on disk, by content: another model or rebuild cuts nothing out again."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import uuid
from contextlib import suppress
from pathlib import Path

from PIL import Image, PngImagePlugin

from pipeline.images.decode import DECODING, Limits
from pipeline.preprocess.prepare import PreparedImage, Preprocessing

log = logging.getLogger(__name__)

LOOK_EVERY = 256  # new files between two looks at the folder's size
SHRINK_TO = 0.9


class PreparedCache:
    """Images as the model sees them, named by the file's content and all that shapes them.

    Any number of processes may share the folder. A file that cannot be read is prepared again; a
    folder that cannot be written makes the cache useless, not the rebuild.
    """

    def __init__(self, folder: Path, spec: Preprocessing, limits: Limits, max_bytes: int) -> None:
        # The pixel limit, too: a hit must not let in what decoding would refuse today.
        identity = {**spec.parameters(), "max_pixels": limits.max_pixels, "decoding": DECODING}
        kind = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        self._root, self._folder, self._size = folder, folder / kind, spec.size
        self._max_bytes = max_bytes
        self._new = 0

    def get(self, digest: str) -> PreparedImage | None:
        """Return the prepared image of a content hash; None if there is none that can be read."""
        file = self._file(digest)
        try:
            data = file.read_bytes()
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                if image.size != self._size or image.mode != "RGB":
                    return None  # by its header: its pixels might take any amount of memory
                image.load()
                prepared = PreparedImage(image.copy(), image.info.get("warning"))
        except Exception:  # none, or not whole: whatever Pillow makes of it
            return None
        with suppress(OSError):
            os.utime(file)  # the least recently used files are deleted first
        return prepared

    def put(self, digest: str, prepared: PreparedImage) -> None:
        """Store a prepared image, with its warning, by content hash."""
        text = PngImagePlugin.PngInfo()
        if prepared.warning:
            text.add_text("warning", prepared.warning)
        buffer = io.BytesIO()
        prepared.image.save(buffer, "PNG", compress_level=1, pnginfo=text)
        file = self._file(digest)
        temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # Without fsync: a file that a power cut has spoilt is a miss.
            temporary.write_bytes(buffer.getvalue())
            temporary.replace(file)
            if self._new % LOOK_EVERY == 0:
                shrink_cache(self._root, self._max_bytes)
            self._new += 1
        except OSError as error:
            log.warning("A prepared image cannot be stored in %s: %s", file.parent, error)
            with suppress(OSError):
                temporary.unlink()

    def _file(self, digest: str) -> Path:
        return self._folder / digest[:2] / f"{digest}.png"


def shrink_cache(folder: Path, max_bytes: int, *, dry_run: bool = False) -> int:
    """Delete what was not used for longest once a cache is above its limit; return the bytes."""
    files = []
    for file in folder.rglob("*"):
        with suppress(OSError):  # another process has deleted it
            if file.is_file():
                stat = file.stat()
                files.append((stat.st_mtime, stat.st_size, file))
    total = before = sum(size for _, size, _ in files)
    if total <= max_bytes:
        return 0
    for _, size, file in sorted(files):
        if total <= SHRINK_TO * max_bytes:
            break
        if not dry_run:
            file.unlink(missing_ok=True)
        total -= size
    return before - total
