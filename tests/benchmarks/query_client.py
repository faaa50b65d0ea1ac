"""What the query benchmarks run beside the workers, in a process with the stack's settings.

`python query_client.py MODE JSON` prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT)]

import noop_task  # noqa: E402
from celery import current_app  # noqa: E402

from cli import query_client  # noqa: E402
from cli.wiring import Wiring  # noqa: E402
from pipeline.embed.clip import load_clip  # noqa: E402
from pipeline.images.decode import Limits, decode, read_image  # noqa: E402
from pipeline.index.live_index import PublishedIndex  # noqa: E402
from pipeline.index.versions import VersionStore  # noqa: E402
from pipeline.preprocess.prepare import Preprocessing, prepare  # noqa: E402
from pipeline.settings import load_settings  # noqa: E402
from workers.routes import QUERY_IMAGE  # noqa: E402

TOP_K = 5
PATIENCE_S = 120.0


class Bare:
    """Embed and search as a script would, in this process: no queue, no cache, no log."""

    def __init__(self) -> None:
        self.settings = load_settings()
        self.limits = Limits(self.settings.max_image_pixels, self.settings.max_image_bytes)
        self.spec = Preprocessing.from_settings(self.settings)
        self.clip = load_clip(self.settings)
        self.index = PublishedIndex(VersionStore(self.settings.index_dir)).current()

    def prepared(self, data: bytes) -> Any:
        image = decode(data, self.limits, self.settings.preprocess_bg_color)
        return prepare(image, self.spec, None).image

    def query(self, file: Path) -> list[str]:
        vector = self.clip.embed_images([self.prepared(read_image(file, self.limits))])[0]
        hits = next(self.index.search_deepening(vector, TOP_K))
        return [self.index.version.paths[row] for row, _ in hits]


def ask_imgrec(file: Path) -> list[str]:
    """Send the picture to the workers and wait: what `imgrec query` does after its imports."""
    return [match["filename"] for match in ask_whole(file)["matches"]]


def ask_whole(file: Path) -> dict[str, Any]:
    data = query_client.message(file, load_settings())
    args = (data, TOP_K)
    return query_client.PendingQuery(Wiring(), QUERY_IMAGE, args, PATIENCE_S, False).answer()


class Fresh:
    """Pictures that no cache knows: a photo with another tail behind its last byte."""

    def __init__(self, photos: list[str], folder: Path) -> None:
        self._photos = [Path(photo).read_bytes() for photo in photos]
        self._folder = folder
        self._made = 0
        self._lock = threading.Lock()
        folder.mkdir(exist_ok=True)

    def __call__(self) -> Path:
        with self._lock:
            number = self._made
            self._made += 1
        file = self._folder / f"{time.time_ns()}-{number}.jpg"
        file.write_bytes(self._photos[number % len(self._photos)] + file.name.encode())
        return file


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def latency(fresh: Fresh, count: int) -> dict[str, Any]:
    """One client: the same new picture bare and through the queue in turns, then once more.

    And the same message to a task that does nothing.
    """
    bare = Bare()
    for _ in range(5):
        ask_imgrec(fresh())
        bare.query(fresh())
        noop_task.ask(fresh().read_bytes(), TOP_K)
    rows, cpu = [], 0.0
    for number in range(count):
        file = fresh()
        turns = [("bare", lambda f=file: bare.query(f)), ("asked", lambda f=file: ask_imgrec(f))]
        taken, found = {}, {}
        for name, work in turns[:: -1 if number % 2 else 1]:
            used = time.process_time()
            taken[name], found[name] = timed(work)
            if name == "asked":
                cpu += time.process_time() - used
        if found["bare"] != found["asked"]:
            raise SystemExit(f"bare found {found['bare']}, imgrec {found['asked']}")
        again, _ = timed(lambda f=file: ask_imgrec(f))
        noise, _ = timed(lambda f=file: bare.query(f))
        empty, _ = timed(lambda f=file: noop_task.ask(f.read_bytes(), TOP_K))
        rows.append((taken["bare"], taken["asked"], again, noise, empty))
    return {"rows": rows, "client_cpu_s": cpu / count}


def steady(fresh: Fresh, seconds: float, ready: str) -> dict[str, Any]:
    """One client asks new pictures without a pause -> (when, how long, of which version)."""
    for _ in range(5):
        ask_imgrec(fresh())
    Path(ready).touch()
    rows, end = [], time.time() + seconds
    while time.time() < end:
        file, at = fresh(), time.time()
        taken, answer = timed(lambda f=file: ask_whole(f))
        rows.append((at, taken, answer["index_version"]))
    return {"rows": rows}


def throughput(fresh: Fresh, clients: int, queries: int, rounds: int) -> dict[str, Any]:
    """Many clients at once beside the batched forward pass, in turns -> pictures a second."""
    # Each stands for a process of its own, which asks after the workers when it waits for long.
    current_app.conf.broker_pool_limit = 2 * clients
    pool = ThreadPoolExecutor(clients)
    bare = Bare()
    photos = [fresh().read_bytes() for _ in range(bare.settings.embed_batch_size)]
    batch = [bare.prepared(photo) for photo in photos]
    crowd(pool, fresh, 2 * clients)  # all of them have their connections then
    bare.clip.embed_images(batch)
    rows = []
    for _ in range(rounds):
        forward = []
        for _ in range(max(1, queries // len(batch) // 2)):
            forward.append(len(batch) / timed(lambda: bare.clip.embed_images(batch))[0])
        used = time.process_time()
        asked = crowd(pool, fresh, queries)
        used = time.process_time() - used
        for _ in range(max(1, queries // len(batch) // 2)):
            forward.append(len(batch) / timed(lambda: bare.clip.embed_images(batch))[0])
        rows.append((sum(forward) / len(forward), asked, used / queries))
    return {"rows": rows}


def crowd(pool: ThreadPoolExecutor, fresh: Fresh, queries: int) -> float:
    """Let all clients ask `queries` new pictures; return the pictures a second."""
    files = [fresh() for _ in range(queries)]
    taken, _ = timed(lambda: list(pool.map(ask_imgrec, files)))
    return queries / taken


def main() -> None:
    mode, options = sys.argv[1], json.loads(sys.argv[2])
    fresh = Fresh(options.pop("photos"), Path(options.pop("folder")))
    modes = {"latency": latency, "steady": steady, "throughput": throughput}
    print(json.dumps(modes[mode](fresh, **options)))


if __name__ == "__main__":
    main()
