"""Whether the workers work with this server's database and folders, as commands ask, too."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial

from pipeline.errors import ServerUnavailable, SettingsDiffer
from web.shared_call import SharedCall
from workers.agreement import Mismatch, require_agreement
from workers.registry import serving
from workers.resources import Resources

KEPT_S = 2.0
ME = "this web server"
Question = tuple[tuple[str, ...], tuple[str, ...]]


class Agreement:
    """Compares every few seconds, when somebody asks."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._calls: dict[Question, SharedCall[str]] = {}
        self._differed: set[Question] = set()

    async def require(self, queues: Sequence[str], *parts: str) -> None:
        """Refuse to send work that would reach a worker with another database or folder.

        Raises:
            SettingsDiffer: there is one. ServerUnavailable: Redis does not answer.
        """
        if not parts:
            return
        question = (tuple(queues), parts)
        call = self._calls.get(question)
        if call is None:
            call = self._calls[question] = SharedCall(partial(self._compare, question), KEPT_S)
        if sentence := await call.get():
            raise SettingsDiffer(sentence)

    async def require_of_running(self, queues: Sequence[str], *parts: str) -> None:
        """Do so for what needs neither Redis nor workers: without Redis there are none.

        Raises:
            SettingsDiffer: they work with another database or folder.
        """
        with contextlib.suppress(ServerUnavailable):
            await self.require(queues, *parts)

    def _compare(self, question: Question) -> str:
        """Return what differs, in a sentence; an empty string where nothing does."""
        queues, parts = question
        registry = self._resources.dispatcher.registry
        present = registry.present() if registry is not None else []
        if registry is None or not serving(present, queues):
            return ""
        mine = self._resources.identifier.read(*parts)
        if question in self._differed:  # the workers had the time to speak once more
            sentence = str(Mismatch.find(mine, present, queues, parts, ME) or "")
        else:
            sentence = ""
            try:
                require_agreement(registry, mine, queues, parts, present, ME)
            except SettingsDiffer as error:
                sentence = str(error)
        (self._differed.add if sentence else self._differed.discard)(question)
        return sentence
