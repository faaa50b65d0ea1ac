"""Pictures that cost far more than they show: refused from the header, or failed alone."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib
from pathlib import Path

import pytest
from fuzz_images import MODES, SIDE, declare, original
from live_stack import until
from PIL import Image

from pipeline.errors import BadImage, ImageOutOfMemory
from pipeline.images import decode as decode_module
from pipeline.images import decode_cost as decode_cost_module
from pipeline.images import memory_budget
from pipeline.images.decode import Limits, decode
from pipeline.images.decode_cost import BYTES_PER_PIXEL, decode_cost, webp_size
from pipeline.images.memory_budget import MemoryBudget

ROOT = Path(__file__).parents[3]
WHITE = (255, 255, 255)
LIMITS = Limits(max_pixels=50_000_000, max_bytes=50_000_000)


def tiled_tiff(side: int, tile: int) -> bytes:
    """A TIFF of `side` x `side` pixels, stored in one deflated tile of zeros."""
    squeeze = zlib.compressobj(9)
    body = b"".join(squeeze.compress(bytes(3 * tile)) for _ in range(tile)) + squeeze.flush()
    tags = [(256, 4, side), (257, 4, side), (258, 3, 0), (259, 3, 8), (262, 3, 2), (277, 3, 3)]
    tags += [(284, 3, 1), (322, 4, tile), (323, 4, tile), (324, 4, 0), (325, 4, len(body))]
    depths = 8 + 2 + 12 * len(tags) + 4
    entries = b""
    for tag, kind, value in tags:
        count = 3 if tag == 258 else 1
        stored = {258: depths, 324: depths + 6}.get(tag, value)
        field = struct.pack("<HH", stored, 0) if kind == 3 and count == 1 else None
        entries += struct.pack("<HHI", tag, kind, count) + (field or struct.pack("<I", stored))
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + entries + struct.pack("<I", 0) + struct.pack("<HHH", 8, 8, 8) + body


def with_scans(extra: int) -> bytes:
    """A progressive JPEG that refines its last coefficients again and again."""
    data = original("JPEG", "progressive", 0)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * extra + data[-2:]


def test_a_tile_larger_than_any_picture_may_be_is_refused_before_it_is_unpacked() -> None:
    assert decode(tiled_tiff(64, 128), LIMITS, WHITE).size == (64, 64)
    limits = Limits(max_pixels=1_000_000, max_bytes=10**9)
    data = tiled_tiff(64, 2048)
    assert len(data) < 20_000
    tracemalloc.start()
    try:
        with pytest.raises(BadImage, match=r"tiles of 4,194,304 pixels.*MAX_IMAGE_PIXELS"):
            decode(data, limits, WHITE)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_jpeg_of_a_thousand_scans_is_refused_and_one_of_ten_is_not() -> None:
    assert decode(with_scans(0), LIMITS, WHITE).size == (SIDE, SIDE)
    with pytest.raises(BadImage, match=r"1,0\d\d scans, more than 100"):
        decode(with_scans(1000), LIMITS, WHITE)


@pytest.mark.parametrize("led_on", [False, True])
def test_scans_of_single_components_are_counted_wherever_a_marker_leads(led_on: bool) -> None:
    """A plain JPEG may come in a scan for each component: its first does not end it."""
    data = original("JPEG", "baseline", 0)
    at = data.index(b"\xff\xda")
    assert data[at + 4] == 3
    alone = data[at : at + 4] + b"\x01" + data[at + 5 :]
    if led_on:  # a marker without a length, and behind what looks like one a scan that is whole
        data = data[:at] + b"\xff\xd0" + (2 + len(alone)).to_bytes(2, "big") + alone + data[at:]
    else:
        data = data[:at]
    with pytest.raises(BadImage, match=r"1,0\d\d scans, more than 100"):
        decode(data + alone * 1001, LIMITS, WHITE)


def test_a_camera_s_jpeg_has_one_scan_whatever_follows_it() -> None:
    data = original("JPEG", "baseline", 0)
    wanted = decode(data, LIMITS, WHITE)
    assert decode(data + b"\xff\xda" * 1000, LIMITS, WHITE) == wanted
    padded = data[:2] + b"\xff\xff" + data[2:]
    assert decode(padded + b"\xff\xda" * 1000, LIMITS, WHITE) == wanted


def test_a_header_of_nothing_but_padding_is_not_followed_to_its_end() -> None:
    data = original("JPEG", "baseline", 0)
    padded = data[:2] + b"\xff" * 100_000 + data[2:]
    with Image.open(io.BytesIO(padded)) as image:
        assert not decode_cost_module._one_scan(image, padded)
        assert decode_cost_module._one_scan(image, data)


@pytest.mark.parametrize("mode", MODES["WEBP"])
def test_the_size_of_a_webp_is_read_before_pillow_asks_for_its_canvas(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = original("WEBP", mode, 0)
    assert webp_size(data) == (SIDE, SIDE)
    huge = declare("WEBP", data, 16_000, 16_000)
    assert webp_size(huge) == (16_000, 16_000)
    opened: list[object] = []
    monkeypatch.setattr(decode_module.Image, "open", lambda *args, **more: opened.append(args))
    with pytest.raises(BadImage, match="256,000,000 pixels"):
        decode(huge, LIMITS, WHITE)
    assert opened == []
    assert webp_size(data[:29]) is None
    assert webp_size(original("PNG", "RGB", 0)) is None


def run(script: str) -> list[str]:
    """Run a script in a process of its own; return the lines that it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr[-1000:]
    return done.stdout.splitlines()


