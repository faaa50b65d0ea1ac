"""The keys of the HTTP API: who may do what; secrets are stored as digests only."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.errors import Conflict, NotFound, WrongUse
from pipeline.store.database import count_change
from pipeline.store.repository import Repository

SCOPES = ("search", "feedback", "catalogue", "admin")  # each includes the ones before it
NAME = "api_keys"  # of the revision
KEY = re.compile(r"imgrec_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
KEY_NAME = re.compile(r"[\w.@-][\w.@ -]{0,63}")


@dataclass(frozen=True)
class ApiKey:
    """One key without its secret; times are seconds since the epoch by the database's clock."""

    id: str
    name: str
    scope: str
    sha256: str = field(repr=False)
    created_at: float
    revoked_at: float | None

    def allows(self, scope: str) -> bool:
        if self.scope not in SCOPES:  # of a later release
            return False
        return SCOPES.index(scope) <= SCOPES.index(self.scope)


@dataclass(frozen=True)
class KeyRing:
    """All keys by id, revoked ones too."""

    keys: Mapping[str, ApiKey] = field(default_factory=dict)

    def find(self, text: str) -> ApiKey | None:
        """Return the active key that a client has sent; None for any other text.

        Takes the same time whichever character of a secret is wrong.
        """
        match = KEY.fullmatch(text)
        if match is None:
            return None
        key = self.keys.get(match[1])
        digest = _digest(match[2])
        if not hmac.compare_digest(digest, key.sha256 if key else _digest("")):
            return None
        return key if key and key.revoked_at is None else None


class ApiKeys(Repository):
    """The rows of `api_keys`."""

    def create(self, name: str, scope: str) -> tuple[ApiKey, str]:
        """Create a key; return it with the text that a client sends, which nothing stores.

        Raises:
            WrongUse: the name or the scope is invalid. Conflict: the name is in use.
        """
        if not KEY_NAME.fullmatch(name):
            raise WrongUse(
                f"Invalid name of a key {name[:80]!r}: write 1 to 64 letters, digits, dots, "
                "hyphens or spaces."
            )
        if scope not in SCOPES:
            raise WrongUse(f"Unknown scope {scope[:80]!r}. Scopes: {', '.join(SCOPES)}.")
        key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        with self._database.transaction() as tx:
            rows = tx.rows(
                "INSERT INTO api_keys (id, name, scope, sha256, created_at) "
                "VALUES (?, ?, ?, ?, now_s()) ON CONFLICT DO NOTHING RETURNING *",
                (key_id, name, scope, _digest(secret)),
            )
            count_change(tx, NAME)
        if not rows:
            raise Conflict(
                f"There is a key {name!r} already: choose another name, or revoke it with "
                f"'imgrec keys revoke {name}'."
            )
        return ApiKey(**rows[0]), f"imgrec_{key_id}_{secret}"

    def all(self) -> list[ApiKey]:
        """Return every key, revoked ones too, oldest first."""
        rows = self._read("SELECT * FROM api_keys ORDER BY created_at, id")
        return [ApiKey(**row) for row in rows]

    def key_ring(self) -> KeyRing:
        return KeyRing({key.id: key for key in self.all()})

    def revoke(self, name: str) -> ApiKey:
        """Revoke the active key of this name or id.

        Raises:
            NotFound: there is none.
        """
        with self._database.transaction() as tx:
            rows = tx.rows(
                "UPDATE api_keys SET revoked_at = now_s() "
                "WHERE (name = ? OR id = ?) AND revoked_at IS NULL RETURNING *",
                (name, name),
            )
            count_change(tx, NAME)
        if not rows:
            raise NotFound(f"There is no active key {name[:80]!r}: 'imgrec keys list' shows all.")
        return ApiKey(**rows[0])

    def revision(self) -> int:
        """Return a number that every change changes."""
        return self._database.revision(NAME)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
