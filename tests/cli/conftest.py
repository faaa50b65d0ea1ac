"""Commands that run in this process, without servers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from inline_worker import InlineWorker

from cli import query_client
from cli.main import main
from cli.wiring import Wiring
from pipeline.settings import load_settings
from workers import query


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def object(self) -> dict[str, Any]:
        """The one JSON object on stdout; anything beside it is an error here."""
        assert self.out.count("\n") == 1, self.out
        found: dict[str, Any] = json.loads(self.out)
        return found


Run = Callable[..., Done]


@pytest.fixture
def imgrec(
    inline_worker: InlineWorker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Run]:
    """Run a command as its entry point does, with the resources of the inline worker."""
    # `cli.celery_protocol` reads the address itself.
    monkeypatch.setenv("REDIS_URL", inline_worker.resources.settings.redis_url)
    load_settings.cache_clear()

    def run(*args: object) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(arg) for arg in args], Wiring(inline_worker.resources))
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert isinstance(end.value.code, int)
        return Done(end.value.code, out, err)

    yield run
    load_settings.cache_clear()


@pytest.fixture
def answers_here(inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch) -> InlineWorker:
    """A worker of this process that answers what `imgrec add` asks a query worker."""

    class Answered:
        def __init__(self, wiring: Any, task: str, args: tuple[Any, ...], *_: Any) -> None:
            self._args = args

        def answer(self) -> dict[str, Any]:
            return query.image_vector(inline_worker.resources, *self._args)

    monkeypatch.setattr(query_client, "PendingQuery", Answered)
    return inline_worker