def test_no_picture_takes_more_memory_than_its_header_lets_expect() -> None:
    """Under a ceiling of the announced cost, every kind of file is decoded."""
    lines = run("""
import io, resource
import fuzz_images
from PIL import Image
from pipeline.images.decode_cost import decode_cost
from pipeline.images.decode import Limits, decode
from pipeline.images.memory_budget import (
    data_segment_bytes, limit_malloc_arenas, trim_heap)
limit_malloc_arenas()
fuzz_images.SIDE = 1040
limits, white = Limits(10**8, 10**9), (255, 255, 255)
for form, modes in fuzz_images.MODES.items():
    for mode in modes:
        data = fuzz_images.original(form, mode, 0)
        with Image.open(io.BytesIO(data)) as image:
            full = image.width * image.height
            image.draft(None, (1024, 1024))
            cost = decode_cost(image, full)
        decode(data, limits, white)  # what is loaded once
        trim_heap()
        resource.setrlimit(resource.RLIMIT_DATA, (data_segment_bytes() + cost, -1))
        print(form, mode, decode(data, limits, white).size)
        resource.setrlimit(resource.RLIMIT_DATA, (-1, -1))
""")
    assert len(lines) == sum(map(len, MODES.values()))
    assert {line.split(" ", 2)[2] for line in lines} == {"(1024, 1024)"}


def test_what_costs_more_than_it_says_fails_alone_and_the_next_picture_is_decoded() -> None:
    """The kernel's ceiling, in a process of its own: no picture is measured beforehand."""
    lines = run("""
import resource
import pipeline.images.decode as decoder
from pipeline.images.decode import Limits, decode
from pipeline.errors import BadImage
from pipeline.images.memory_budget import data_segment_bytes
from fuzz_images import declare, original
decoder.decode_cost = lambda image, pixels: 0
ceiling = data_segment_bytes() + 100_000_000
resource.setrlimit(resource.RLIMIT_DATA, (ceiling, ceiling))
good = original("PNG", "RGBA", 0)
for round in range(3):
    for form in ("PNG", "BMP", "TIFF", "GIF"):
        try:
            decode(declare(form, original(form, "P" if form == "GIF" else "RGB", 0), 7000, 7000),
                   Limits(50_000_000, 10**9), (255, 255, 255))
        except BadImage as error:
            print(form, error)
    assert decode(good, Limits(10**8, 10**9), (255, 255, 255)).size == (64, 64)
""")
    assert len(lines) == 12
    assert sum(ImageOutOfMemory().reason in line for line in lines) >= 3, lines


