"""List a large store faster: its first level of prefixes side by side, with flat memory."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from pipeline.storage.object_store import KEYS_A_PAGE, ObjectInfo, ObjectStore

LISTERS = 8
PAGES_WAITING = 16
# A store whose first keys do not nearly all lie below a prefix may have any number of them at its
# root, which are only listed one page after the other.
SHARE_BELOW = 0.9

Page = list[ObjectInfo]


def list_objects(store: ObjectStore) -> Iterator[ObjectInfo]:
    """Yield all objects, in any order."""
    pages = store.pages()
    first = next(pages, [])
    below = sum("/" in item.key for item in first)
    if len(first) < KEYS_A_PAGE or below < SHARE_BELOW * len(first):
        yield from first
        for page in pages:
            yield from page
        return
    prefixes, objects = store.first_level()
    yield from objects
    for page in _side_by_side([partial(store.pages, name) for name in prefixes]):
        yield from page


def _side_by_side(listings: Sequence[Callable[[], Iterator[Page]]]) -> Iterator[Page]:
    """Yield the pages of some listings as they come; the first error ends them all."""
    waiting = iter(listings)
    results: queue.Queue[Page | BaseException | None] = queue.Queue(PAGES_WAITING)
    ended, turn = threading.Event(), threading.Lock()

    def put(item: Page | BaseException | None) -> None:
        while not ended.is_set():
            try:
                results.put(item, timeout=0.5)
                return
            except queue.Full:
                continue

    def run() -> None:
        try:
            while not ended.is_set():
                with turn:
                    listing = next(waiting, None)
                if listing is None:
                    break
                for page in listing():
                    put(page)
                    if ended.is_set():
                        return
        except BaseException as error:
            put(error)
        else:
            put(None)

    threads = [
        threading.Thread(target=run, name="list", daemon=True)
        for _ in range(min(LISTERS, len(listings)))
    ]
    for thread in threads:
        thread.start()
    try:
        n_running = len(threads)
        while n_running:
            item = results.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                n_running -= 1
            else:
                yield item
    finally:
        ended.set()
