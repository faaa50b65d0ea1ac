"""Cut out, crop tightly, pad, resize; and an honest fallback when the cut-out is no good."""

from __future__ import annotations

from importlib import util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.errors import SetupError
from pipeline.preprocess import rembg_models
from pipeline.preprocess.background_removal import load_remover
from pipeline.preprocess.prepare import Preprocessing, largest_object, prepare
from pipeline.settings import Settings

YELLOW = (250, 240, 10)
PLAIN = Preprocessing(size=(224, 224), padding=0.0, bg_color=YELLOW, rembg_model=None)
CUT = Preprocessing(size=(200, 200), padding=0.1, bg_color=YELLOW, rembg_model="toy")
WEIGHTS = Path(__file__).parents[3] / "models" / "u2net"


def removal(model: str, device: str = "auto") -> Settings:
    return Settings(_env_file=None, rembg_model=model, device=device, rembg_backend="onnxruntime")


def red_box() -> Image.Image:
    """A red box of 60x30 pixels at (20, 40) on gray, 160x100."""
    image = Image.new("RGB", (160, 100), (128, 128, 128))
    image.paste((220, 0, 0), (20, 40, 80, 70))
    return image


def keep_red(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image).astype(int)
    return Image.fromarray(((pixels[..., 0] - pixels[..., 1]) > 100).astype(np.uint8) * 255)


def is_color(image: Image.Image, at: tuple[int, int], color: tuple[int, int, int]) -> bool:
    return bool(np.abs(np.array(image.getpixel(at)) - color).max() < 12)


def test_without_removal_a_picture_is_padded_to_a_square_and_resized() -> None:
    seen = prepare(red_box(), PLAIN, None).image
    assert seen.size == (224, 224)
    assert is_color(seen, (112, 10), YELLOW)  # 160x100 leaves bands above and below
    assert is_color(seen, (2, 112), (128, 128, 128))  # and none at the sides


def test_a_cut_out_is_cropped_tightly_with_the_margin_that_was_asked_for() -> None:
    seen = np.asarray(prepare(red_box(), CUT, keep_red).image).astype(int)
    red = np.argwhere((seen[..., 0] - seen[..., 1]) > 100)
    (top, left), (bottom, right) = red.min(0), red.max(0)
    # 60 px and 6 px margin on each side are 72: the box takes 60/72 of 200, centred.
    assert abs((right - left + 1) - 200 * 60 / 72) <= 2
    assert abs((bottom - top + 1) - 200 * 30 / 72) <= 2
    assert abs(left - (199 - right)) <= 2
    assert is_color(Image.fromarray(seen.astype(np.uint8)), (2, 2), YELLOW)


def test_a_target_that_is_no_square_is_padded_to_its_own_shape() -> None:
    spec = Preprocessing(size=(300, 100), padding=0.0, bg_color=YELLOW, rembg_model=None)
    seen = prepare(Image.new("RGB", (50, 50), (220, 0, 0)), spec, None).image
    assert seen.size == (300, 100)
    red = np.argwhere(np.asarray(seen)[..., 1] < 100)
    assert abs((red[:, 1].max() - red[:, 1].min() + 1) - 100) <= 2  # still a square


