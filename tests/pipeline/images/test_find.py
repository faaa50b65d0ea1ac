"""Each file and folder below the root is an image, a failure, or counted under a reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.errors import WrongUse
from pipeline.images.exclude import MAX_BYTES, Exclude
from pipeline.images.failure import Failure
from pipeline.images.find import MAX_SUFFIXES, ImageFile, LeftOut, find_images, mtime_ns


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def paths(root: Path, *exclude: str) -> list[str]:
    items = find_images(root, Exclude(exclude))
    return [item.path for item in items if isinstance(item, ImageFile)]


def failures(root: Path) -> dict[str, Failure]:
    return {item.path: item for item in find_images(root) if isinstance(item, Failure)}


def left_out(root: Path, *exclude: str) -> dict[str, int]:
    counts = LeftOut()
    list(find_images(root, Exclude(exclude), counts))
    return counts.by_reason()


@pytest.mark.parametrize(
    "suffix",
    [
        *("jpg", "JPG", "jpeg", "jpe", "jfif", "JFIF", "mpo", "png", "apng", "webp", "gif"),
        *("bmp", "dib", "tif", "tiff", "avif", "heic", "HEIC", "heif", "hif", "jxl"),
        *("jp2", "j2k", "jpx"),
    ],
)
def test_every_usual_suffix_of_an_image_is_one(tmp_path: Path, suffix: str) -> None:
    make(tmp_path, f"a.{suffix}")
    assert paths(tmp_path) == [f"a.{suffix}"]


@pytest.mark.parametrize(
    "folder",
    [
        *("@eaDir", "@EADIR", "#recycle", "@Recycle", "@Recently-Snapshot", "#snapshot"),
        *("__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found", "node_modules"),
    ],
)
def test_a_folder_of_another_program_is_left_out_and_counted_at_any_depth(
    tmp_path: Path, folder: str
) -> None:
    make(tmp_path, "a.jpg", f"{folder}/b.jpg", f"shoes/{folder}/c/d.jpg")
    assert paths(tmp_path) == ["a.jpg"]
    assert left_out(tmp_path) == {f"system folder {folder}": 2}


def test_hidden_files_and_folders_and_those_of_a_desktop_are_counted(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "._a.jpg", ".DS_Store", ".thumbnails/a.jpg", ".@__thumb/a.jpg")
    make(tmp_path, "Thumbs.db", "desktop.ini")
    assert paths(tmp_path) == ["a.jpg"]
    assert left_out(tmp_path) == {
        "hidden": 4,
        "system file Thumbs.db": 1,
        "system file desktop.ini": 1,
    }


def test_names_that_are_no_image_s_are_counted_by_suffix(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.txt", "c.TXT", "d", "e.jpg ", "f.\x1b[31m", "g.jpg.part", "h.")
    assert left_out(tmp_path) == {
        "not an image's name (.txt)": 2,
        "not an image's name (other suffixes)": 2,
        "not an image's name (.jpg )": 1,
        "not an image's name (.part)": 1,
        "not an image's name (no suffix)": 1,
    }


def test_a_million_suffixes_are_not_a_million_reasons(tmp_path: Path) -> None:
    make(tmp_path, *(f"a.{number}" for number in range(50)))
    counts = left_out(tmp_path)
    assert len(counts) == MAX_SUFFIXES + 1
    assert sum(counts.values()) == 50


def test_a_link_to_a_folder_below_the_root_is_followed(tmp_path: Path) -> None:
    make(tmp_path, ".store/2024/a.jpg", "b.jpg")
    (tmp_path / "summer").symlink_to(".store/2024")
    assert paths(tmp_path) == ["b.jpg", "summer/a.jpg"]
    assert failures(tmp_path) == {}


def test_a_linked_folder_is_followed_once(tmp_path: Path) -> None:
    make(tmp_path, "real/a.jpg")
    for name in ("one", "two", "three"):
        (tmp_path / name).symlink_to("real")
    assert paths(tmp_path) == ["one/a.jpg", "real/a.jpg"]
    assert {path: item.reason for path, item in failures(tmp_path).items()} == {
        "three": "the link leads to the same folder as 'one'",
        "two": "the link leads to the same folder as 'one'",
    }


@pytest.mark.parametrize("target", [".", "..", "../..", "../../shoes", "../../boots"])
def test_links_in_a_circle_end_and_are_told(tmp_path: Path, target: str) -> None:
    make(tmp_path, "shoes/red/a.jpg", "boots/b.jpg")
    (tmp_path / "shoes" / "red" / "link").symlink_to(target)
    (tmp_path / "boots" / "link").symlink_to("../shoes")
    images = paths(tmp_path)
    assert len(images) == len(set(images)) <= 8
    told = failures(tmp_path)
    assert told
    assert all(not item.warning and "link leads" in item.reason for item in told.values())


def test_a_web_of_links_does_not_grow_without_end(tmp_path: Path) -> None:
    """Twelve folders that link to all others have 12! ways through them."""
    folders = [tmp_path / f"f{number:02d}" for number in range(12)]
    for folder in folders:
        make(folder, "a.jpg")
        for other in folders:
            if other != folder:
                (folder / f"to-{other.name}").symlink_to(other)
    assert len(paths(tmp_path)) <= 24


def test_a_link_out_of_the_root_is_a_failure_with_its_target(tmp_path: Path) -> None:
    make(tmp_path, "root/a.jpg", "else/b.jpg", "root-2/c.jpg")
    (tmp_path / "root" / "summer").symlink_to("../else")
    (tmp_path / "root" / "twin").symlink_to("../root-2")  # begins with the same letters
    assert paths(tmp_path / "root") == ["a.jpg"]
    told = failures(tmp_path / "root")
    assert set(told) == {"summer", "twin"}
    assert str(tmp_path / "else") in told["summer"].reason


def test_what_is_wrong_with_a_folder_is_told_in_utf_8_whatever_its_name(tmp_path: Path) -> None:
    """No database takes the bytes of another encoding."""
    make(tmp_path, "root/a.jpg", "root/\udce9.jpg/b.jpg", "out-\udce4/c.jpg")
    (tmp_path / "root" / "link-\udce9").symlink_to("../out-\udce4")
    (tmp_path / "root" / "one-\udce9").symlink_to("\udce9.jpg")
    (tmp_path / "root" / "two").symlink_to("\udce9.jpg")
    told = failures(tmp_path / "root")
    assert "".join(f"{item.path}{item.reason}" for item in told.values()).encode()
    assert str(tmp_path / "out-\\xe4") in told["link-\\xe9"].reason
    assert told["two"].reason == "the link leads to the same folder as 'one-\\xe9'"
    assert told["\\xe9.jpg"].warning


@pytest.mark.parametrize("name", ["gone", "gone.jpg", "gone.txt"])
def test_a_link_to_nothing_is_a_failure_whatever_its_name(tmp_path: Path, name: str) -> None:
    """It may have been a folder's, on a disk that is not mounted."""
    make(tmp_path, "a.jpg")
    (tmp_path / name).symlink_to("/mnt/not-mounted/photos")
    assert failures(tmp_path)[name].reason == "the link leads to nothing"


