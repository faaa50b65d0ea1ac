"""`imgrec evaluate` on the bundled model, with no server anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_pipeline import ToyPipeline

from cli.main import main
from pipeline.index.versions import seal
from pipeline.settings import Settings, load_settings
from tools.drawing import Product, draw

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "models" / "imgrec-mini")
SEED = 31_337  # not one of training's
CATEGORIES = ("mug", "shoe", "watch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("labelled")
    for category in CATEGORIES:
        (root / category).mkdir()
        for number, color in enumerate(("red", "blue", "green", "black")):
            product = Product(category, color, "plain", "casual", SEED + number)
            draw(product, 160).save(root / category / f"{color}.jpg")
    return root


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("EMBEDDING_MODEL", MODEL)
    monkeypatch.setenv("USE_BG_REMOVAL", "false")
    load_settings.cache_clear()


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    command = () if args[:1] == ("evaluate-index",) else ("evaluate",)
    with pytest.raises(SystemExit) as ended:
        main([*command, *args])
    shown = capsys.readouterr()
    return int(ended.value.code or 0), shown.out, shown.err


def as_json(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    code, out, err = run(capsys, *args, "--json")
    assert code == 0, err
    answer: dict[str, Any] = json.loads(out)
    return answer


def test_the_object_has_the_contract_s_keys_and_the_model_s_real_figures(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = as_json(capsys, str(folder), "--k", "1,3")
    assert answer["model"] == MODEL
    assert answer["queries"] == 12
    assert list(answer["precision"]) == ["1", "3"]
    assert answer["precision"]["3"] >= 0.9
    assert answer["zero_shot_accuracy"] >= 0.9
    assert set(answer["per_class"]) == set(CATEGORIES)
    assert np.array(answer["confusion"]["counts"]).sum() == 12
    low, high = answer["intervals"]["precision"]["3"]
    assert low <= answer["precision"]["3"] <= high


def test_several_models_stand_side_by_side_and_a_worse_one_looks_worse(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tiny_clip import make_tiny_clip

    tiny = tmp_path / "tiny"
    make_tiny_clip(tiny)
    answer = as_json(capsys, str(folder), "--model", MODEL, "--model", str(tiny))
    mini, random = answer["reports"]
    assert (mini["model"], random["model"]) == (MODEL, str(tiny))
    assert mini["map"] > random["map"]


def test_pictures_that_are_in_the_catalogue_find_themselves_first(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = as_json(capsys, str(folder), "--against", str(folder))
    assert answer["precision"]["1"] == 1.0


def test_a_broken_picture_is_named_and_the_rest_is_measured(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "mug" / "red.jpg").write_bytes(b"no picture")
    code, out, err = run(capsys, str(copy), "--json")
    assert code == 0
    assert "mug/red.jpg: " in err
    assert (json.loads(out)["queries"], json.loads(out)["skipped"]) == (11, 1)


def test_the_page_shows_the_confusions_of_a_bad_model_as_pictures(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tiny_clip import make_tiny_clip

    make_tiny_clip(tmp_path / "tiny")
    page = tmp_path / "page.html"
    code, out, _ = run(capsys, str(folder), "--model", str(tmp_path / "tiny"), "--html", str(page))
    assert code == 0
    assert "P@5" in out
    text = page.read_text()
    assert " taken for " in text
    assert "data:image/jpeg;base64," in text
    assert "http" not in text


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([], "Name the folder to measure"),
        (["nowhere"], "No such folder: 'nowhere'"),
        (["nowhere", "--k", "0,5"], "each number can be 1 to 1000"),
        (["nowhere", "--k", "five"], "not a list of numbers like 1,5,10"),
        (["nowhere", "--prompt", "a photo"], "has no {} for the class"),
        (
            ["nowhere", "--index", "--model", "x"],
            "--index can be combined with FOLDER, --k and --json only",
        ),
    ],
)
def test_wrong_use_is_a_sentence(
    args: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, *args)
    assert code == 2
    assert sentence in err


def publish(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, **more: Any
) -> ToyPipeline:
    """Publish an index of 300 products, made in this process with a toy encoder."""
    settings = Settings(
        _env_file=None,
        data_dir=tmp_path / "data",
        database_url=f"sqlite:///{tmp_path}/data/app.db",
        embedding_model=str(tiny),
        use_bg_removal=False,
        cpu_threads=1,
        **more,
    )
    toy = ToyPipeline(settings, tmp_path)
    for number in range(300):
        toy.draw(f"{number:03d}.png", seed=number)
    toy.rebuild()
    monkeypatch.setenv("EMBEDDING_MODEL", str(tiny))
    load_settings.cache_clear()
    return toy


def test_an_exact_index_has_all_of_the_recall(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(tmp_path, model, monkeypatch)
    answer = as_json(capsys, "evaluate-index", "--k", "1,10")
    assert (answer["index"], answer["images"], answer["queries"]) == ("Flat", 300, 300)
    assert answer["recall"] == {"1": 1.0, "10": 1.0}
    _, out, _ = run(capsys, "evaluate-index")
    assert "recall@10" in out
    code, out, err = run(capsys, "--index", "--k", "1,10", "--json")  # until the next release
    assert (code, json.loads(out)) == (0, answer)
    assert "renamed to 'imgrec evaluate-index'" in err


def test_an_inverted_index_that_looks_at_fewer_lists_is_found_out(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = publish(tmp_path, model, monkeypatch, flat_max_vectors=50)
    tuned = as_json(capsys, "evaluate-index", "--k", "10")
    assert tuned["index"].startswith("IVF")
    assert tuned["recall"]["10"] >= 0.9
    # The same index, searched as a careless one would be.
    file = toy.versions.current().folder / "manifest.json"
    manifest = json.loads(file.read_bytes())
    assert manifest["index"]["nprobe"] > 1
    manifest["index"]["nprobe"] = 1
    file.write_text(json.dumps({**manifest, "seal": seal(manifest)}))
    careless = as_json(capsys, "evaluate-index", "--k", "10")
    assert careless["recall"]["10"] < tuned["recall"]["10"] - 0.1
    low, high = careless["intervals"]["10"]
    assert low <= careless["recall"]["10"] <= high < tuned["recall"]["10"]


def test_pictures_of_a_folder_ask_the_index_if_they_are_of_its_kind(
    folder: Path,
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    publish(tmp_path, model, monkeypatch, flat_max_vectors=50)
    monkeypatch.setenv("PREPROCESS_SIZE", "64,64")
    load_settings.cache_clear()
    code, _, err = run(capsys, "evaluate-index", str(folder))
    assert code == 1
    assert "was made with" in err
    assert "64x64" in err


def test_without_an_index_there_is_nothing_to_judge(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "evaluate-index")
    assert code == 3
    assert "Rebuild index first" in err
