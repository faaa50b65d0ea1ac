"""Whatever a stranger puts into the folder is at most one failure, and the rest is indexed."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.embed.embed_images import Embedder, ShardResult, embed_isolated, embed_shard
from pipeline.errors import BadImage, ServerUnavailable
from pipeline.images.decode import Limits, decode
from pipeline.images.find import ImageFile, confined, find_images
from pipeline.images.source import ImageFolder
from pipeline.preprocess.prepare import PreparedImage

ROOT = Path(__file__).parents[3]

WHITE = (255, 255, 255)
LIMITS = Limits(max_pixels=50_000_000, max_bytes=50_000_000)


class ColorEncoder:
    """A 3-dim embedding: the mean colour, unit length."""

    dim = 3

    def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        means = np.array([np.asarray(image).reshape(-1, 3).mean(0) + 1 for image in images])
        return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


class NoCache:
    def get(self, digest: str) -> None:
        """Know nothing."""

    def put(self, vectors: dict[str, np.ndarray]) -> None:
        """Keep nothing."""


TOOLS = Embedder(ColorEncoder(), PreparedImage, LIMITS, WHITE, batch_size=4, threads=2)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(side: int = 40) -> Image.Image:
    """A picture that no codec makes small, so that half of its file is half of its pixels."""
    rng = np.random.default_rng(3)
    return Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))


def gray_16(side: int = 40) -> Image.Image:
    rng = np.random.default_rng(4)
    return Image.fromarray(rng.integers(0, 60_000, (side, side), dtype=np.uint16))


def exif_with_text_for_a_number() -> bytes:
    """A JPEG that every browser shows: its EXIF block turns it and has a resolution of type text.

    Pillow raises TypeError when it writes such a block again.
    """
    entries = [
        struct.pack(">HHII", 0x0112, 3, 1, 6 << 16),  # orientation
        struct.pack(">HHI4s", 0x011A, 2, 3, b"72\0\0"),  # x resolution
    ]
    block = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 2) + b"".join(entries) + b"\0\0\0\0"
    return encoded(noise(), "JPEG", exif=block)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises any number of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))


def go_on(done: int) -> None:
    """The check of a worker that nobody stops."""


def listed(folder: Path) -> list[ImageFile]:
    return [item for item in find_images(folder) if isinstance(item, ImageFile)]


def embed(folder: Path, **more: Callable[[str, Image.Image], None]) -> ShardResult:
    return embed_shard(ImageFolder(folder), listed(folder), TOOLS, NoCache(), check=go_on, **more)


def test_in_one_shard_of_all_that_ever_killed_a_pipeline_the_good_ones_are_indexed(
    tmp_path: Path,
) -> None:
    """clip-retrieval#257, infinity#367, #609: one batch with everything in it."""
    frames = [noise(), noise().rotate(90)]
    good = {
        "animated.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "animated.webp": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "cmyk.jpg": encoded(noise().convert("CMYK"), "JPEG"),
        "gray-16.png": encoded(gray_16(), "PNG"),
        "gray-16.tif": encoded(gray_16(), "TIFF"),
        "one-bit.png": encoded(noise().convert("1"), "PNG"),
        "phone-with-two-pictures.jpg": encoded(
            frames[0], "MPO", save_all=True, append_images=frames[1:]
        ),
        "png-named.jpg": encoded(noise(), "PNG"),
        "strange-exif.jpg": exif_with_text_for_a_number(),
        "transparent.png": encoded(Image.new("RGBA", (40, 40)), "PNG"),
        "very-long.png": encoded(Image.new("RGB", (4000, 8), "red"), "PNG"),
    }
    bad = {
        "bomb.png": bomb(10_000, 10_000),
        "cut.jpg": encoded(noise(), "JPEG")[:1000],
        "dot.png": encoded(Image.new("RGB", (1, 1)), "PNG"),
        "empty.jpg": b"",
        "header-only.jpg": b"\xff\xd8\xff\xe0",
        "text.jpg": b"a text",
        "vector.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    }
    for name, data in (good | bad).items():
        (tmp_path / name).write_bytes(data)
    result = embed(tmp_path)
    images = listed(tmp_path)
    assert {images[position].path for position in result.vectors.positions} == set(good)
    left_out = {failure.path for failure in result.failures if not failure.warning}
    assert left_out == set(bad)
    assert all(failure.reason for failure in result.failures)


def test_a_picture_with_a_strange_exif_block_is_turned_all_the_same() -> None:
    data = exif_with_text_for_a_number()
    with Image.open(io.BytesIO(data)) as stored:
        upright = np.asarray(stored.transpose(Image.Transpose.ROTATE_270))
    assert np.array_equal(np.asarray(decode(data, LIMITS, WHITE)), upright)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "seed",
    [
        encoded(noise(), "JPEG", exif=b"Exif\0\0" + Image.Exif().tobytes()[6:]),
        exif_with_text_for_a_number(),
        encoded(noise(), "PNG", dpi=(72, 72)),
        encoded(noise().quantize(16), "PNG", transparency=3),
        encoded(noise(), "WEBP"),
        encoded(noise().quantize(16), "GIF", save_all=True, append_images=[noise().quantize(8)]),
        encoded(noise(), "BMP"),
        encoded(noise(), "TIFF"),
        encoded(gray_16(), "TIFF"),
        encoded(noise(), "TIFF", compression="tiff_lzw"),
    ],
    ids=["jpeg", "exif", "png", "palette", "webp", "gif", "bmp", "tiff", "tiff-16", "tiff-lzw"],
)
def test_a_file_with_changed_bytes_is_a_picture_or_a_bad_image_and_never_a_crash(
    seed: bytes,
) -> None:
    rng = random.Random(1)
    limits = Limits(max_pixels=1_000_000, max_bytes=1_000_000)
    outcomes: set[str | bool] = set()
    for _ in range(250):
        data = bytearray(seed)
        for _ in range(rng.choice((1, 2, 8))):
            place = rng.randrange(min(len(data), rng.choice((32, 300, len(data)))))
            data[place] = rng.randrange(256)
        if rng.random() < 0.1:
            del data[rng.randrange(len(data)) :]
        try:
            outcomes.add(decode(bytes(data), limits, WHITE).mode)
        except BadImage as error:
            outcomes.add(bool(error.reason))
    assert outcomes == {"RGB", True}  # pictures, and failures that have a reason


