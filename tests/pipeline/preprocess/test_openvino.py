"""Background removal in OpenVINO: nearly rembg's own masks, and the fastest backend of all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rembg_settings import WEIGHTS, settings

from pipeline.errors import SetupError
from pipeline.measure_once import Measured, probe_images
from pipeline.preprocess import background_removal, openvino
from pipeline.preprocess.background_removal import _remover, iou, load_remover

needs_openvino = pytest.mark.skipif(
    background_removal.find_spec("openvino") is None, reason="OpenVINO is for x86-64"
)


pytestmark = pytest.mark.usefixtures("u2netp")


def network(session: Any, at_once: int = 1) -> Any:
    return openvino.Network(WEIGHTS / "u2netp.onnx", session.inner_session, 1, at_once)


@needs_openvino
def test_the_masks_are_nearly_onnxruntime_s_also_from_several_threads_at_once() -> None:
    """With u2netp, whose masks bfloat16 changes most, so that it needs no large weights."""
    exact = background_removal._load_session("u2netp", 1, "cpu")
    other = background_removal._load_session("u2netp", 1, "cpu")
    other.inner_session = network(exact, at_once=2)
    pictures = probe_images()[:4]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(_remover(other), pictures))
    for picture, mask in zip(pictures, found, strict=True):
        assert iou(_remover(exact)(picture), mask) > 0.95
    assert len({mask.tobytes() for mask in found}) == len(found)


@needs_openvino
def test_its_threads_are_bound_to_no_core() -> None:
    """Each worker of a machine would bind its own to the same first cores.

    Asked of OpenVINO: it binds now and then only, so affinities show it in some runs.
    """
    made = network(background_removal._load_session("u2netp", 1, "cpu"))
    compiled = made._free.get().get_compiled_model()
    assert compiled.get_property("ENABLE_CPU_PINNING") is False


@needs_openvino
def test_weights_that_it_cannot_read_are_named(tmp_path: Path) -> None:
    session = background_removal._load_session("u2netp", 1, "cpu")
    (tmp_path / "u2netp.onnx").write_bytes(b"no network")
    with pytest.raises(SetupError, match=r"run .*u2netp.onnx .*set REMBG_BACKEND=onnxruntime"):
        openvino.Network(tmp_path / "u2netp.onnx", session.inner_session, 1, 1)


class Named:
    """A backend that draws a mask of its own, so that one sees who drew it."""

    PACKAGE, MODELS = "rembg", frozenset({"u2netp"})

    def __init__(self, shade: int) -> None:
        self.shade = shade

    def can_run(self, model: str) -> bool:
        return True

    def Network(self, weights: Path, session: Any, *_: int) -> Any:  # noqa: N802
        class Made:
            get_inputs = session.get_inputs
            shade = self.shade

            def run(self, _: None, feed: dict[str, Any]) -> list[np.ndarray]:
                found = np.zeros((1, 1, 320, 320), np.float32)
                found[:, :, : self.shade] = 1
                return [found]

        return Made()


@pytest.mark.parametrize(
    ("gains", "agreements", "rows"),
    [
        ((1.5, 2.0), (1.0, 1.0), 20),
        ((2.5, 2.0), (1.0, 1.0), 10),
        ((1.5, 2.0), (1.0, 0.9), 10),  # the faster one draws other masks
        ((1.1, 1.0), (1.0, 1.0), None),  # neither gains
    ],
)
def test_the_fastest_of_those_that_draw_the_same_masks_is_used(
    gains: tuple[float, float],
    agreements: tuple[float, float],
    rows: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backends = {"mnn": Named(10), "openvino": Named(20)}
    backends["openvino"].PACKAGE = "numpy"
    found = {
        name: Measured(name, agreement, gain)
        for name, agreement, gain in zip(backends, agreements, gains, strict=True)
    }
    monkeypatch.setattr(background_removal, "BACKENDS", backends)
    monkeypatch.setattr(background_removal, "_compare", lambda name, *_: found[name])
    picture = probe_images()[0].resize((320, 320))
    mask = np.asarray(load_remover(settings(tmp_path, "auto"), threads=1)(picture))
    if rows is None:
        plain = load_remover(settings(tmp_path, "onnxruntime"), threads=1)(picture)
        assert np.array_equal(mask, plain)
    else:
        assert (mask.max(axis=1) > 127).sum() == rows


def test_asked_for_by_name_it_is_never_left_out_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_removal, "find_spec", lambda name: True)
    for more in ({"rembg_model": "u2netp"}, {"rembg_model": "u2net", "device": "cuda"}):
        with pytest.raises(SetupError, match=r"REMBG_BACKEND=openvino is for u2net on a CPU"):
            load_remover(settings(tmp_path, "openvino", **more), threads=1)
    monkeypatch.setattr(openvino, "can_run", lambda model: False)
    with pytest.raises(SetupError, match="needs a CPU with bfloat16"):
        load_remover(settings(tmp_path, "openvino", rembg_model="u2net"), threads=1)
    monkeypatch.setattr(background_removal, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match="openvino is not installed: run `pip install openvino`"):
        load_remover(settings(tmp_path, "openvino", rembg_model="u2net"), threads=1)


@needs_openvino
def test_one_that_does_not_start_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def __init__(self) -> None:
            raise RuntimeError("no plugin for CPU")

    import openvino as package

    monkeypatch.setattr(package, "Core", Broken)
    with caplog.at_level("WARNING"):
        assert not openvino.can_run("u2net")
    assert "does not start: no plugin" in caplog.text


def test_one_that_was_measured_and_fails_now_is_onnxruntime_s_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Named):
        def Network(self, *_: Any) -> Any:  # noqa: N802
            raise SetupError("no space left")

    picture = probe_images()[0]
    wanted = load_remover(settings(tmp_path, "onnxruntime"), threads=1)(picture)
    monkeypatch.setattr(background_removal, "_compare", lambda name, *_: Measured(name, 1.0, 2.0))
    monkeypatch.setattr(background_removal, "BACKENDS", {"mnn": Named(10)})
    assert load_remover(settings(tmp_path, "auto"), threads=1)(picture) != wanted
    monkeypatch.setattr(background_removal, "BACKENDS", {"mnn": Failing(10)})
    with caplog.at_level("WARNING"):
        assert load_remover(settings(tmp_path, "auto"), threads=1)(picture) == wanted
    assert "goes on in onnxruntime. no space left" in caplog.text
    with pytest.raises(SetupError, match="no space left"):
        load_remover(settings(tmp_path, "mnn"), threads=1)


def test_a_model_that_bfloat16_spoils_never_runs_in_it() -> None:
    assert not openvino.can_run("u2netp")


@needs_openvino
@pytest.mark.skipif(not (WEIGHTS / "u2net.onnx").is_file(), reason="the large weights are optional")
def test_u2net_s_masks_hold_the_bound(tmp_path: Path) -> None:
    if not openvino.can_run("u2net"):
        pytest.skip("no bfloat16 here")
    wanted = {"rembg_model": "u2net"}
    exact = load_remover(settings(tmp_path, "onnxruntime", **wanted), threads=1)
    other = load_remover(settings(tmp_path, "openvino", **wanted), threads=1)
    picture: Image.Image = probe_images()[0]
    assert iou(exact(picture), other(picture)) >= background_removal.MASK_BOUND
