"""The id map on disk: any name comes back, one at a time, and a broken line is found out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import IndexBroken
from pipeline.index import id_map
from pipeline.index.id_map import IdMap, read_id_map, take, write_id_map

NAMES = [
    "a/b.jpg",
    'quo"te.png',
    "back\\slash.png",
    "new\nline.png",
    "comma, and space.png",
    "größe/靴.webp",
    "\u2028.gif",
    "nul\x01.png",
]


@pytest.fixture(params=[1, 3, 4096])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_map, "LINES", request.param)
    monkeypatch.setattr(id_map, "BLOCK", 7 * request.param)


@pytest.mark.usefixtures("chunk")
def test_every_name_comes_back_by_row_in_order_and_in_slices(tmp_path: Path) -> None:
    file = tmp_path / "map.json"
    write_id_map(file, NAMES)
    paths = read_id_map(file)
    assert isinstance(paths, IdMap)
    assert [paths[row] for row in range(len(NAMES))] == list(paths) == NAMES
    assert (paths[-1], paths[2:4], paths[5:2]) == (NAMES[-1], NAMES[2:4], [])
    assert paths == NAMES
    assert paths != NAMES[:-1]
    assert paths != [*NAMES[:-1], "other"]
    for rows in ([0, 1, 2, 7], [6, 7, 0, 3], []):
        assert take(paths, rows) == [NAMES[row] for row in rows]
    with pytest.raises(IndexError):
        paths[len(NAMES)]


def test_the_file_is_one_json_object_as_the_layout_says(tmp_path: Path) -> None:
    write_id_map(tmp_path / "map.json", NAMES)
    names = json.loads((tmp_path / "map.json").read_text(encoding="utf-8"))
    assert names == {str(row): name for row, name in enumerate(NAMES)}


def test_a_map_that_was_written_in_one_line_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(json.dumps({"1": "b", "0": "a"}))
    assert read_id_map(tmp_path / "map.json") == ["a", "b"]


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "nonsense", "{\n}\n", '{"0": "a", "2": "b"}'),
        *('{\n"0": "a",\n"1": "b"\n', '{\n"1": "a"\n}\n', '{\n"0": "a",\n"0": "b"\n}\n'),
        '{\n"0": "a" "b"\n}\n',
    ],
)
def test_a_map_that_is_none_is_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(IndexBroken, match=r"id map .*map\.json"):
        read_id_map(tmp_path / "map.json")


def test_a_line_that_broke_is_found_when_it_is_read(tmp_path: Path) -> None:
    write_id_map(tmp_path / "map.json", ["a", "b", "c"])
    text = (tmp_path / "map.json").read_text()
    (tmp_path / "map.json").write_text(text.replace('"1": "b"', '"7": "b"'))
    paths = read_id_map(tmp_path / "map.json")
    with pytest.raises(IndexBroken, match="between rows 1 and 2"):
        paths[1]
