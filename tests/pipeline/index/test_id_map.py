"""The id map on disk: every path comes back by its row, from new files and from old ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import IndexBroken
from pipeline.index import id_map
from pipeline.index.id_map import IdMap, read_id_map, write_id_map

NAMES = [
    "a/b.jpg",
    'quo"te.png',
    "back\\slash.png",
    "new\nline.png",
    "comma, and space.png",
    "größe/靴.webp",
    "\u2028.gif",
    "control\x01.png",
]


@pytest.mark.parametrize("block", [1, 3, 4096])
def test_every_path_comes_back_by_row_in_order_and_in_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(id_map, "BLOCK_ROWS", block)
    write_id_map(tmp_path, NAMES)
    paths = read_id_map(tmp_path)
    assert isinstance(paths, IdMap)
    assert [paths[row] for row in range(len(NAMES))] == list(paths) == NAMES
    assert (paths[-1], paths[2:4], paths[5:2], paths[::-2]) == (
        *(NAMES[-1], NAMES[2:4], []),
        NAMES[::-2],
    )
    assert paths == NAMES
    assert paths != NAMES[:-1]
    assert paths != [*NAMES[:-1], "other"]
    for row in (len(NAMES), -len(NAMES) - 1):
        with pytest.raises(IndexError):
            paths[row]


def test_people_find_a_json_object_with_a_line_for_each_path(tmp_path: Path) -> None:
    write_id_map(tmp_path, NAMES)
    text = (tmp_path / "id_to_filename.json").read_text(encoding="utf-8")
    assert json.loads(text) == {str(row): name for row, name in enumerate(NAMES)}
    assert text.startswith('{\n"0": "a/b.jpg",\n"1": ')
    assert text.endswith('.png"\n}\n')  # the release before reads it line by line


@pytest.mark.parametrize("layout", ["lines", "one line"])
def test_a_version_of_an_older_release_has_the_json_file_only_and_is_read(
    tmp_path: Path, layout: str
) -> None:
    write_id_map(tmp_path, NAMES)
    (tmp_path / "paths.bin").unlink()
    (tmp_path / "path_ends.npy").unlink()
    if layout == "one line":
        file = tmp_path / "id_to_filename.json"
        file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8"))))
    assert read_id_map(tmp_path) == NAMES


@pytest.mark.parametrize(
    "text", ["", "{", "[]5", "[1]", "nonsense", "3", '{"0": "a", "2": "b"}', '{\n"0": "a" "b"\n}\n']
)
def test_a_json_file_that_is_not_an_id_map_is_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "id_to_filename.json").write_text(text)
    with pytest.raises(IndexBroken, match=r"id map .*id_to_filename\.json cannot be read"):
        read_id_map(tmp_path)


def test_files_that_contradict_each_other_are_a_sentence(tmp_path: Path) -> None:
    write_id_map(tmp_path, ["a", "b", "c"])
    ends = np.load(tmp_path / "path_ends.npy")
    for wrong in (ends[:-1], ends[:0], ends + 1):
        np.save(tmp_path / "path_ends.npy", wrong)
        with pytest.raises(IndexBroken, match=r"path_ends\.npy cannot be read"):
            read_id_map(tmp_path)
    np.save(tmp_path / "path_ends.npy", ends)
    (tmp_path / "paths.bin").unlink()
    with pytest.raises(IndexBroken, match="No such file"):
        read_id_map(tmp_path)
