"""The image paths of an index by row.

    paths.bin               the paths in UTF-8, each with a NUL behind it
    path_ends.npy           (n + 1,) int64: where the path before each row ends; 0 for the first
    id_to_filename.json     {"0": "shoe/a.jpg", ...}, a line each: for people and old releases

Programs read the first two, mapped from disk: as JSON, a million paths take a second and 200 MB,
and the parser holds Python's lock meanwhile.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from pipeline.access import is_unavailable
from pipeline.errors import IndexBroken

BLOCK_ROWS = 4096  # decoded at once


def write_id_map(folder: Path, paths: Sequence[str]) -> None:
    """Write the paths of a version; none contains a NUL, which no file system allows."""
    # All at once: a call for each of a million paths takes seconds. No JSON text has a line break.
    texts = json.JSONEncoder(ensure_ascii=False, separators=("\n", ":")).encode(list(paths))
    quoted = texts[1:-1].split("\n") if paths else []
    lines = ",\n".join([f'"{row}": {path}' for row, path in enumerate(quoted)])
    (folder / "id_to_filename.json").write_bytes(f"{{\n{lines}\n}}\n".encode())
    names = "\0".join([*paths, ""]).encode()
    (folder / "paths.bin").write_bytes(names)
    ends = 1 + np.flatnonzero(np.frombuffer(names, np.uint8) == 0)
    np.save(folder / "path_ends.npy", np.concatenate([[0], ends], dtype=np.int64))


def read_id_map(folder: Path) -> Sequence[str]:
    """Open the paths of a version; an older one has the JSON file only, which is parsed whole.

    Raises:
        IndexBroken: the files cannot be read or contradict each other.
    """
    file = folder / "path_ends.npy"
    try:
        if file.exists():
            ends = np.load(file, mmap_mode="r", allow_pickle=False)
            with (folder / "paths.bin").open("rb") as stream:
                text = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            return IdMap(memoryview(text), np.asarray(ends))
        file = folder / "id_to_filename.json"
        names = json.loads(file.read_bytes())
        return [names[str(row)] for row in range(len(names))]
    except (OSError, ValueError, LookupError, TypeError) as error:
        if is_unavailable(error):
            raise
        raise IndexBroken(f"The id map {file} cannot be read: {error}.") from error


class IdMap(Sequence[str]):
    """The mapped paths; a row is decoded when it is read."""

    def __init__(self, text: memoryview, ends: NDArray[np.int64]) -> None:
        if ends[-1] != len(text):
            raise ValueError(f"paths.bin has {len(text):,} bytes, not {ends[-1]:,}")
        self._text = text
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            start, stop, step = row.indices(len(self))
            if step == 1:
                return self._decode(start, stop) if start < stop else []
            return [self[each] for each in range(start, stop, step)]
        place = row + len(self) if row < 0 else row
        if not 0 <= place < len(self):
            raise IndexError(row)
        start, stop = self._ends.item(place), self._ends.item(place + 1) - 1
        return str(self._text[start:stop], "utf-8")

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), BLOCK_ROWS):
            yield from self[start : start + BLOCK_ROWS]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def _decode(self, start: int, stop: int) -> list[str]:
        text = self._text[self._ends.item(start) : self._ends.item(stop) - 1]
        return str(text, "utf-8").split("\0")