def test_an_error_of_memory_is_the_picture_s_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(self: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", exhausted)
    with pytest.raises(ImageOutOfMemory, match="WORKER_MAX_MEMORY"):
        decode(original("PNG", "RGB", 0), LIMITS, WHITE)


def test_pictures_wait_for_room_and_one_too_large_for_it_is_refused() -> None:
    budget = MemoryBudget()
    budget.set_limit(100, 10**12)
    order: list[str] = []
    hold, second = threading.Event(), threading.Event()

    def take(name: str, wanted: int) -> None:
        if name == "second":
            second.set()
        with budget.reserve(wanted):
            order.append(name)
            if name == "first":
                hold.wait(20)

    threads = [threading.Thread(target=take, args=each) for each in (("first", 70), ("second", 60))]
    threads[0].start()
    until(lambda: order == ["first"], "the first has its room", 20)
    threads[1].start()
    second.wait(20)
    with budget.reserve(30):  # what still fits does not wait
        assert order == ["first"]
    hold.set()
    for thread in threads:
        thread.join(20)
    assert order == ["first", "second"]
    with pytest.raises(BadImage, match="WORKER_MAX_MEMORY leaves"), budget.reserve(101):
        pass


def test_a_picture_within_its_limits_but_too_large_for_the_room_is_refused_with_the_way_out() -> (
    None
):
    limits = Limits(50_000_000, 10**9)
    limits.budget.set_limit(BYTES_PER_PIXEL * SIDE * SIDE, 10**12)
    assert decode(original("PNG", "RGB", 0), limits, WHITE).size == (SIDE, SIDE)
    for form in ("PNG", "WEBP", "TIFF", "BMP", "GIF"):
        data = declare(form, original(form, MODES[form][0], 0), SIDE + 1, SIDE)
        with pytest.raises(BadImage, match="raise it, or make the image smaller"):
            decode(data, limits, WHITE)


def test_a_progressive_jpeg_is_charged_for_its_coefficients() -> None:
    costs = []
    for mode in ("RGB", "progressive"):
        with Image.open(io.BytesIO(original("JPEG", mode, 0))) as image:
            costs.append(decode_cost(image, 50_000_000))
    assert costs[1] - costs[0] == 8 * 50_000_000


def test_only_a_process_that_is_short_without_its_pictures_has_leaked() -> None:
    budget = MemoryBudget()
    assert not budget.over_limit()  # nothing was ever limited
    used = memory_budget.used_bytes()
    assert used is not None
    budget.set_limit(10**9, used + 500_000_000)
    assert not budget.over_limit()
    budget.set_limit(10**9, used // 2)
    assert budget.over_limit()


def test_a_picture_tried_alone_has_no_other_beside_it() -> None:
    budget = MemoryBudget()
    inside: list[str] = []
    first, entered = threading.Event(), threading.Event()

    def beside() -> None:
        with budget.reserve(1):
            first.set()
            entered.wait(20)
            inside.append("beside leaves")

    other = threading.Thread(target=beside)
    other.start()
    first.wait(20)
    threading.Timer(0.2, entered.set).start()
    with budget.exclusive():
        inside.append("alone")
        late = threading.Thread(
            target=lambda: inside.append("late") if budget_reserved(budget) else None
        )
        late.start()
        with budget.reserve(10):  # by the same thread
            late.join(0.3)
            inside.append("alone leaves")
    late.join(20)
    other.join(20)
    assert inside == ["beside leaves", "alone", "alone leaves", "late"]


def budget_reserved(budget: MemoryBudget) -> bool:
    with budget.reserve(1):
        return True
