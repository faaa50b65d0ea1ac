"""Workers with another database or folder get no work of this web server, and it says so."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from live_stack import LiveStack, draw_product, until
from web_stand import HttpClient, serve_here

from pipeline.settings import Settings
from pipeline.store.database import Database
from pipeline.store.feeds import Origin
from pipeline.store.identity import Identifier
from web import agreement
from web.answers import Answers
from workers import announcer
from workers.announcer import Announcer
from workers.dispatch import CeleryDispatcher
from workers.registry import WorkerRegistry
from workers.resources import Resources

ANSWER = {  # to any question
    "query_id": "x",
    "index_version": "v0001",
    "matches": [],
    "category": {"label": "shoe", "confidence": 1.0},
    "attributes": [],
}
QUEUES = ("embed", "index", "query")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveStack]:
    stack = LiveStack(tmp_path / "redis", tmp_path)
    stack.folder.mkdir()
    stack.start_redis()
    yield stack
    stack.close()


@pytest.fixture
def mine(settings: Settings, server: LiveStack) -> Settings:
    """The settings of the web server; it has an index and heads."""
    mine = settings.model_copy(update={"redis_url": server.environment["REDIS_URL"]})
    mine.index_dir.mkdir(parents=True)
    (mine.index_dir / "CURRENT").write_text("v0001\n")
    head = mine.models_dir / "shoe" / "color" / "model.pt"
    head.parent.mkdir(parents=True)
    head.touch()
    return mine


class Worker:
    """Says what it works with, as every worker does."""

    def __init__(self, settings: Settings, queues: Sequence[str] = QUEUES) -> None:
        self._stopping = threading.Event()
        identifier = Identifier(settings, Database(settings.database_url))
        call = WorkerRegistry(settings.redis_url)
        speaker = Announcer(call, "query@elsewhere", queues, identifier, self._stopping)
        self._thread = threading.Thread(target=speaker.run)
        self._present = call.present

    def __enter__(self) -> None:
        self._thread.start()
        until(self._present, "the worker has spoken", 30)

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()


@pytest.fixture
def client(mine: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpClient]:
    async def ask(self: Answers, task: str, *_: object, **options: object) -> tuple[str, object]:
        return "x", ANSWER

    monkeypatch.setattr(Answers, "ask", ask)  # what would be answered if it was sent
    monkeypatch.setattr(agreement, "KEPT_S", 0.0)
    monkeypatch.setattr(announcer, "EVERY_S", 0.2)
    with serve_here(Resources(mine, CeleryDispatcher(mine.redis_url))) as (client, _):
        yield client


def test_no_work_goes_to_workers_of_another_folder(
    client: HttpClient, mine: Settings, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    (other / "data").mkdir(parents=True)
    (other / "models").mkdir()
    theirs = mine.model_copy(
        update={
            "data_dir": other / "data",
            "models_dir": other / "models",
            "database_url": f"sqlite:///{other}/data/app.db",
        }
    )
    draw_product(tmp_path / "products" / "a.jpg", 1)
    draw_product(tmp_path / "photo.jpg", 2)
    photo = (tmp_path / "photo.jpg").read_bytes()
    with Worker(theirs):
        answers = {
            "data": [client.search(text="shoe"), client.post("/v1/index/rollback", json={})],
            "models": [client.upload("/v1/classify", photo, use_trained="true")],
            "database": [
                client.post("/v1/jobs", json={"folder": str(tmp_path / "products")}),
                client.post(
                    "/v1/feedback", json={"query_id": "x", "product_id": "y", "action": "like"}
                ),
            ],
        }
        setting = {"data": "DATA_DIR is", "models": "MODELS_DIR is", "database": "DATABASE_URL is"}
        for part, refused in answers.items():
            for answer in refused:
                assert answer.status == 503, answer.body
                detail = answer.detail
                assert detail.startswith("Not every process at this Redis works with the same data")
                assert setting[part] in detail
                assert "for this web server but" in detail
                assert "for worker query@elsewhere" in detail
                assert str(tmp_path) not in detail  # ids tell the places apart
        assert client.get("/v1/jobs").json["jobs"] == []
        assert client.upload("/v1/classify", photo).status == 200  # no head of ours is asked for
        ready = client.get("/readyz").json
        assert ready["checks"]["same_data"] is False
        assert "same_data" in ready["missing"]
        page = client.get("/?text=shoe")
        assert page.status == 503
        assert "DATA_DIR is" in page.body.decode()
    # The worker has left.
    assert client.search(text="shoe").status == 200
    assert client.get("/?text=shoe").status == 200
    assert client.get("/readyz").json["checks"]["same_data"] is True


def test_no_feed_goes_to_a_fetch_worker_of_another_database(
    client: HttpClient, mine: Settings, tmp_path: Path
) -> None:
    with Database(mine.database_url).transaction() as tx:
        Origin("hats").write(tx)
        tx.rows("INSERT INTO product_urls VALUES ('A', 0, 'https://shop.example/a.jpg', 'hats')")
    theirs = mine.model_copy(update={"database_url": f"sqlite:///{tmp_path}/theirs.db"})
    with Worker(theirs, ("fetch",)):
        answer = client.post("/v1/jobs", json={"folder": "feed:hats"})
        assert answer.status == 503
        assert "DATABASE_URL is" in answer.detail
        assert client.get("/v1/jobs").json["jobs"] == []


def test_workers_of_the_same_folder_get_it(client: HttpClient, mine: Settings) -> None:
    with Worker(mine):
        assert client.search(text="shoe").status == 200
        assert client.get("/readyz").json["checks"]["same_data"] is True
