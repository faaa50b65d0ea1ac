"""Whom to tell when a job has ended, and whether they have heard."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.store.database import Database
from pipeline.store.queries import QUERIES


@dataclass(frozen=True)
class Webhook:
    """A message about the end of a job; state is pending, delivered or failed."""

    url: str
    state: str
    attempts: int
    error: str | None


class Webhooks:
    """The rows of `webhooks`; `Jobs.create` adds them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def take_due(self, lease_s: float) -> list[str]:
        """Return the ids of ended jobs whose webhook is to be sent now, each once in `lease_s`."""
        with self._database.transaction(read_only=True) as tx:
            if not tx.rows("SELECT 1 FROM webhooks WHERE state = 'pending' LIMIT 1"):
                return []  # the rule: no lock for nothing, every few seconds
        with self._database.transaction() as tx:
            rows = tx.rows(QUERIES["take_due_webhooks"], {"lease_s": lease_s})
        return [row["job_id"] for row in rows]

    def get(self, job_id: str) -> Webhook | None:
        with self._database.transaction(read_only=True) as tx:
            rows = tx.rows(QUERIES["get_webhook"], {"job_id": job_id})
        return Webhook(**rows[0]) if rows else None

    def record(self, job_id: str, state: str, error: str | None = None, pause_s: float = 0) -> None:
        """Count an attempt; a pending one is sent again after `pause_s`."""
        values = {"job_id": job_id, "state": state, "error": error, "pause_s": pause_s}
        with self._database.transaction() as tx:
            tx.rows(QUERIES["record_webhook"], values)
