"""Where trained heads are: in MODELS_DIR, or in a store with copies on each host."""

from __future__ import annotations

import json
import logging
import tempfile
import threading
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from pipeline.atomic_files import write_atomic
from pipeline.classify.head import CATEGORY, CATEGORY_HEAD, Head, HeadName
from pipeline.classify.head_store import CLASSES, LOSS, MODEL, save_head
from pipeline.errors import ObjectMissing, ServerUnavailable
from pipeline.names import nfc, wrong_name
from pipeline.storage.follower import Follower
from pipeline.storage.object_store import ObjectStore, TooLarge

log = logging.getLogger(__name__)

MODELS = "models"
FOLLOW_S = 3.0  # between two looks for new heads
MAX_BYTES = 256 << 20  # of one head


class HeadPlace(Protocol):
    """The trained heads of one catalogue."""

    def folder(self) -> Path:
        """Return a folder with all of them, to read.

        Raises:
            ServerUnavailable, StoreRefused: they are in a store that this host has no copy of.
        """

    def save(self, name: HeadName, head: Head, loss_curve: bytes) -> Head:
        """Add a head, see `save_head`."""

    def where(self, name: HeadName) -> str:
        """Return the folder or the address of a head, to show."""


class HeadFolder:
    """MODELS_DIR itself."""

    def __init__(self, models: Path) -> None:
        self._models = models

    def folder(self) -> Path:
        return self._models

    def save(self, name: HeadName, head: Head, loss_curve: bytes) -> Head:
        return save_head(self._models, name, head, loss_curve)

    def where(self, name: HeadName) -> str:
        return str(self._models / name.folder)


class HeadObjects:
    """Objects below models/, and this host's copies of each model.pt."""

    def __init__(self, store: ObjectStore, copies: Path) -> None:
        self._store, self._copies = store, copies
        self._etags = copies / "etags.json"
        self._turn = threading.Lock()
        self._ready = False
        self._follower = Follower("heads", self.synchronize, FOLLOW_S)

    def folder(self) -> Path:
        if not self._ready:
            try:
                self.synchronize()
            except ServerUnavailable as error:
                if not self._etags.is_file():
                    raise
                log.warning("%s The copies of the heads stay in use.", error)
            self._ready = True
        self._follower.start()
        return self._copies

    def save(self, name: HeadName, head: Head, loss_curve: bytes) -> Head:
        with tempfile.TemporaryDirectory() as folder:
            head = save_head(Path(folder), name, head, loss_curve)
            # model.pt last: it alone is read, the others are for people.
            for file in (CLASSES, LOSS, MODEL):
                data = (name.place(Path(folder)) / file).read_bytes()
                self._store.put(f"{MODELS}/{name.folder.as_posix()}/{file}", data)
        self.synchronize()
        return head

    def where(self, name: HeadName) -> str:
        return f"{self._store.name}/{MODELS}/{name.folder.as_posix()}"

    def synchronize(self) -> None:
        """Fetch the heads that are new or were trained again; remove those that are gone."""
        self._copies.mkdir(parents=True, exist_ok=True)
        with self._turn, FileLock(self._copies / ".lock"):
            before = self._read_etags()
            etags = {
                each.key.removeprefix(f"{MODELS}/"): each.etag
                for each in self._store.objects(f"{MODELS}/")
                if _is_head(each.key.removeprefix(f"{MODELS}/"))
            }
            for key in [key for key in etags if etags[key] != before.get(key)]:
                try:
                    data = self._store.get(f"{MODELS}/{key}", MAX_BYTES).data
                except (ObjectMissing, TooLarge) as error:
                    log.warning("The head %s is left out: %s", key, error)
                    del etags[key]
                    continue
                write_atomic(self._copies / key, data)
            for key in before.keys() - etags.keys():
                (self._copies / key).unlink(missing_ok=True)
            if etags != before or not self._etags.is_file():
                write_atomic(self._etags, json.dumps(etags).encode())

    def _read_etags(self) -> dict[str, str]:
        """Return the ETag of each copy; what was written by nobody here counts for nothing."""
        try:
            etags: Any = json.loads(self._etags.read_bytes())
            pairs = [(str(key), str(etag)) for key, etag in etags.items()]
        except (OSError, ValueError, AttributeError):
            return {}
        return {
            key: etag for key, etag in pairs if _is_head(key) and (self._copies / key).is_file()
        }


def _is_head(key: str) -> bool:
    """Tell whether a key below models/ is that of a head, whose names are safe as folders."""
    *names, file = key.split("/")
    if file != MODEL or key != nfc(key):
        return False
    if names == [CATEGORY.folder.as_posix()]:
        return True
    return len(names) == 2 and names[0] != CATEGORY_HEAD and not any(map(wrong_name, names))
