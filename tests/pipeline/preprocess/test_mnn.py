"""Background removal in MNN: rembg's own masks, or none of MNN's."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from rembg_settings import WEIGHTS, settings

from pipeline.errors import SetupError
from pipeline.measure_once import probe_images
from pipeline.preprocess import background_removal, mnn, u2net
from pipeline.preprocess.background_removal import iou, load_remover

ROOT = Path(__file__).parents[3]
FILE = WEIGHTS / "u2netp.onnx"

pytestmark = pytest.mark.usefixtures("u2netp")


def test_the_masks_are_onnxruntime_s_also_from_several_threads_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_removal, "MASK_PROBES", 1)
    monkeypatch.setattr(background_removal, "speedup", lambda *_: 2.0)
    exact = load_remover(settings(tmp_path, "onnxruntime"), threads=1)
    other = load_remover(settings(tmp_path, "mnn"), threads=1, at_once=2)
    images = probe_images()[:4]
    with ThreadPoolExecutor(3) as pool:
        masks = list(pool.map(other, images))
    for image, mask in zip(images, masks, strict=True):
        expected = exact(image)
        assert iou(expected, mask) > 0.999
        assert np.abs(np.asarray(expected, int) - np.asarray(mask, int)).max() <= 3


def test_sessions_that_do_not_fit_into_memory_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnn, "MEMORY_LIMIT", 1)
    image = probe_images()[0]
    shared = u2net.make_remover("u2netp", mnn.load(FILE, 1, 3))
    with ThreadPoolExecutor(3) as pool:
        masks = list(pool.map(shared, [image] * 3))
    assert len({mask.tobytes() for mask in masks}) == 1


def test_a_converter_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnn, "CONVERT", "import time; time.sleep(600)")
    monkeypatch.setattr(mnn, "CONVERT_TIMEOUT_S", 0.1)
    with pytest.raises(SetupError, match=r"did not end within 0\.1 s\): set REMBG_BACKEND="):
        mnn.load(FILE, 1, 1)


def test_requested_by_name_it_is_never_left_out_silently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for more in ({"rembg_model": "isnet-general-use"}, {"device": "cuda"}):
        with pytest.raises(SetupError, match=r"REMBG_BACKEND=mnn is for .*u2netp.* on a CPU"):
            load_remover(settings(tmp_path, "mnn", **more), threads=1)
    monkeypatch.setattr(background_removal, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match="MNN is not installed: run `pip install MNN`"):
        load_remover(settings(tmp_path, "mnn"), threads=1)


def test_it_prints_nothing_between_a_command_s_answer_and_moves_no_descriptor(
    tmp_path: Path,
) -> None:
    code = """
import os, sys
from pathlib import Path
os.dup2 = None
from pipeline.preprocess import mnn
mnn.load(Path(sys.argv[1]), 1, 1)
print("answer")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(FILE)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "answer\n"), done.stderr
    assert "device supports" in done.stderr  # what MNN printed is not lost