@pytest.mark.parametrize(
    ("value", "words"), [(0, "almost nothing"), (255, "almost everything"), (130, "half transp")]
)
def test_an_implausible_mask_falls_back_to_the_uncut_picture_with_a_warning(
    value: int, words: str
) -> None:
    def remover(image: Image.Image) -> Image.Image:
        mask = Image.new("L", image.size, value)
        if value == 130:
            mask.paste(0, (0, 0, image.width // 2, image.height))
        return mask

    prepared = prepare(red_box(), CUT, remover)
    assert prepared.warning is not None
    assert words in prepared.warning
    uncut = prepare(red_box(), Preprocessing((200, 200), 0.0, YELLOW, None), None).image
    assert np.array_equal(np.asarray(prepared.image), np.asarray(uncut))


def test_u2netp_cuts_a_product_out_of_its_background(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (WEIGHTS / "u2netp.onnx").is_file(), "`make weights` fetches models/u2net/u2netp.onnx"
    monkeypatch.setenv("U2NET_HOME", str(WEIGHTS))
    image = Image.new("RGB", (320, 320), (120, 150, 120))
    ImageDraw.Draw(image).ellipse((90, 70, 230, 260), fill=(200, 30, 40))
    spec = Preprocessing((224, 224), 0.1, (255, 255, 255), "u2netp")
    prepared = prepare(image, spec, load_remover(removal("u2netp", "cpu"), threads=1))
    assert prepared.warning is None
    assert is_color(prepared.image, (4, 4), (255, 255, 255))
    assert is_color(prepared.image, (112, 112), (200, 30, 40))


def test_missing_rembg_is_a_sentence_with_both_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = util.find_spec
    monkeypatch.setattr(
        rembg_models, "find_spec", lambda name: None if name == "rembg" else real(name)
    )
    with pytest.raises(SetupError, match=r"rembg is not installed.*pip.*USE_BG_REMOVAL=false"):
        load_remover(removal("u2net"), threads=1)


def test_missing_weights_name_the_file_and_the_ways_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(SetupError) as caught:
        load_remover(removal("u2netp"), threads=1)
    for words in (str(tmp_path / "u2netp.onnx"), "U2NET_HOME", "USE_BG_REMOVAL=false"):
        assert words in str(caught.value)


def test_an_unknown_removal_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SetupError, match=r"REMBG_MODEL=u2nett is unknown.*u2netp"):
        load_remover(removal("u2nett"), threads=1)


def test_missing_onnxruntime_names_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = util.find_spec
    monkeypatch.setattr(
        rembg_models, "find_spec", lambda name: None if name == "onnxruntime" else real(name)
    )
    with pytest.raises(SetupError, match=r"onnxruntime is not installed.*'\.\[cpu\]'"):
        load_remover(removal("u2net"), threads=1)


def test_cuda_that_onnxruntime_does_not_have_is_refused_and_never_the_cpu_in_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """rembg#600: both packages installed, and nobody notices that the GPU idles."""
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(SetupError, match=r"DEVICE=cuda.*imgrec\[gpu\]"):
        load_remover(removal("u2netp", "cuda"), threads=1)


def test_cuda_that_does_not_start_is_refused_and_never_the_cpu_in_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """onnxruntime falls back to the CPU in silence when a CUDA library is missing."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine's onnxruntime has CUDA")
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setenv("U2NET_HOME", str(WEIGHTS))
    with pytest.raises(SetupError, match="could not start on CUDA"):
        load_remover(removal("u2netp", "cuda"), threads=1)


def test_broken_weights_are_a_sentence_with_the_ways_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    monkeypatch.setenv("MODEL_CHECKSUM_DISABLED", "1")  # or rembg would download them again
    (tmp_path / "u2netp.onnx").write_bytes(b"no model")
    with pytest.raises(SetupError) as caught:
        load_remover(removal("u2netp", "cpu"), threads=1)
    assert str(tmp_path / "u2netp.onnx") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_mask_s_soft_edge_is_laid_on_the_background_colour() -> None:
    def half(image: Image.Image) -> Image.Image:
        mask = Image.new("L", image.size, 0)
        mask.paste(255, (20, 20, 140, 80))
        mask.paste(192, (20, 20, 24, 80))
        return mask

    spec = Preprocessing((120, 60), 0.0, YELLOW, "toy")
    seen = prepare(Image.new("RGB", (160, 100), (0, 0, 0)), spec, half).image
    mixed = tuple(round(channel * (1 - 192 / 255)) for channel in YELLOW)
    assert is_color(seen, (1, 30), mixed)
    assert is_color(seen, (60, 30), (0, 0, 0))


def test_the_same_picture_gives_the_same_bytes() -> None:
    """A fingerprint promises it: vectors of two workers must be comparable."""
    first, second = (prepare(red_box(), CUT, keep_red).image.tobytes() for _ in range(2))
    assert first == second


def test_only_the_largest_object_of_a_mask_stays_with_its_soft_edge() -> None:
    values = np.zeros((60, 80), np.uint8)
    values[10:30, 10:40] = 255
    values[9, 10:40] = 90  # the edge
    values[40:50, 60:70] = 255  # another one
    values[45, 5] = 200
    kept = np.asarray(largest_object(Image.fromarray(values)))
    assert (kept[:31, :45] == values[:31, :45]).all()
    assert not kept[36:].any()


@pytest.mark.parametrize("value", [0, 255])
def test_a_mask_of_one_object_or_none_stays_as_it_is(value: int) -> None:
    mask = Image.new("L", (20, 20), value)
    assert largest_object(mask).tobytes() == mask.tobytes()
