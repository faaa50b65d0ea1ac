"""Background removal in MNN: rembg's own masks, or none of MNN's."""

from __future__ import annotations

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rembg_settings import settings

from pipeline.errors import SetupError
from pipeline.measure_once import probe_images
from pipeline.preprocess import background_removal, mnn
from pipeline.preprocess.background_removal import MASK_BOUND, iou, load_remover

ROOT = Path(__file__).parents[3]


pytestmark = pytest.mark.usefixtures("u2netp")


class Blank:
    """A network that sees nothing but the top."""

    def __init__(self, weights: Path, onnx_session: Any, threads: int, at_once: int) -> None:
        self.get_inputs = onnx_session.get_inputs

    def run(self, _: None, feed: dict[str, Any]) -> list[np.ndarray]:
        found = np.zeros((1, 1, 320, 320), np.float32)
        found[:, :, :9] = 1
        return [found]


def test_the_masks_are_onnxruntime_s_also_from_several_threads_at_once(tmp_path: Path) -> None:
    exact = load_remover(settings(tmp_path, "onnxruntime"), threads=1)
    other = load_remover(settings(tmp_path, "mnn"), threads=1, at_once=2)
    pictures = probe_images()[:6]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(other, pictures))
    for picture, mask in zip(pictures, found, strict=True):
        wanted = exact(picture)
        assert iou(wanted, mask) > 0.999
        assert np.abs(np.asarray(wanted, int) - np.asarray(mask, int)).max() <= 3


def test_a_call_uses_the_threads_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """rembg takes no notice of options that it does not know by name."""
    session = background_removal._load_session("u2netp", 1, "cpu")
    assert session.inner_session.get_session_options().intra_op_num_threads == 1


def test_what_was_measured_once_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []

    def speedup(*_: object) -> float:
        measured.append(1)
        return 2.0

    made: list[int] = []
    network = mnn.Network

    def count(*args: Any) -> mnn.Network:
        made.append(1)
        return network(*args)

    monkeypatch.setattr(background_removal, "speedup", speedup)
    monkeypatch.setattr(mnn, "Network", count)
    for _ in range(2):
        load_remover(settings(tmp_path, "auto"), threads=1)(Image.new("RGB", (64, 64)))
    assert (len(measured), len(made)) == (1, 3)  # the measured one is let go


def test_one_that_is_no_faster_here_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_removal, "speedup", lambda *_: 1.05)
    load_remover(settings(tmp_path, "auto"), threads=1)
    monkeypatch.setattr(mnn, "Network", None)  # not even made, from now on
    load_remover(settings(tmp_path, "auto"), threads=1)(probe_images()[0])


def test_other_masks_are_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnn, "Network", Blank)
    picture = probe_images()[0]
    wanted = load_remover(settings(tmp_path, "onnxruntime"), threads=1)(picture)
    assert np.array_equal(
        load_remover(settings(tmp_path, "auto"), threads=1)(picture), np.asarray(wanted)
    )
    with pytest.raises(SetupError, match=rf"other masks .*{MASK_BOUND}.*REMBG_BACKEND=auto"):
        load_remover(settings(tmp_path, "mnn"), threads=1)


def test_weights_that_it_cannot_read_are_onnxruntime_s_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mnn, "CONVERT", "import sys; sys.exit('no such operator')")
    with caplog.at_level(logging.WARNING):
        remove = load_remover(settings(tmp_path, "auto"), threads=1)
    assert "goes on without MNN" in caplog.text
    assert np.asarray(remove(probe_images()[0])).any()
    with pytest.raises(SetupError, match=r"no such operator\): set REMBG_BACKEND=onnxruntime"):
        load_remover(settings(tmp_path, "mnn"), threads=1)


def test_asked_for_by_name_it_is_never_left_out_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for more in ({"rembg_model": "isnet-general-use"}, {"device": "cuda"}):
        with pytest.raises(SetupError, match=r"REMBG_BACKEND=mnn is for .*u2netp.* on a CPU"):
            load_remover(settings(tmp_path, "mnn", **more), threads=1)
    monkeypatch.setattr(background_removal, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match="MNN is not installed: run `pip install MNN`"):
        load_remover(settings(tmp_path, "mnn"), threads=1)


def test_it_prints_nothing_between_a_command_s_answer(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from pipeline.preprocess.background_removal import load_remover
from pipeline.settings import Settings
settings = Settings(_env_file=None, rembg_model="u2netp", device="cpu", rembg_backend="mnn",
                    data_dir=Path(sys.argv[1]))
from PIL import Image
load_remover(settings, threads=1)(Image.new("RGB", (64, 64)))
print("answer")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "answer\n"), done.stderr
