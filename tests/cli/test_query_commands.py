"""Query and result: what is sent, what is waited for, and what it means when nothing comes."""

from __future__ import annotations

import base64
import errno
import io
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inline_worker import InlineWorker
from live_stack import draw_product
from PIL import Image

from cli import html_page, query_client
from cli.main import run
from pipeline.errors import FingerprintMismatch, IndexMissing, Overloaded, ServerUnavailable
from pipeline.images.decode import WORK_SIDE
from pipeline.images.message_image import MESSAGE_BYTES
from pipeline.settings import load_settings
from workers import answer_wait
from workers.query_messages import RemoteError
from workers.registry import Announcement

Run = Callable[..., Any]

MATCH = {"rank": 1, "product_id": "kind0/04", "filename": "kind0/04.png", "score": 0.9}
ANSWER = {
    "query_id": "the-id",
    "index_version": "v0001",
    "matches": [{**MATCH, "distance": 0.1}],
}


class Queue:
    """The query workers' side: what was sent, and what comes back."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.sent_at: list[float] = []
        self.asked: list[str] = []
        self.answers: Iterator[Any] = iter(())  # None: a wait in vain
        self.asked_workers = False
        self.now = 0.0  # seconds; waiting in vain passes them

    def monotonic(self) -> float:
        return self.now

    def send(
        self, task: str, query_id: str, args: Any, expires_s: float, *, ask_workers: bool = False
    ) -> list[Announcement]:
        self.sent.append({"task": task, "task_id": query_id, "args": args})
        self.sent_at.append(self.now)
        self.asked_workers = ask_workers
        return []

    @contextmanager
    def listening(self, query_id: str) -> Iterator[Queue]:
        self.asked.append(query_id)
        yield self

    def wait(self, seconds: float) -> Any:
        answer = next(self.answers, None)
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            self.now += seconds
        return answer


@pytest.fixture
def queue(inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch) -> Queue:
    queue = Queue()
    monkeypatch.setattr(query_client, "celery_protocol", queue)
    monkeypatch.setattr(answer_wait, "time", queue)
    return queue


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    draw_product(tmp_path / "photo.jpg", seed=1)
    return tmp_path / "photo.jpg"


@pytest.mark.parametrize("seconds", ["nan", "inf", "1e12", "-1"])
@pytest.mark.parametrize(
    "command", ["query --text a", "result x", "enqueue-rebuild .", "status x", "duplicates"]
)
def test_a_wait_without_end_is_refused(imgrec: Run, command: str, seconds: str) -> None:
    done = imgrec(*command.split(), "--timeout", seconds)
    assert done.code == 2
    assert "--timeout" in done.err


def test_without_wait_only_the_id_is_on_stdout(imgrec: Run, queue: Queue, photo: Path) -> None:
    done = imgrec("query", photo)
    assert done.code == 0
    (sent,) = queue.sent
    assert done.out.strip() == sent["task_id"]
    assert f"imgrec result {sent['task_id']}" in done.err
    assert imgrec("query", photo, "--json").object == {"query_id": queue.sent[1]["task_id"]}


def test_a_small_file_is_sent_as_it_is_in_binary_and_not_as_its_path(
    imgrec: Run, queue: Queue, photo: Path
) -> None:
    imgrec("query", photo)
    (sent,) = queue.sent
    assert sent["args"] == (photo.read_bytes(), 5)
    assert str(photo) not in str({key: sent[key] for key in sent if key != "args"})


def test_a_large_file_is_sent_at_the_size_that_workers_reduce_it_to(
    imgrec: Run, queue: Queue, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (1500, 1600, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size > 10 * MESSAGE_BYTES
    imgrec("query", tmp_path / "large.png")
    data = queue.sent[0]["args"][0]
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, max(image.size)) == ("JPEG", WORK_SIDE)


def test_the_number_of_matches_is_the_option_or_the_setting(
    imgrec: Run, queue: Queue, photo: Path
) -> None:
    imgrec("query", photo, "--top-k", "9")
    imgrec("query", photo)
    assert [sent["args"][1] for sent in queue.sent] == [9, 5]
    assert imgrec("query", photo, "--top-k", "0").code == 2


def test_an_answer_is_a_table_for_people_and_an_object_for_programs(
    imgrec: Run, queue: Queue, photo: Path
) -> None:
    queue.answers = iter([ANSWER, ANSWER])
    done = imgrec("query", photo, "--wait")
    assert done.code == 0
    for words in ("kind0/04", "0.9000", "0.1000", "v0001"):
        assert words in done.out
    done = imgrec("query", photo, "--wait", "--json")
    assert done.object == ANSWER
    assert done.err == ""
    assert queue.asked == [sent["task_id"] for sent in queue.sent]


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_what_the_model_did_not_read_is_told_beside_the_answer(
    imgrec: Run, queue: Queue, options: tuple[str, ...]
) -> None:
    warning = "The model does not know the word 'bow' and ignores it."
    queue.answers = iter([{**ANSWER, "warnings": [warning]}])
    done = imgrec("query", "--text", "a bow", "--wait", *options)
    assert done.code == 0
    assert f"Warning: {warning}" in done.err
    if options:
        assert done.object["warnings"] == [warning]


def test_a_blank_text_is_refused_before_anything_is_sent(imgrec: Run, queue: Queue) -> None:
    done = imgrec("query", "--text", "  ", "--wait")
    assert done.code == 2
    assert "contains no word" in done.err
    assert queue.sent == []


def test_a_host_without_an_index_asks_no_worker_what_it_works_with(
    inline_worker: InlineWorker, imgrec: Run, queue: Queue, photo: Path
) -> None:
    imgrec("query", photo)
    assert not queue.asked_workers
    inline_worker.rebuild()
    imgrec("query", photo)
    assert queue.asked_workers


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (IndexMissing(), 3, "FAISS index not found. Rebuild index first using 'enqueue-rebuild'"),
        (FingerprintMismatch("Index v0001 was made with another model."), 1, "another model"),
        (ServerUnavailable("Redis is gone."), 4, "Redis is gone"),
        (Overloaded("Too many queries."), 1, "Too many queries"),
    ],
)
def test_what_the_worker_raises_is_a_sentence_and_an_exit_code(
    imgrec: Run, queue: Queue, photo: Path, error: Exception, code: int, words: str
) -> None:
    queue.answers = iter([error])
    done = imgrec("query", photo, "--wait", "--json")
    assert (done.code, done.out) == (code, "")
    assert words in done.err


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["--not", "red"], ["--exclude-text", "red"]),
        (["--not=red"], ["--exclude-text=red"]),
        (["--diverse", "0.3"], ["--diversity", "0.3"]),
        (["--personalize", "ann"], ["--user", "ann"]),
        (["--feedback"], ["--demote-disliked"]),
    ],
)
def test_the_old_name_of_an_option_works_and_says_so_on_stderr(
    imgrec: Run, queue: Queue, photo: Path, old: list[str], new: list[str]
) -> None:
    queue.answers = iter([ANSWER, ANSWER])
    notes = [imgrec("query", photo, *options, "--wait", "--json").err for options in (old, new)]
    first, second = (sent["args"] for sent in queue.sent)
    assert first == second
    names = [options[0].partition("=")[0] for options in (old, new)]
    note = f"{names[0]} was renamed to {names[1]}; the old name works until the next release.\n"
    assert notes == [note, ""]
    assert names[0] not in imgrec("query", "--help").out.split()


@pytest.mark.parametrize("terminal", [False, True])
def test_the_note_about_a_renamed_setting_comes_after_the_answer_and_to_people_only(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    terminal: bool,
) -> None:
    """Scripts read the first or the last line, also where stderr is merged into stdout."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRECISION", "fp32")
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/app.db")
    load_settings.cache_clear()
    assert run(["jobs"]) == 0
    load_settings.cache_clear()
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("No rebuilds yet")
    note = "PRECISION was renamed to MODEL_PRECISION"
    assert [line.startswith(note) for line in lines[1:]] == ([True] if terminal else [])


