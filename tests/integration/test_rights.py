"""A folder of another owner is a sentence with folder, user and right, before any work is lost."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_stack import BIN, LiveStack, draw_folder, draw_product, until
from preloaded import run

# Root passes every permission bit; without its capabilities it is a user like any other.
BARE = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] if os.geteuid() == 0 else []
pytestmark = pytest.mark.skipif(
    bool(BARE) and shutil.which("setpriv") is None, reason="root without setpriv passes all rights"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, model: Path) -> LiveStack:
    """A shop with an index and training images, all of it this user's."""
    stack = LiveStack(tmp_path_factory.mktemp("rights"), model)
    draw_folder(stack.products, 4)
    for label in ("red", "blue"):
        for number in range(3):
            file = stack.data / f"training/shoe/color/{label}/{number}.png"
            draw_product(file, 100 + number + 10 * (label == "red"))
    stack.environment["MODELS_DIR"] = str(stack.folder / "models")
    stack.environment["HF_HOME"] = str(stack.folder / "hub")
    stack.answer("enqueue-rebuild", str(stack.products), "--local")
    (stack.folder / "models").mkdir()
    (stack.folder / "hub").mkdir()
    (stack.data / "run").mkdir(exist_ok=True)
    (stack.data / "jobs").mkdir(exist_ok=True)
    return stack


@pytest.fixture
def shop(made: LiveStack) -> Iterator[LiveStack]:
    """The shop, whose rights are given back after the test."""
    yield made
    for path in (made.folder, *sorted(made.folder.rglob("*"))):
        path.chmod(path.stat().st_mode | (0o700 if path.is_dir() else 0o600))


def imgrec(stack: LiveStack, *args: object) -> subprocess.CompletedProcess[str]:
    command = ["imgrec", *map(str, args)]
    return run(command, cwd=stack.folder, env=stack.env(), timeout_s=200, bare=True)