def test_any_error_of_a_decoder_is_a_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's plugins let through what a broken field does to them: TypeError, KeyError, ..."""

    def explode(self: Image.Image) -> None:
        raise KeyError("a field that the plugin takes for granted")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", explode)
    with pytest.raises(BadImage, match="corrupt"):
        decode(encoded(noise(), "PNG"), LIMITS, WHITE)


def test_a_large_16_bit_scan_is_decoded_in_a_few_times_its_own_size() -> None:
    """One page of 50 megapixels must not cost a worker gigabytes: several are read at once."""
    side = 3000
    data = encoded(gray_16(side), "TIFF")
    tracemalloc.start()
    try:
        decode(data, LIMITS, WHITE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * side * side  # the pixels themselves have 2 bytes each


@pytest.mark.parametrize("kind", ["pipe", "link to itself", "link to nothing", "folder"])
def test_what_is_no_regular_file_is_listed_as_one_failure_or_warning(
    tmp_path: Path, kind: str
) -> None:
    """A pipe that is opened for reading would hold a worker for ever."""
    odd = tmp_path / "odd.jpg"
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "link to itself":
        odd.symlink_to(odd)
    elif kind == "link to nothing":
        odd.symlink_to(tmp_path / "nothing.jpg")
    else:
        odd.mkdir()
    (tmp_path / "good.png").write_bytes(encoded(noise(), "PNG"))
    assert [image.path for image in listed(tmp_path)] == ["good.png"]
    failures = [item for item in find_images(tmp_path) if not isinstance(item, ImageFile)]
    (failure,) = failures
    assert (failure.path, failure.stage) == ("odd.jpg", "find")
    assert failure.reason
    assert failure.warning == (kind == "folder")


def test_a_file_that_became_a_link_to_itself_after_the_listing_is_one_failure(
    tmp_path: Path,
) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(encoded(noise(), "PNG"))
    images = listed(tmp_path)
    (tmp_path / "b.png").unlink()
    (tmp_path / "b.png").symlink_to("b.png")
    result = embed_shard(ImageFolder(tmp_path), images, TOOLS, NoCache(), check=go_on)
    assert [failure.path for failure in result.failures] == ["b.png"]
    assert result.vectors.positions.tolist() == [0, 2]
    with pytest.raises(BadImage):
        confined(tmp_path, "b.png")


def test_a_link_within_the_folder_is_a_product_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(encoded(noise(), "PNG"))
    (tmp_path / "linked.png").symlink_to("real.png")
    assert len(embed(tmp_path).vectors.positions) == 2


def test_a_picture_that_cannot_be_saved_is_one_failure_and_the_rest_is_indexed(
    tmp_path: Path,
) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(encoded(noise(), "PNG"))

    def save(path: str, image: Image.Image) -> None:
        if path == "b.png":
            raise BadImage("the path leads outside the folder of preprocessed images", "save")

    result = embed(tmp_path, save=save)
    assert [(failure.path, failure.stage) for failure in result.failures] == [("b.png", "save")]
    assert result.vectors.positions.tolist() == [0, 2]


def alone(folder: Path, error: BaseException) -> ShardResult:
    """Embed a crashed shard whose second image makes the model raise."""
    images = listed(folder)

    class Picky(ColorEncoder):
        def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
            if images[0].getpixel((0, 0)) == (255, 0, 0):
                raise error
            return super().embed_images(images)

    tools = Embedder(Picky(), PreparedImage, LIMITS, WHITE, batch_size=4, threads=1)
    return embed_isolated(
        ImageFolder(folder),
        images,
        tools,
        NoCache(),
        check=go_on,
        on_start=lambda position: True,
        on_done=lambda position: None,
    )


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for name, color in (("a", "lime"), ("b", "red"), ("c", "blue")):
        Image.new("RGB", (16, 16), color).save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory"), TypeError("a bug"), KeyError("x")]
)
def test_an_image_that_makes_any_error_when_it_runs_alone_is_one_failure(
    three: Path, error: Exception
) -> None:
    result = alone(three, error)
    (failure,) = [each for each in result.failures if not each.warning]  # blank ones are warned of
    assert (failure.path, failure.stage) == ("b.png", "embed")
    assert result.vectors.positions.tolist() == [0, 2]
    assert type(error).__name__ in failure.reason


