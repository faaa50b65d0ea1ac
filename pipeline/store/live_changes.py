"""Images that were added to the published index or removed from it between two rebuilds."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.index.live_changes import AddedImage, Changes, RemovedImage, changes_seen
from pipeline.index.versions import Version
from pipeline.names import nfc
from pipeline.store.backend import Row
from pipeline.store.catalogue_import import NAME as PRODUCTS
from pipeline.store.database import count_change, revision
from pipeline.store.repository import Repository
from pipeline.vector_bytes import from_bytes, to_bytes

NAME = "live changes"  # of the revision


class LiveChanges(Repository):
    """The changes since the last rebuilds, in the database that all workers share."""

    def revision(self) -> int:
        """Return a number that every change changes."""
        return self._database.revision(NAME)

    def all(self) -> Changes:
        """Read all changes in their order."""
        with self._database.transaction(read_only=True) as tx:
            n_changes = revision(tx, NAME)
            rows = tx.rows("SELECT * FROM live_changes ORDER BY n")
        return Changes(n_changes, tuple(map(_change, rows)))

    def add(self, image: AddedImage, version: Version) -> None:
        """Add an image to a published version, and to its product."""
        vector = to_bytes(image.vector)
        with self._database.transaction() as tx:
            # First, as an import does: in PostgreSQL, two that lock the same rows in another order
            # end each other. And who waits for an import has nobody wait for themselves.
            count_change(tx, PRODUCTS)
            count_change(tx, NAME, after=max(0, changes_seen(version)))
            tx.rows("DELETE FROM live_changes WHERE path = ?", (image.path,))
            tx.rows(
                "INSERT INTO live_changes VALUES (?, (SELECT n FROM revisions WHERE name = ?),"
                " now_s(), ?, ?, ?, ?, ?, ?)",
                (
                    *(image.path, NAME, image.product_id, image.size, image.mtime_ns),
                    *(image.sha256, image.fingerprint, vector),
                ),
            )
            tx.rows(
                "INSERT INTO product_images VALUES (?, ?)"
                " ON CONFLICT (filename) DO UPDATE SET product_id = excluded.product_id",
                (nfc(image.path), image.product_id),
            )

    def remove(self, images: Sequence[RemovedImage], version: Version) -> None:
        """Remove images from a published version, all at once."""
        with self._database.transaction() as tx:
            count_change(tx, NAME, after=max(0, changes_seen(version)))
            tx.many("DELETE FROM live_changes WHERE path = ?", [(each.path,) for each in images])
            tx.many(
                "INSERT INTO live_changes VALUES (?, (SELECT n FROM revisions WHERE name = ?),"
                " now_s(), ?, ?, ?, '', '', NULL)",
                [(each.path, NAME, each.product_id, each.size, each.mtime_ns) for each in images],
            )

    def undo(self, version: Version) -> int:
        """Forget the changes that a version's rebuild has not seen; return how many they were."""
        column, last = _last_seen(version)
        with self._database.transaction() as tx:
            rows = tx.rows(f"DELETE FROM live_changes WHERE {column} > ? RETURNING path", (last,))
            if rows:
                count_change(tx, NAME)
        return len(rows)

    def forget_added(self, version: Version) -> None:
        """Forget the images that were added before a version's rebuild, which has taken them in."""
        column, last = _last_seen(version)
        self._write(f"DELETE FROM live_changes WHERE {column} <= ? AND vector IS NOT NULL", (last,))


def _last_seen(version: Version) -> tuple[str, float]:
    """Return the column and the last value of the changes that a version's rebuild has seen."""
    seen = changes_seen(version)
    return ("n", seen) if seen >= 0 else ("changed_at", version.manifest["job_created_at"])


def _change(row: Row) -> AddedImage | RemovedImage:
    if row["vector"] is None:
        return RemovedImage(
            *(row["path"], row["product_id"], row["bytes"], row["mtime_ns"]),
            *(row["changed_at"], row["n"]),
        )
    return AddedImage(
        row["path"],
        row["product_id"],
        row["bytes"],
        row["mtime_ns"],
        row["sha256"],
        row["fingerprint"],
        from_bytes(row["vector"]),
        row["changed_at"],
        row["n"],
    )
