"""Read the files of candidates and tell how they are the same."""

from __future__ import annotations

import logging
import os
import pickle
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pipeline.access import writing_temporary
from pipeline.duplicates.appearance import Appearance, appearance, compare
from pipeline.duplicates.candidates import Candidates
from pipeline.duplicates.pairs import Facts, Kind, Pair, group_pairs
from pipeline.errors import BadImage
from pipeline.images.decode import Limits, decode_with_warnings, sha256
from pipeline.images.find import ImageFile
from pipeline.images.source import ImageReader, Read
from pipeline.index.versions import Version

log = logging.getLogger(__name__)

FILES_AT_ONCE = 256
PAIRS_AT_ONCE = 64
DECODE_SIDE = 256  # pixels; what is compared is smaller
SCORE_DIGITS = 6

Check = Callable[[int, int], None]
"""Called with how much is done and how much there is; raises to stop."""


class Looks:
    """How the images of some rows look; those that cannot be read, or have changed, are left out.

    `facts` has those of the images that were read, by path. The looks lie in a temporary file:
    those of a million images have 15 GB.
    """

    def __init__(
        self,
        version: Version,
        source: ImageReader,
        limits: Limits,
        background: tuple[int, int, int],
        threads: int,
    ) -> None:
        self._version, self._source, self._limits = version, source, limits
        self._background, self._threads = background, threads
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it goes with this object)
        self._places: dict[str, tuple[int, int]] = {}  # (offset, bytes) of a look, by path
        self.facts: dict[str, Facts] = {}

    def read(self, rows: NDArray[np.int64], check: Check) -> None:
        """Read the files of some rows, several at a time."""
        with ThreadPoolExecutor(self._threads, "look") as pool:
            for start in range(0, len(rows), FILES_AT_ONCE):
                batch = rows[start : start + FILES_AT_ONCE].tolist()
                files = [self._version.image(self._version.paths[row]) for row in batch]
                with self._source.reading(files, self._limits) as read:
                    results = list(pool.map(partial(self._look, read), files, batch))
                for file, result in zip(files, results, strict=True):
                    if result is not None:
                        look, self.facts[file.path] = result
                        self._places[file.path] = self._write(look)
                check(start + len(batch), len(rows))

    def _look(self, read: Read, file: ImageFile, row: int) -> tuple[Appearance, Facts] | None:
        try:
            data = read(file)
            if sha256(data).encode() != self._version.sha256[row]:
                log.info("%s is not compared: it has changed since it was indexed.", file.path)
                return None
            decoded = decode_with_warnings(data, self._limits, self._background, DECODE_SIDE)
        except BadImage as error:
            log.info("%s is not compared: %s", file.path, error)
            return None
        look = appearance(decoded)
        return look, Facts(look.width, look.height, len(data), look.sharpness)

    def _write(self, look: Appearance) -> tuple[int, int]:
        data, offset = pickle.dumps(look), self._file.tell()
        with writing_temporary("How the images look"):
            self._file.write(data)
            self._file.flush()  # `_read` goes past the buffer
        return offset, len(data)

    def _read(self, path: str) -> Appearance | None:
        place = self._places.get(path)
        if place is None:
            return None
        offset, n_bytes = place
        look: Appearance = pickle.loads(os.pread(self._file.fileno(), n_bytes, offset))
        return look

    def copies(self, first_of: NDArray[np.int64]) -> list[Pair]:
        """Pair each row of a content that several have with the first one.

        Args:
            first_of: (n,) the first row of each row's content.
        """
        paths, pairs = self._version.paths, []
        for row in np.flatnonzero(first_of != np.arange(len(first_of))).tolist():
            first, path = paths[int(first_of[row])], paths[row]
            pairs.append(Pair(first, path, Kind.IDENTICAL, 1.0))
            if first in self.facts:  # the same bytes
                self._places[path], self.facts[path] = self._places[first], self.facts[first]
        return pairs

    def compare(self, candidates: Candidates, check: Check) -> list[Pair]:
        """Tell how candidates are the same; those that are not are left out."""
        paths, pairs, total = self._version.paths, list[Pair](), len(candidates.rows)
        named = [(paths[row], paths[other]) for row, other in candidates.rows.tolist()]
        with ThreadPoolExecutor(self._threads, "compare") as pool:
            for start in range(0, total, PAIRS_AT_ONCE):
                block = slice(start, start + PAIRS_AT_ONCE)
                kinds = pool.map(self._kind, *zip(*named[block], strict=True))
                scores, similar = candidates.scores[block], candidates.similar[block]
                for (path, other), kind, score, same in zip(
                    named[block], kinds, scores.tolist(), similar.tolist(), strict=True
                ):
                    found = kind or (Kind.SIMILAR if same else None)
                    if found is not None:
                        pairs.append(Pair(path, other, found, round(score, SCORE_DIGITS)))
                check(min(start + PAIRS_AT_ONCE, total), total)
        return pairs

    def around_the_best(self, pairs: list[Pair], rows: Mapping[str, int]) -> list[Pair]:
        """Return the pairs of images with the best one of a group that a third one links them to.

        Args:
            rows: of the paths in `pairs`.
        """
        more: list[Pair] = []
        vectors = self._version.vectors

        def look_again(path: str, best: str) -> Pair | None:
            kind = self._kind(path, best)
            if kind is None:
                return None
            score = round(float(vectors[rows[path]] @ vectors[rows[best]]), SCORE_DIGITS)
            more.append(Pair(path, best, kind, score))
            return more[-1]

        group_pairs(pairs, self.facts, look_again=look_again)
        return more

    def _kind(self, path: str, other: str) -> Kind | None:
        one, two = self._read(path), self._read(other)
        return None if one is None or two is None else compare(one, two)