@pytest.mark.parametrize("debug", [False, True])
def test_an_unexpected_error_of_a_worker_is_told_from_the_client_s_and_brings_its_traceback(
    imgrec: Run, queue: Queue, photo: Path, debug: bool
) -> None:
    trace = 'File "worker.py"\n  redis://me:secret@host/0\nZeroDivisionError: by nothing'
    queue.answers = iter([RemoteError("ZeroDivisionError", "by nothing", trace)])
    done = imgrec(*(["--debug"] if debug else []), "query", photo, "--wait")
    assert (done.code, done.out) == (1, "")
    sentence = (
        "Error: the worker failed unexpectedly: ZeroDivisionError: by nothing (this is a "
        "bug: run 'imgrec --debug ...' and report the worker's traceback).\n"
    )
    assert done.err == (trace.replace("secret", "***") + "\n" if debug else sentence)


def test_a_query_without_any_worker_names_the_command_that_starts_one(
    inline_worker: InlineWorker,
    imgrec: Run,
    queue: Queue,
    photo: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inline_worker, "workers", lambda *_: Counter())
    done = imgrec("query", photo, "--wait")
    assert done.code == 3  # neither a worker nor an index: the index is the first thing to mend
    inline_worker.rebuild()
    done = imgrec("query", photo, "--wait")
    assert done.code == 4
    assert "celery worker -Q query" in done.err