@pytest.mark.parametrize("error", [OSError("disk full"), ServerUnavailable("the database is away")])
def test_an_outage_while_an_image_runs_alone_is_not_blamed_on_the_image(
    three: Path, error: Exception
) -> None:
    with pytest.raises(type(error)):
        alone(three, error)


def test_a_decoder_never_warns_on_the_worker_s_stderr_about_large_pictures() -> None:
    """Our own limit decides; Pillow's second one would warn where ours allows."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        flat = encoded(Image.new("L", (9500, 9500)), "PNG")
        large = Limits(max_pixels=100_000_000, max_bytes=10**9)
        assert decode(flat, large, WHITE).size == (1024, 1024)


def test_metadata_that_cannot_be_read_is_not_warned_of_on_stderr(tmp_path: Path) -> None:
    """Pillow would print a line of its own code, and what the file says."""
    buffer = io.BytesIO()
    noise().save(buffer, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    file = tmp_path / "odd.jpg"
    file.write_bytes(buffer.getvalue())
    script = (
        "import sys; from pathlib import Path; from pipeline.images.decode import Limits, decode\n"
        "print(decode(Path(sys.argv[1]).read_bytes(), Limits(10**6, 10**6), (0, 0, 0)).size)"
    )
    command = [sys.executable, "-c", script, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert (done.stderr, done.stdout[0]) == ("", "(")
