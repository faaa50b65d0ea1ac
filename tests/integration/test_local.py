"""Every command without Redis and without a worker: --local, and what needs neither anyway."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import threading
from pathlib import Path
from typing import Any

import pytest
from live_stack import BIN, FAILPOINTS, ROOT, draw_product, free_port, until
from preloaded import run

from tools.drawing import Product, draw

SEED = 4_242
CATALOGUE = [
    ("mug", "red"),
    ("mug", "blue"),
    ("mug", "green"),
    ("shoe", "red"),
    ("shoe", "blue"),
    ("shoe", "black"),
    ("lamp", "green"),
    ("lamp", "white"),
]


class Laptop:
    """A folder with products, and nobody who listens where Redis should be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.products = folder / "products"
        self.data = folder / "data"
        for number, (category, color) in enumerate(CATALOGUE):
            file = self.products / category / f"{color}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            draw(Product(category, color, "plain", "casual", SEED + number), 160).save(file)
        kept = {k: v for k, v in os.environ.items() if k in {"PATH", "HOME", "LANG", "TMPDIR"}}
        self.environment = {
            **kept,
            "PATH": f"{BIN}:{kept.get('PATH', '')}",
            "PYTHONPATH": str(FAILPOINTS),
            "DATA_DIR": str(self.data),
            "DATABASE_URL": f"sqlite:///{self.data}/app.db",
            "REDIS_URL": f"redis://127.0.0.1:{free_port()}/0",
            "EMBEDDING_MODEL": str(ROOT / "models" / "imgrec-mini"),
            "USE_BG_REMOVAL": "false",
            "CPU_THREADS": "1",
            "LEASE_S": "2",
            "RECONCILE_S": "0.5",
            "HF_HUB_OFFLINE": "1",
        }

    def imgrec(
        self, *args: object, typed: str = "", **more: str
    ) -> subprocess.CompletedProcess[str]:
        command = ["imgrec", *map(str, args)]
        return run(command, cwd=ROOT, env=self.environment | more, typed=typed, timeout_s=300)

    def answer(self, *args: object, **more: str) -> dict[str, Any]:
        done = self.imgrec(*args, "--json", **more)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Laptop:
    laptop = Laptop(tmp_path_factory.mktemp("laptop"))
    done = laptop.answer("enqueue-rebuild", laptop.products, "--local")
    assert (done["state"], done["embedded"]) == ("published", len(CATALOGUE))
    return laptop


def test_a_query_and_a_classification_are_answered_in_the_process(laptop: Laptop) -> None:
    image = laptop.products / "mug" / "red.jpg"
    answer = laptop.answer("query", image, "--local", "--top-k", "3")
    assert set(answer) == {"query_id", "index_version", "matches"}
    assert answer["matches"][0]["filename"] == "mug/red.jpg"
    assert laptop.answer("classify", image, "--local")["category"]["label"] == "mug"
    page = laptop.folder / "page.html"
    assert laptop.imgrec("query", image, "--local", "--html", page).returncode == 0
    assert page.read_text().count("data:image/jpeg;base64,") == 6


def test_text_finds_products_and_facts_filter_them(laptop: Laptop) -> None:
    table = laptop.folder / "products.csv"
    rows = [f"{c}/{color},{color} {c},{10 * n}" for n, (c, color) in enumerate(CATALOGUE)]
    table.write_text("product_id,title,price\n" + "\n".join(rows) + "\n")
    counts = laptop.answer("import-products", table)
    assert (counts["products"], counts["indexed"], counts["columns"]) == (8, 8, ["title", "price"])
    best = laptop.answer("query", "--text", "a blue shoe", "--local")["matches"][0]
    assert best["product_id"] == "shoe/blue"
    assert best["product"] == {"title": "blue shoe", "price": 40}
    cheap = laptop.answer(
        "query", "--text", "a blue shoe", "--local", "--where", "price<30", "--where", "price>0"
    )
    assert {match["product_id"] for match in cheap["matches"]} == {"mug/blue", "mug/green"}
    shown = laptop.imgrec("query", "--product", "shoe/red", "--local", "--explain").stdout
    assert "blue shoe" in shown
    assert "total" in shown
    assert "shoe/red" not in shown
    wrong = laptop.imgrec("query", "--text", "x", "--local", "--where", "cost<5")
    assert wrong.returncode == 2
    assert "Available columns: price, title" in wrong.stderr
    wrong = laptop.imgrec("query", "--text", "x", "--local", "--where", "price<cheap")
    assert wrong.returncode == 2
    assert "The column 'price' is a number: 'cheap' is not one." in wrong.stderr


