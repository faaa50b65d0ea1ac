"""rembg's models, without the rest of rembg."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from rembg_settings import WEIGHTS, settings

from pipeline.errors import SetupError
from pipeline.preprocess import rembg_models
from pipeline.preprocess.background_removal import load_remover

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.usefixtures("u2netp")


def test_no_model_imports_what_rembg_needs_for_alpha_matting(tmp_path: Path) -> None:
    """numba compiles that for minutes."""
    code = """
import sys
from pathlib import Path
from PIL import Image
from pipeline.preprocess import rembg_models
from pipeline.preprocess.background_removal import load_remover
from pipeline.settings import Settings
settings = Settings(_env_file=None, rembg_model="u2netp", device="cpu", data_dir=Path(sys.argv[1]),
                    rembg_backend="onnxruntime")
load_remover(settings, threads=1)(Image.new("RGB", (64, 64)))
rembg_models.load_remover("u2netp", 1, "cpu")(Image.new("RGB", (64, 64)))
print(sorted({"numba", "pymatting", "rembg", "rembg.bg"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "[]\n", done.stderr


def test_it_knows_every_model_that_rembg_knows() -> None:
    folder = Path(str(rembg_models._import_sessions().__file__)).parent
    assert (folder.name, folder.parent.name) == ("sessions", "rembg")
    for model in ("u2net", "isnet-general-use", "birefnet-general", "bria-rmbg"):
        assert rembg_models.session_class(model).name() == model


def test_a_model_that_rembg_does_not_know_is_named_with_those_that_it_knows(tmp_path: Path) -> None:
    with pytest.raises(
        SetupError, match=r"REMBG_MODEL=u3 is unknown to rembg. Available models: .*u2netp"
    ):
        load_remover(settings(tmp_path, "auto", rembg_model="u3"), threads=1)


def test_a_model_outside_of_the_family_runs_in_rembg_s_own_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here bria-rmbg's session with u2netp's weights: the same `predict` on another size."""
    bria = rembg_models.session_class("bria-rmbg")
    monkeypatch.setattr(bria, "download_models", lambda *_: str(WEIGHTS / "u2netp.onnx"))
    monkeypatch.setattr(
        bria,
        "normalize",
        lambda self, image, mean, std, size: super(bria, self).normalize(
            image, mean, std, (320, 320)
        ),
    )
    image = Image.open(ROOT / "pipeline" / "probe_images" / "00.jpg")
    plain = load_remover(settings(tmp_path, "onnxruntime"), threads=1)(image)
    mask = load_remover(settings(tmp_path, "auto", rembg_model="bria-rmbg"), threads=1)(image)
    assert np.array_equal(mask, plain)


@pytest.mark.parametrize("content", [b"", b"not a network"])
def test_weights_that_cannot_be_loaded_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    (tmp_path / "u2netp.onnx").write_bytes(content)
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    for backend in ("auto", "onnxruntime"):
        with pytest.raises(SetupError, match=r"weights of .* u2netp could not be loaded from"):
            load_remover(settings(tmp_path, backend), threads=1)


def test_weights_that_cannot_be_downloaded_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable() -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(rembg_models.session_class("u2netp"), "download_models", unavailable)
    with pytest.raises(SetupError, match=r"nor downloaded \(no route to host\): put the file"):
        load_remover(settings(tmp_path, "auto"), threads=1)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA is available"
)
def test_cuda_that_is_missing_is_refused(tmp_path: Path) -> None:
    for model in ("u2netp", "bria-rmbg"):
        wanted = settings(tmp_path, "auto", rembg_model=model, device="cuda")
        with pytest.raises(SetupError, match="this onnxruntime has no CUDA"):
            load_remover(wanted, threads=1)