def test_a_folder_with_the_name_of_an_image_is_a_warning_and_is_walked(tmp_path: Path) -> None:
    make(tmp_path, "shoe.jpg/front.jpg")
    assert paths(tmp_path) == ["shoe.jpg/front.jpg"]
    assert failures(tmp_path)["shoe.jpg"].warning


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is needed")
def test_a_folder_of_root_is_a_failure_for_others_even_lost_and_found(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "lost+found/b.jpg", "private/c.jpg")
    for name in ("lost+found", "private"):
        (tmp_path / name).chmod(0o700)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == 0 and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # the rights of the whole process, so that no test after this one has them
        try:
            os.setgid(65534)
            os.setuid(65534)
            told = failures(tmp_path)
            text = ";".join(f"{path}: {told[path].reason}" for path in sorted(told))
            os.write(writer, f"{paths(tmp_path)} {text}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    denied = "the folder cannot be read: Permission denied"
    assert text == f"['a.jpg'] lost+found: {denied};private: {denied}"


@pytest.mark.parametrize(
    ("patterns", "rest"),
    [
        (["drafts"], ["a.gif", "b.jpg", "shoes/c.gif"]),
        (["drafts/"], ["a.gif", "b.jpg", "shoes/c.gif"]),
        (["*.gif"], ["b.jpg", "drafts/d.jpg", "shoes/drafts/e.jpg"]),
        (["/drafts"], ["a.gif", "b.jpg", "shoes/c.gif", "shoes/drafts/e.jpg"]),
        (["shoes/*", "a.*"], ["b.jpg", "drafts/d.jpg"]),
        (["*", "!b.jpg"], ["b.jpg"]),
    ],
)
def test_exclude_reads_patterns_as_git_does(
    tmp_path: Path, patterns: list[str], rest: list[str]
) -> None:
    make(tmp_path, "a.gif", "b.jpg", "drafts/d.jpg", "shoes/c.gif", "shoes/drafts/e.jpg")
    assert paths(tmp_path, *patterns) == rest
    assert left_out(tmp_path, *patterns)["excluded by --exclude"]
    (tmp_path / ".imgrecignore").write_text("\n".join(patterns))
    assert paths(tmp_path) == rest
    assert left_out(tmp_path)["excluded by .imgrecignore"]


def test_a_pattern_that_begins_with_a_hash_is_no_comment_on_the_command_line(
    tmp_path: Path,
) -> None:
    make(tmp_path, "#old/a.jpg", "b.jpg")
    assert paths(tmp_path, "#old") == ["b.jpg"]


def test_a_pattern_that_matches_nothing_is_told(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.gif")
    exclude = Exclude(["*.gif", "draft", "b.*"])
    list(find_images(tmp_path, exclude))
    assert exclude.unused == ["draft"]


def test_a_folder_s_own_exclude_file_holds_below_it_and_goes_before_the_outer_one(
    tmp_path: Path,
) -> None:
    make(tmp_path, "a.gif", "shoes/b.gif", "shoes/c.jpg", "hats/c.jpg")
    (tmp_path / ".imgrecignore").write_text("*.gif")
    (tmp_path / "shoes" / ".imgrecignore").write_text("!b.gif\n/c.jpg")
    assert paths(tmp_path) == ["hats/c.jpg", "shoes/b.gif"]


@pytest.mark.parametrize("content", [b"\xff\xfe*\0.\0", b"!", b"a" * (MAX_BYTES + 1)])
def test_an_exclude_file_that_cannot_be_read_excludes_nothing_in_silence(
    tmp_path: Path, content: bytes
) -> None:
    make(tmp_path, "a.jpg", "shoes/b.jpg")
    (tmp_path / "shoes" / ".imgrecignore").write_bytes(content)
    assert paths(tmp_path) == ["a.jpg"]
    assert ".imgrecignore" in failures(tmp_path)["shoes"].reason
    (tmp_path / ".imgrecignore").write_bytes(content)
    with pytest.raises(WrongUse, match=r"\.imgrecignore"):
        paths(tmp_path)


@pytest.mark.parametrize("pattern", ["", "  ", "!"])
def test_a_pattern_that_is_none_is_refused(pattern: str) -> None:
    with pytest.raises(WrongUse, match="--exclude"):
        Exclude([pattern])


@pytest.mark.parametrize("time_ns", [-(2**70), -(2**63), -1, 0, 2**63 - 1, 2**63, 2**70])
def test_a_time_beyond_64_bits_is_the_nearest_one_within(time_ns: int) -> None:
    class Stat:
        st_mtime_ns = time_ns

    assert mtime_ns(Stat()) == max(-(2**63), min(time_ns, 2**63 - 1))  # type: ignore[arg-type]


def test_no_file_is_opened_while_a_folder_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, *(f"{number}.jpg" for number in range(20)))

    open_folder = os.open

    def refuse(place: str, flags: int = 0, *args: object, **options: object) -> int:
        assert flags & os.O_DIRECTORY, "opened"
        return open_folder(place, flags)

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(os, "open", refuse)
    assert len(paths(tmp_path)) == 20
