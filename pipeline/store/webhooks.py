"""Whom to tell when a job has ended, and whether they have heard."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.store.queries import QUERIES
from pipeline.store.repository import Repository


@dataclass(frozen=True)
class Webhook:
    """A message about the end of a job; state is pending, delivered or failed."""

    url: str
    state: str
    attempts: int
    error: str | None


class Webhooks(Repository):
    """The rows of `webhooks`; `Jobs.create` adds them."""

    def take_due(self, lease_s: float) -> list[str]:
        """Return the ids of ended jobs whose webhook is to be sent now, each once in `lease_s`."""
        if not self._read("SELECT 1 FROM webhooks WHERE state = 'pending' LIMIT 1"):
            return []  # the rule: no lock for nothing, every few seconds
        rows = self._write(QUERIES["take_due_webhooks"], {"lease_s": lease_s})
        return [row["job_id"] for row in rows]

    def get(self, job_id: str) -> Webhook | None:
        rows = self._read(QUERIES["get_webhook"], {"job_id": job_id})
        return Webhook(**rows[0]) if rows else None

    def record(self, job_id: str, state: str, error: str | None = None, pause_s: float = 0) -> None:
        """Count an attempt; a pending one is sent again after `pause_s`."""
        values = {"job_id": job_id, "state": state, "error": error, "pause_s": pause_s}
        self._write(QUERIES["record_webhook"], values)