def test_a_query_without_an_answer_is_sent_again_under_its_id(
    imgrec: Run, queue: Queue, photo: Path
) -> None:
    queue.answers = iter([None, ANSWER])
    assert imgrec("query", photo, "--wait").code == 0
    assert len(queue.sent) == 2
    assert queue.sent[0] == queue.sent[1]


def test_a_query_is_sent_again_ever_more_rarely_and_three_times_at_most(
    imgrec: Run, queue: Queue, photo: Path
) -> None:
    assert imgrec("query", photo, "--wait", "--timeout", "300").code == 1
    assert queue.sent_at == [0, 5, 15, 35]


def test_a_query_is_not_sent_again_while_the_workers_are_behind(
    inline_worker: InlineWorker,
    imgrec: Run,
    queue: Queue,
    photo: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waiting = iter([7, 1, 0])
    monkeypatch.setattr(inline_worker, "queue_length", lambda name: next(waiting))
    queue.answers = iter([None, None, ANSWER])
    assert imgrec("query", photo, "--wait").code == 0
    assert len(queue.sent) == 1
    queue.answers = iter([None, ANSWER])
    assert imgrec("query", photo, "--wait").code == 0
    assert len(queue.sent) == 1 + 2


def test_a_look_at_the_workers_that_meets_an_outage_ends_no_question(
    inline_worker: InlineWorker,
    imgrec: Run,
    queue: Queue,
    photo: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[float] = []

    def away(*_: object) -> Counter[str]:
        looks.append(queue.now)
        raise ServerUnavailable("Redis is loading its dataset")

    monkeypatch.setattr(inline_worker, "workers", away)
    queue.answers = iter([None, None, ANSWER])
    assert imgrec("query", photo, "--wait").code == 0
    assert looks == [5, 10]
    done = imgrec("query", photo, "--wait", "--timeout", "30")
    assert done.code == 4
    assert "loading its dataset" in done.err


def test_a_wait_that_ends_names_the_command_for_later(
    imgrec: Run, queue: Queue, photo: Path
) -> None:
    done = imgrec("query", photo, "--wait", "--timeout", "0")
    assert done.code == 1
    assert f"imgrec result {queue.sent[0]['task_id']}" in done.err


def test_a_wait_whose_answer_no_command_shows_names_none(
    inline_worker: InlineWorker, imgrec: Run, queue: Queue, photo: Path
) -> None:
    inline_worker.rebuild()
    done = imgrec("add", photo, "--product", "shoe", "--timeout", "0")
    assert done.code == 1
    assert "did not answer within 0 s" in done.err
    assert "imgrec result" not in done.err
    queue.answers = iter([{"vector": "", "fingerprint": ""}])
    done = imgrec("result", "the-id")
    assert (done.code, done.out) == (2, "")
    assert "not that of a query" in done.err


def test_a_redis_that_is_away_is_exit_code_4(
    inline_worker: InlineWorker, imgrec: Run, photo: Path
) -> None:
    for command in (["query", photo], ["result", "the-id"]):
        done = imgrec(*command)
        assert (done.code, done.out) == (4, "")
        assert "Redis does not answer" in done.err


def test_the_result_of_an_earlier_query_is_shown_or_its_absence_explained(
    imgrec: Run, queue: Queue
) -> None:
    queue.answers = iter([ANSWER])
    assert imgrec("result", "the-id", "--json").object == ANSWER
    done = imgrec("result", "the-id")
    assert done.code == 1
    assert "No result for ID the-id." in done.err
    assert queue.sent == []  # asking for a result never asks the question again


def test_a_page_has_the_images_of_all_matches(
    imgrec: Run, queue: Queue, photo: Path, tmp_path: Path
) -> None:
    names = [f"kind0/{number}.png" for number in range(250)]
    matches = [{**ANSWER["matches"][0], "filename": name} for name in names]  # type: ignore[index]
    parts = [names[:100], names[100:200], names[200:]]
    queue.answers = iter([{**ANSWER, "matches": matches}, *(dict.fromkeys(p, "AA") for p in parts)])
    assert imgrec("query", photo, "--html", tmp_path / "page.html").code == 0
    assert [sent["args"][1] for sent in queue.sent[1:]] == parts  # a worker takes a hundred at once
    assert (tmp_path / "page.html").read_text().count("data:image/jpeg;base64,AA") == 250


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("file/page.html", "file' is not a folder"),
        ("file/new/page.html", "file' is not a folder"),
        ("x" * 300, "File name too long"),
        (".", "is a directory"),
        ("/dev/null", "is not a regular file"),
    ],
)
def test_a_page_that_cannot_be_written_is_refused_before_the_work(
    imgrec: Run, queue: Queue, photo: Path, tmp_path: Path, name: str, words: str
) -> None:
    (tmp_path / "file").touch()
    for command in (("query", photo), ("duplicates",), ("evaluate", tmp_path)):
        done = imgrec(*command, "--html", tmp_path / name)
        assert done.code == 2, done.err
        assert words in done.err
    assert not queue.sent