def imgrec_anew(stack: LiveStack, *args: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Start Python anew: huggingface_hub reads HF_* when it is imported."""
    return subprocess.run(
        [*BARE, BIN / "imgrec", *map(str, args)],
        cwd=stack.folder,
        env=stack.env(**more),
        capture_output=True,
        text=True,
        timeout=200,
    )


def make_database(stack: LiveStack) -> None:
    stack.environment["DATABASE_URL"] = f"sqlite:///{stack.folder}/db/app.db"
    assert imgrec(stack, "jobs").returncode == 0
    # Whoever is the last to close it removes its logs.
    with contextlib.closing(sqlite3.connect(stack.folder / "db/app.db")) as database:
        database.execute("SELECT COUNT(*) FROM jobs").fetchone()


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


REBUILD = ("enqueue-rebuild", "products", "--local", "--full")
TRAIN = ("train", "--category", "shoe", "--attribute", "color", "--local", "--epochs", "1")
QUERY = ("query", "products/kind0/product-000.jpg", "--local", "--wait")
IMPORT = ("import-products", "list.csv")


@pytest.mark.parametrize(
    ("folder", "mode", "setting", "command"),
    [
        *(("data", 0o555, "DATA_DIR", command) for command in (REBUILD, ("up",))),
        *(("data/jobs", 0o555, "DATA_DIR", command) for command in (REBUILD, ("up", "--detach"))),
        ("data/run", 0o555, "DATA_DIR", ("up",)),
        ("data/faiss_index", 0o555, "DATA_DIR", REBUILD),
        ("data/faiss_index", 0o555, "DATA_DIR", ("index", "rollback", "v0001")),
        *(("data/faiss_index", 0, "DATA_DIR", c) for c in (REBUILD, QUERY, ("index", "list"))),
        ("data/faiss_index/v0001", 0, "DATA_DIR", QUERY),
        ("data/faiss_index/v0001", 0, "DATA_DIR", ("index", "info")),
        ("data/faiss_index/v0001/index.bin", 0, "DATA_DIR", QUERY),
        ("data/faiss_index/v0001/vectors.npy", 0, "DATA_DIR", QUERY),
        ("data", 0, "DATA_DIR", QUERY),
        ("data/training/shoe", 0, "DATA_DIR", TRAIN),
        ("models", 0o555, "MODELS_DIR", TRAIN),
        ("models", 0, "MODELS_DIR", ("heads",)),
        *(("db", 0o555, "DATABASE_URL", c) for c in (REBUILD, IMPORT, ("jobs",))),
        *(("db/app.db", 0o444, "DATABASE_URL", c) for c in (REBUILD, IMPORT)),
        ("db/app.db", 0, "DATABASE_URL", ("jobs",)),
        ("db/app.db-shm", 0o444, "DATABASE_URL", IMPORT),
    ],
)
def test_a_right_that_is_missing_is_one_sentence_with_code_4_and_loses_nothing(
    shop: LiveStack, folder: str, mode: int, setting: str, command: tuple[str, ...]
) -> None:
    make_database(shop)
    (shop.folder / "list.csv").write_text("product_id,price\nkind0/product-000,3\n")
    open_elsewhere = sqlite3.connect(shop.folder / "db/app.db")
    if "app.db-" in folder:  # its logs are there while it is open
        open_elsewhere.execute("SELECT COUNT(*) FROM jobs").fetchone()
    before = tree(shop.folder)
    denied = shop.folder / folder
    denied.chmod(mode)
    done = imgrec(shop, *command)
    denied.chmod(0o700)
    open_elsewhere.close()
    assert "Traceback" not in done.stderr
    assert "a bug" not in done.stderr
    assert done.returncode == 4, done.stderr
    sentence = done.stderr.strip().splitlines()[-1]
    for words in (
        f"Error: {setting} (",
        str(denied),
        f"(uid {os.geteuid()})",
        " may not ",
        "chmod",
    ):
        assert words in sentence, sentence
    assert tree(shop.folder) - before <= {"db/app.db-wal", "db/app.db-shm"}
    if command[0] == "enqueue-rebuild":
        assert all(job["state"] != "running" for job in shop.answer("jobs")["jobs"])


@pytest.mark.parametrize(
    ("command", "mode", "offline"),
    [
        (QUERY, 0, "1"),
        pytest.param(REBUILD, 0, "1", marks=pytest.mark.slow),
        pytest.param(QUERY, 0o555, "0", marks=pytest.mark.slow),  # offline, nothing is written
    ],
)
def test_a_hub_cache_that_is_denied_is_named_and_not_the_model(
    shop: LiveStack, command: tuple[str, ...], mode: int, offline: str
) -> None:
    hub = shop.folder / "hub"
    hub.chmod(mode)
    # The address of nobody: a download fails at once.
    hubs = {"HF_HUB_OFFLINE": offline, "HF_ENDPOINT": "http://[::1]:9"}
    done = imgrec_anew(shop, *command, EMBEDDING_MODEL="o/m", **hubs)
    hub.chmod(0o700)
    assert done.returncode == 4, done.stderr
    assert f"Error: HF_HOME ({hub}" in done.stderr
    assert f"(uid {os.geteuid()}) may not " in done.stderr
    assert "a bug" not in done.stderr


@pytest.mark.parametrize(
    ("folder", "mode", "row", "state"),
    [
        ("data", 0o555, "disk", "error"),
        ("data/faiss_index", 0o555, "disk", "error"),
        ("data/jobs", 0o555, "disk", "error"),
        ("data/faiss_index", 0, "index", "error"),
        ("data/training", 0, "rights", "error"),
        ("models", 0, "rights", "error"),
        ("models", 0o555, "rights", "warning"),
        ("hub", 0o555, "rights", "warning"),
        ("db", 0o555, "database", "error"),
    ],
)
def test_check_names_the_folder_the_user_and_the_right(
    shop: LiveStack, folder: str, mode: int, row: str, state: str
) -> None:
    make_database(shop)
    denied = shop.folder / folder
    denied.chmod(mode)
    start = imgrec_anew if folder == "hub" else imgrec
    done = start(shop, "check", "--no-model", "--json")
    denied.chmod(0o700)
    rows = {each["name"]: each for each in json.loads(done.stdout)["checks"]}
    assert rows[row]["state"] == state, rows[row]
    assert f"{denied}" in rows[row]["found"]
    assert f"(uid {os.geteuid()}) may not" in rows[row]["found"]
    assert rows[row]["next"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_user_without_a_name_reads_his_number_and_the_owner(shop: LiveStack) -> None:
    jobs = shop.data / "jobs"
    os.chown(jobs, 4711, 4711)
    jobs.chmod(0o755)
    done = imgrec(shop, *REBUILD)
    os.chown(jobs, 0, 0)
    assert done.returncode == 4
    assert "belongs to the user with uid 4711" in done.stderr
    assert f"as root (chown -R 0 {shop.data})" in done.stderr


def test_a_query_of_a_read_only_data_dir_is_answered(shop: LiveStack) -> None:
    """Only what has to be written needs the right."""
    shop.data.chmod(0o555)
    (shop.data / "faiss_index").chmod(0o555)
    done = imgrec(shop, *QUERY, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["matches"][0]["product_id"] == "kind0/product-000"


def test_a_worker_answers_a_query_of_an_unreadable_index_with_the_sentence(
    stack: LiveStack,
) -> None:
    draw_folder(stack.products, 3)
    stack.answer("enqueue-rebuild", str(stack.products), "--local")
    index = stack.data / "faiss_index" / "v0001"
    stack.worker("query", bare=True)
    image = str(stack.products / "kind0" / "product-000.jpg")
    index.chmod(0)
    done = stack.imgrec("query", image, "--wait", "--timeout", "100")
    index.chmod(0o755)
    assert done.returncode == 4, done.stderr
    assert f"enter the folder {index}" in done.stderr
    until(lambda: stack.imgrec("query", image, "--wait").returncode == 0, "it is mended", 60)
