"""Commands on a host that has no copy of what is in the store."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from inline_worker import InlineWorker
from s3_server import READER, READER_SECRET, S3Server

from cli.main import main
from cli.wiring import Wiring
from workers.resources import Resources


@pytest.fixture
def address(s3: S3Server) -> str:
    return f"s3://shop/{uuid.uuid4().hex}"


@pytest.fixture
def inline_worker(inline_worker: InlineWorker, address: str, tmp_path: Path) -> InlineWorker:
    """The workers of one host have published two versions, planned on another."""
    inline_worker.start_again(artifacts_url=address)
    inline_worker.toy.versions = elsewhere(inline_worker, tmp_path, "planner").versions
    inline_worker.rebuild()
    inline_worker.toy.draw("new.png", seed=77)
    inline_worker.rebuild()
    return inline_worker


def elsewhere(inline_worker: InlineWorker, tmp_path: Path, name: str = "host") -> Resources:
    settings = inline_worker.resources.settings.model_copy(update={"data_dir": tmp_path / name})
    return Resources(
        settings, inline_worker, cache=inline_worker.memory, clip=inline_worker.resources.clip
    )


@dataclass(frozen=True)
class Done:
    code: Any
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command on a host, as its entry point does."""

    def run(resources: Resources, *args: str) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(list(args), Wiring(resources))
        return Done(end.value.code, *capsys.readouterr())

    return run


def answer(run: Run, resources: Resources, *args: str) -> Any:
    done = run(resources, *args, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_versions_are_listed_described_and_rolled_back(
    run: Run, inline_worker: InlineWorker, tmp_path: Path
) -> None:
    here = elsewhere(inline_worker, tmp_path)
    listing = answer(run, here, "index", "list")
    assert [each["version"] for each in listing["versions"]] == ["v0001", "v0002"]
    assert listing["current"] == "v0002"
    assert answer(run, here, "index", "rollback") == {"from": "v0002", "to": "v0001", "undone": 0}
    assert not list((tmp_path / "host").rglob("index.bin"))  # nothing was fetched for that
    assert answer(run, elsewhere(inline_worker, tmp_path), "index", "info")["images"] == 20


def test_the_published_version_is_measured_also_after_this_host_had_an_older_one(
    run: Run, inline_worker: InlineWorker, tmp_path: Path
) -> None:
    here = elsewhere(inline_worker, tmp_path)
    here.versions.rollback()
    assert answer(run, here, "evaluate-index", "--k", "1")["index_version"] == "v0001"
    elsewhere(inline_worker, tmp_path, "another").versions.rollback("v0002")
    again = elsewhere(inline_worker, tmp_path)
    assert answer(run, again, "evaluate-index", "--k", "1")["index_version"] == "v0002"


def rows(run: Run, resources: Resources) -> dict[str, dict[str, Any]]:
    done = run(resources, "check", "--no-model", "--json")
    return {row["name"]: row for row in json.loads(done.out)["checks"]}


def test_check_tries_the_store_and_loads_the_version(
    run: Run, inline_worker: InlineWorker, tmp_path: Path, address: str
) -> None:
    table = rows(run, elsewhere(inline_worker, tmp_path))
    assert table["artifacts"]["found"] == f"{address} answers, with conditional puts"
    assert table["index"]["found"].startswith("v0002, 21 images")


def test_check_names_a_store_that_may_not_be_written(
    run: Run, inline_worker: InlineWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
    row = rows(run, elsewhere(inline_worker, tmp_path))["artifacts"]
    assert (row["state"], row["next"]) == (
        "error",
        "correct ARTIFACTS_URL in .env, then: imgrec check",
    )
    assert "refuses access" in row["found"]
    assert READER_SECRET not in row["found"]


def test_without_a_store_nothing_of_it_is_checked(
    run: Run, inline_worker: InlineWorker, tmp_path: Path
) -> None:
    inline_worker.start_again(artifacts_url="")
    assert "artifacts" not in rows(run, elsewhere(inline_worker, tmp_path))


def test_up_does_not_start_at_a_store_that_is_none(run: Run, inline_worker: InlineWorker) -> None:
    inline_worker.start_again(artifacts_url="https://shop.example/imgrec")
    done = run(inline_worker.resources, "up")
    assert done.code == 2
    assert "ARTIFACTS_URL cannot be used" in done.err


def test_heads_are_listed_from_the_store(
    run: Run, inline_worker: InlineWorker, tmp_path: Path, address: str
) -> None:
    done = run(elsewhere(inline_worker, tmp_path), "heads")
    assert f"No trained heads in '{address}'" in done.err.replace("\n", " ")