def test_a_page_that_cannot_be_written_after_all_loses_no_match(
    imgrec: Run, queue: Queue, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: Path, data: bytes) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(html_page, "write_atomic", fail)
    queue.answers = iter([ANSWER, {}])
    done = imgrec("query", photo, "--html", tmp_path / "page.html")
    assert done.code == 1
    assert "kind0/04" in done.out
    assert "page.html' cannot be written: Input/output error." in done.err


def test_a_page_is_written_with_the_pictures_that_a_worker_sends(
    imgrec: Run, queue: Queue, photo: Path, tmp_path: Path
) -> None:
    queue.answers = iter([ANSWER, {"kind0/04.png": "AAAA"}])
    done = imgrec("query", photo, "--html", tmp_path / "page.html")
    assert done.code == 0
    assert queue.sent[-1]["task"] == "imgrec.pictures"  # which workers of the last release know
    assert queue.sent[-1]["args"] == ("v0001", ["kind0/04.png"])
    assert "data:image/jpeg;base64,AAAA" in (tmp_path / "page.html").read_text()
    assert "Wrote" in done.err


@pytest.mark.parametrize(
    ("trouble", "code", "words"),
    [
        (None, 1, "the images of the matches did not arrive"),
        (ServerUnavailable("Redis is gone."), 4, "Redis is gone"),
        (Overloaded("Too many queries."), 1, "Too many queries"),
    ],
)
def test_pictures_that_do_not_come_are_a_sentence(
    imgrec: Run,
    queue: Queue,
    photo: Path,
    tmp_path: Path,
    trouble: Exception | None,
    code: int,
    words: str,
) -> None:
    queue.answers = iter([ANSWER, trouble])
    wait = ("--timeout", "0") if trouble is None else ()
    done = imgrec("query", photo, "--html", tmp_path / "page.html", *wait)
    assert done.code == code
    assert words in done.err
    assert "kind0/04" in done.out  # what was found is shown all the same
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("BMP", "bmp"),
        ("PNG", "png"),
        ("GIF", "gif"),
        ("WEBP", "webp"),
        ("JPEG", "jpeg"),
        ("TIFF", "jpeg"),
        ("AVIF", "jpeg"),
        ("JPEG2000", "jpeg"),
    ],
)
def test_the_page_shows_a_query_of_any_format_as_one_that_browsers_draw(
    imgrec: Run, queue: Queue, tmp_path: Path, kind: str, shown: str
) -> None:
    file = tmp_path / "photo"
    Image.new("RGB", (32, 32), "red").save(file, kind)
    queue.answers = iter([ANSWER, {}])
    assert imgrec("query", file, "--html", tmp_path / "page.html").code == 0
    page = (tmp_path / "page.html").read_text()
    code = page.partition(f'src="data:image/{shown};base64,')[2].partition('"')[0]
    with Image.open(io.BytesIO(base64.b64decode(code))) as image:
        assert image.format is not None
        assert image.format.lower() == shown
        red, _, blue = image.convert("RGB").getpixel((16, 16))
        assert red > 200 > 50 > blue