def test_feedback_on_a_local_query_moves_the_next_one(laptop: Laptop) -> None:
    image = laptop.products / "mug" / "green.jpg"
    first = laptop.answer("query", image, "--local", "--user", "ann")
    last = first["matches"][-1]
    given = laptop.answer("feedback", first["query_id"], last["product_id"], "--like")
    assert (given["action"], given["user"], given["rank"]) == ("like", "ann", last["rank"])
    again = laptop.answer("query", image, "--local", "--user", "ann", "--explain")
    (liked,) = [m for m in again["matches"] if m["product_id"] == last["product_id"]]
    assert liked["rank"] < last["rank"]
    assert liked["explain"]["personal"] > 0
    other = laptop.answer("query", image, "--local", "--user", "bob")
    assert other["matches"] == first["matches"]
    report = laptop.answer("feedback", "report")
    assert report["actions"]["like"] == 1
    assert report["ndcg"]["queries"] == 1
    assert laptop.imgrec("feedback", "report").returncode == 0
    unknown = laptop.imgrec("feedback", "nobody", "mug/red", "--like")
    assert unknown.returncode == 2
    assert "no query nobody in the log" in unknown.stderr
    unseen = laptop.imgrec("feedback", first["query_id"], "mug/nobody", "--like")
    assert "has no match 'mug/nobody'" in unseen.stderr
    neither = laptop.imgrec("feedback", first["query_id"], "mug/red")
    assert "Give exactly one of --like, --dislike, --click and --purchase" in neither.stderr


def test_a_killed_local_rebuild_is_taken_up_where_it_was(laptop: Laptop, tmp_path: Path) -> None:
    mine = Laptop(tmp_path)
    dead = mine.imgrec(
        "enqueue-rebuild", mine.products, "--local", IMGREC_FAILPOINT="embed.after_write"
    )
    assert dead.returncode == -signal.SIGKILL
    jobs = mine.answer("jobs")["jobs"]
    assert [job["state"] for job in jobs] == ["running"]
    done = mine.answer("status", jobs[0]["job_id"], "--wait", "--local")
    assert (done["state"], done["images"]) == ("published", len(CATALOGUE))


def test_the_shell_answers_lines_in_old_and_new_spelling_and_no_line_ends_it(
    laptop: Laptop,
) -> None:
    image = laptop.products / "mug" / "red.jpg"
    lines = [
        "help",
        f"query --image {image}",
        f"query '{image}' --top-k 1",
        f"classify --image={image}",
        "query nowhere.jpg",
        'query "unclosed',
        "nonsense",
        "query",
        "",
        "# a remark",
        "cache list",
        f"rebuild --products_dir {laptop.products}",
        "index list",
        "serve",
        "quit",
        "query after the end",
    ]
    done = laptop.imgrec("serve", "--local", typed="\n".join(lines) + "\n")
    assert done.returncode == 1  # as lines failed
    assert done.stdout.count("Matches in index v0001") == 2
    assert "Category: mug" in done.stdout
    assert "published" in done.stdout
    for words in (
        "'nowhere.jpg' does not exist",
        "No closing quotation",
        "unknown command 'nonsense'",
        "Name an image, or query with --text or --product",
        "The cache does not answer",
        "this already is the imgrec shell",
    ):
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "after the end" not in done.stderr


def take_the_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the tests run in the background


def test_in_a_terminal_ctrl_c_stops_the_command_and_ctrl_d_leaves(
    laptop: Laptop, tmp_path: Path
) -> None:
    many = tmp_path / "many"
    for number in range(40):
        draw_product(many / f"{number}.jpg", seed=number)
    ours, theirs = os.openpty()
    shell = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "serve", "--local"],
        cwd=ROOT,
        env={**laptop.environment, "DATA_DIR": str(tmp_path / "data"), "TERM": "xterm"}
        | {"DATABASE_URL": f"sqlite:///{tmp_path}/app.db"}
        | {"IMGREC_FAILPOINT": "embed.after_claim!sleep3"},  # it must not be done before Ctrl-C
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=take_the_terminal,
    )
    os.close(theirs)
    seen = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):
            while data := os.read(ours, 4096):
                seen.extend(data)
                if b"\x1b[6n" in data:  # where is the cursor? a terminal answers
                    os.write(ours, b"\x1b[1;1R")

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        until(lambda: b"imgrec>" in seen, "the prompt")
        os.write(ours, b"half a line\x03")  # given up
        os.write(ours, f"rebuild {many}\r".encode())
        until(lambda: b"running" in seen, "the rebuild runs")
        before = len(seen)
        os.write(ours, b"\x03")
        until(lambda: b"Interrupted." in seen, "it stops")
        assert b"--wait --local' continues the job" in seen
        until(lambda: b"imgrec>" in seen[before:], "the next prompt")
        os.write(ours, b"jobs\r")
        until(lambda: b"Rebuilds, newest first" in seen, "the next command works")
        # Before the prompt, the terminal itself would take the end of input.
        answered = seen.index(b"Rebuilds, newest first")
        until(lambda: b"imgrec>" in seen[answered:], "the prompt after it")
        os.write(ours, b"\x04")
        assert shell.wait(60) == 0
    finally:
        shell.kill()
        shell.wait()
        os.close(ours)
    history = (tmp_path / "data" / "run" / "history").read_text()
    assert "+jobs" in history


def test_the_shell_ends_with_its_input(laptop: Laptop) -> None:
    done = laptop.imgrec("serve", "--local", typed="help")
    assert done.returncode == 0
    assert "query IMAGE" in done.stdout


def test_the_shell_without_redis_names_the_way_that_needs_none(laptop: Laptop) -> None:
    done = laptop.imgrec("serve", typed="exit\n")
    assert done.returncode == 0
    assert "'imgrec serve --local' works without Redis" in done.stderr
