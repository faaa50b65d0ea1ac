"""Shards hold each image once; embedding keeps order, bounds memory, survives bad images."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.embed.embed_images import Embedder, ShardResult, embed_isolated, embed_shard
from pipeline.embed.shards import cut, read_shard, write_shard
from pipeline.embed.stage_times import STAGES
from pipeline.errors import ImageOutOfMemory, IndexBroken, SetupError
from pipeline.images.decode import Limits, sha256
from pipeline.images.find import ImageFile, find_images
from pipeline.images.source import ImageFolder
from pipeline.preprocess.prepare import PreparedImage


class ColorEncoder:
    """A 3-dim embedding: the mean colour, unit length. Remembers the batches that it got."""

    dim = 3

    def __init__(self) -> None:
        self.batches: list[int] = []

    def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        self.batches.append(len(images))
        means = np.array([np.asarray(image).reshape(-1, 3).mean(0) + 1 for image in images])
        return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


class DictCache:
    def __init__(self) -> None:
        self.known: dict[str, np.ndarray] = {}

    def get(self, digest: str) -> np.ndarray | None:
        return self.known.get(digest)

    def put(self, vectors: dict[str, np.ndarray]) -> None:
        self.known.update(vectors)


def tools(encoder: ColorEncoder, batch_size: int = 4, threads: int = 2) -> Embedder:
    return Embedder(
        encoder=encoder,
        prepare=lambda image: PreparedImage(image),
        limits=Limits(10**6, 10**6),
        bg_color=(255, 255, 255),
        batch_size=batch_size,
        threads=threads,
    )


def draw(folder: Path, count: int) -> list[ImageFile]:
    for number in range(count):
        color = (250 - number * 7 % 250, number * 13 % 250, number * 29 % 250)
        image = Image.new("RGB", (16, 16), color)
        image.paste("black", (8, 8, 16, 16))  # or it would be warned about as blank
        image.save(folder / f"{number:03d}.png")
    return [item for item in find_images(folder) if isinstance(item, ImageFile)]


def go_on(done: int) -> None:
    """The check of a worker that nobody stops."""


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 40, 127, 128, 129, 160, 161, 500, 1000])
def test_each_image_is_cut_into_exactly_one_shard(count: int) -> None:
    images = [ImageFile(f"{number:04d}.jpg", 1, 1) for number in range(count)]
    shards = list(cut(iter(images), shard_size=20))
    assert [image for shard in shards for image in shard] == images
    assert all(1 <= len(shard) <= 20 for shard in shards)


def test_a_small_folder_still_makes_work_for_several_workers() -> None:
    images = [ImageFile(str(number), 1, 1) for number in range(200)]
    assert [len(shard) for shard in cut(images, shard_size=256)] == [25] * 8


def test_vectors_come_in_the_order_of_the_images_whatever_the_batches(tmp_path: Path) -> None:
    images, encoder = draw(tmp_path, 11), ColorEncoder()
    result = embed_shard(ImageFolder(tmp_path), images, tools(encoder), DictCache(), check=go_on)
    assert encoder.batches == [4, 4, 3]
    assert result.vectors.positions.tolist() == list(range(11))
    for image, vector, digest in zip(
        images, result.vectors.vectors, result.vectors.sha256, strict=True
    ):
        with Image.open(tmp_path / image.path) as picture:
            assert np.allclose(vector, ColorEncoder().embed_images([picture])[0], atol=1e-6)
        assert digest.decode() == sha256((tmp_path / image.path).read_bytes())


def test_bad_images_are_failures_between_good_ones(tmp_path: Path) -> None:
    draw(tmp_path, 8)
    (tmp_path / "002.png").write_bytes(b"")
    (tmp_path / "005.png").write_bytes(b"no image")
    images = [item for item in find_images(tmp_path) if isinstance(item, ImageFile)]
    result = embed_shard(
        ImageFolder(tmp_path), images, tools(ColorEncoder()), DictCache(), check=go_on
    )
    assert result.vectors.positions.tolist() == [0, 1, 3, 4, 6, 7]
    assert [failure.path for failure in result.failures] == ["002.png", "005.png"]
    assert (result.embedded, result.reused) == (6, 0)


def test_a_shard_in_which_every_image_is_bad_ends_well(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.jpg").write_bytes(b"bad")
    images = [item for item in find_images(tmp_path) if isinstance(item, ImageFile)]
    encoder = ColorEncoder()
    result = embed_shard(ImageFolder(tmp_path), images, tools(encoder), DictCache(), check=go_on)
    assert len(result.failures) == 9
    assert encoder.batches == []
    name, digest = write_shard(tmp_path, 3, result.vectors)
    assert read_shard(tmp_path, name, digest).vectors.shape == (0, 3)


def test_a_file_that_vanishes_after_the_listing_is_one_failure(tmp_path: Path) -> None:
    images = draw(tmp_path, 3)
    (tmp_path / "001.png").unlink()
    result = embed_shard(
        ImageFolder(tmp_path), images, tools(ColorEncoder()), DictCache(), check=go_on
    )
    assert [(f.path, f.stage) for f in result.failures] == [("001.png", "read")]


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities on Linux only")
def test_the_model_s_thread_goes_before_those_that_read(tmp_path: Path) -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    seen: set[int] = set()

    def prepare(image: Image.Image) -> PreparedImage:
        seen.add(priority())
        return PreparedImage(image)

    before, encoder = priority(), ColorEncoder()
    made = replace(tools(encoder), prepare=prepare)
    embed_shard(
        ImageFolder(tmp_path), draw(tmp_path, 9), made, DictCache(), check=lambda done: None
    )
    assert priority() == before
    assert seen == {max(before, 10)}
    assert before < 10


def test_at_most_two_batches_are_read_ahead_of_the_model(tmp_path: Path) -> None:
    images, read, ahead = draw(tmp_path, 60), [0], []

    class Watching(ColorEncoder):
        def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
            ahead.append(read[0] - sum(self.batches))
            return super().embed_images(images)

    def prepare(image: Image.Image) -> PreparedImage:
        read[0] += 1
        return PreparedImage(image)

    kit = tools(Watching())
    kit = Embedder(**{**vars(kit), "prepare": prepare})
    embed_shard(ImageFolder(tmp_path), images, kit, DictCache(), check=go_on)
    # Two batches wait in front of the loop while it holds one.
    assert max(ahead) <= 3 * kit.batch_size


def test_the_cache_knows_content_and_not_name_size_or_time(tmp_path: Path) -> None:
    """The trap: same dimensions, same bytes at both ends, same length, another middle."""
    left, right, cache = tmp_path / "a", tmp_path / "b", DictCache()
    for folder, middle in ((left, (250, 0, 0)), (right, (0, 250, 0))):
        folder.mkdir()
        image = Image.new("RGB", (32, 32), (90, 90, 90))
        image.paste(middle, (8, 8, 24, 24))
        image.save(folder / "same.bmp")
    one, two = (next(find_images(folder)) for folder in (left, right))
    assert isinstance(one, ImageFile)
    assert isinstance(two, ImageFile)
    assert one.size == two.size
    first = embed_shard(ImageFolder(left), [one], tools(ColorEncoder()), cache, check=go_on)
    other = embed_shard(ImageFolder(right), [two], tools(ColorEncoder()), cache, check=go_on)
    again = embed_shard(ImageFolder(left), [one], tools(ColorEncoder()), cache, check=go_on)
    assert (first.embedded, other.embedded) == (1, 1)
    assert (again.embedded, again.reused) == (0, 1)
    assert np.array_equal(first.vectors.vectors, again.vectors.vectors)
    assert not np.allclose(first.vectors.vectors, other.vectors.vectors)


def test_a_check_that_raises_stops_the_shard_between_two_images(tmp_path: Path) -> None:
    images, seen = draw(tmp_path, 20), []

    class StopNow(Exception):
        pass

    def check(done: int) -> None:
        seen.append(done)
        if done == 6:
            raise StopNow

    with pytest.raises(StopNow):
        embed_shard(ImageFolder(tmp_path), images, tools(ColorEncoder()), DictCache(), check=check)
    assert seen == list(range(7))


def test_images_that_ran_alone_and_killed_their_worker_are_left_out(tmp_path: Path) -> None:
    images, ended = draw(tmp_path, 5), []
    result = embed_isolated(
        ImageFolder(tmp_path),
        images,
        tools(ColorEncoder()),
        DictCache(),
        check=go_on,
        on_start=lambda position: position != 2,
        on_done=ended.append,
    )
    assert result.vectors.positions.tolist() == [0, 1, 3, 4]
    assert [(failure.path, failure.stage) for failure in result.failures] == [("002.png", "crash")]
    assert ended == [0, 1, 3, 4]


def embed_alone(
    folder: Path, images: Sequence[ImageFile], encoder: ColorEncoder, done: list[int] | None = None
) -> ShardResult:
    """Embed each image alone; `done` takes the positions of those that ended."""
    return embed_isolated(
        ImageFolder(folder),
        images,
        tools(encoder),
        DictCache(),
        check=go_on,
        on_start=lambda _: True,
        on_done=(lambda _: None) if done is None else done.append,
    )


def test_an_image_that_the_model_cannot_take_is_one_failure_when_it_runs_alone(
    tmp_path: Path,
) -> None:
    images = draw(tmp_path, 4)

    class Picky(ColorEncoder):
        def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
            if images[0].getpixel((0, 0))[1] == 13:
                raise RuntimeError("out of memory")
            return super().embed_images(images)

    result = embed_alone(tmp_path, images, Picky())
    assert [failure.path for failure in result.failures] == ["001.png"]
    assert len(result.vectors.positions) == 3


def test_a_model_that_no_longer_works_is_not_its_images_fault(tmp_path: Path) -> None:
    """As after an error of CUDA, which lasts as long as the process."""
    images, done = draw(tmp_path, 4), list[int]()

    class Dead(ColorEncoder):
        def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
            raise RuntimeError("CUDA error: an illegal memory access")

    with pytest.raises(SetupError, match=r"not even a gray square .*CUDA error"):
        embed_alone(tmp_path, images, Dead(), done)
    assert done == [0]  # and so it is no suspect


class Gapped(ColorEncoder):
    """Gives no usable vector for some images: those of a green of 13, or all."""

    def __init__(self, number: float, *, for_all: bool = False) -> None:
        super().__init__()
        self.number = number
        self.for_all = for_all

    def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        vectors = super().embed_images(images)
        for vector, image in zip(vectors, images, strict=True):
            if self.for_all or image.getpixel((0, 0))[1] == 13:
                vector[:] = self.number
        return vectors


@pytest.mark.parametrize("number", [np.nan, np.inf, 0.0])
@pytest.mark.parametrize("alone", [False, True])
def test_an_image_without_a_usable_vector_is_a_failure_and_in_no_cache(
    tmp_path: Path, number: float, alone: bool
) -> None:
    """Published, no query would ever find it."""
    images, cache, encoder = draw(tmp_path, 4), DictCache(), Gapped(number)
    if alone:
        result = embed_alone(tmp_path, images, encoder)
    else:
        result = embed_shard(ImageFolder(tmp_path), images, tools(encoder), cache, check=go_on)
        assert len(cache.known) == 3
    assert result.vectors.positions.tolist() == [0, 2, 3]
    assert np.isfinite(result.vectors.vectors).all()
    assert [(failure.path, failure.stage) for failure in result.failures] == [("001.png", "embed")]
    assert (result.embedded, result.reused) == (3, 0)


def test_a_model_without_a_usable_vector_for_any_image_makes_no_failures_of_them(
    tmp_path: Path,
) -> None:
    images, encoder = draw(tmp_path, 4), Gapped(np.nan, for_all=True)
    with pytest.raises(SetupError, match="not even a gray square"):
        embed_shard(ImageFolder(tmp_path), images, tools(encoder), DictCache(), check=go_on)
    with pytest.raises(SetupError, match="not even a gray square"):
        embed_alone(tmp_path, images, encoder)


@pytest.mark.parametrize("left", [(), (".hidden",)])
def test_a_folder_that_is_unmounted_is_not_its_images_fault(
    tmp_path: Path, left: tuple[str, ...]
) -> None:
    folder = tmp_path / "share"
    folder.mkdir()
    images = draw(folder, 3)
    source = ImageFolder(folder)
    source.require()
    folder.rename(tmp_path / "elsewhere")
    folder.mkdir()
    for name in left:
        (folder / name).touch()
    with pytest.raises(SetupError, match="is empty on this host"):
        source.require()
    with pytest.raises(SetupError, match="is empty on this host"):
        embed_shard(source, images, tools(ColorEncoder()), DictCache(), check=go_on)


def test_an_image_that_memory_did_not_hold_beside_others_is_tried_alone(tmp_path: Path) -> None:
    images, tries = draw(tmp_path, 8), Counter[int]()

    def prepare(image: Image.Image) -> PreparedImage:
        red = image.getpixel((0, 0))[0]
        tries[red] += 1
        if red == 250 - 7 * 3 and tries[red] == 1:
            raise ImageOutOfMemory
        if red == 250 - 7 * 5:
            raise MemoryError
        return PreparedImage(image)

    embedder = replace(tools(ColorEncoder()), prepare=prepare)
    result = embed_shard(ImageFolder(tmp_path), images, embedder, DictCache(), check=go_on)
    assert result.vectors.positions.tolist() == [0, 1, 2, 3, 4, 6, 7]
    assert [(f.path, f.reason) for f in result.failures] == [("005.png", ImageOutOfMemory().reason)]
    assert {red: count for red, count in tries.items() if count > 1} == {229: 2, 215: 2}


def test_a_model_that_fails_stops_the_threads_that_read_ahead(tmp_path: Path) -> None:
    class Broken(ColorEncoder):
        def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
            raise RuntimeError("CUDA error")

    images = draw(tmp_path, 20)
    with pytest.raises(RuntimeError) as caught:
        embed_shard(ImageFolder(tmp_path), images, tools(Broken()), DictCache(), check=go_on)
    assert caught.value.__traceback__  # it would keep a generator that nobody closed alive
    assert not [each for each in threading.enumerate() if each.name.startswith("read")]


def test_the_seconds_of_each_stage_come_with_the_result(tmp_path: Path) -> None:
    images = draw(tmp_path, 9)

    def prepare(image: Image.Image) -> PreparedImage:
        time.sleep(0.02)
        return PreparedImage(image)

    embedder = replace(tools(ColorEncoder(), threads=3), prepare=prepare)
    seconds = embed_shard(
        ImageFolder(tmp_path), images, embedder, DictCache(), check=go_on
    ).stage_seconds
    assert tuple(seconds) == STAGES
    assert min(seconds.values()) > 0
    # Three threads slept 0.18 s in all: each one's share counts.
    assert seconds["cut_out"] >= 9 * 0.02 / 3
    assert max(seconds, key=lambda stage: seconds[stage]) == "cut_out"


def test_a_shard_file_that_changed_or_vanished_is_refused(tmp_path: Path) -> None:
    result = embed_shard(
        ImageFolder(tmp_path), draw(tmp_path, 3), tools(ColorEncoder()), DictCache(), check=go_on
    )
    name, digest = write_shard(tmp_path, 0, result.vectors)
    assert write_shard(tmp_path, 0, result.vectors) == (name, digest)  # twice is once
    data = bytearray((tmp_path / name).read_bytes())
    data[60] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(IndexBroken, match="digest"):
        read_shard(tmp_path, name, digest)
    (tmp_path / name).unlink()
    with pytest.raises(IndexBroken, match="cannot be read"):
        read_shard(tmp_path, name, digest)
