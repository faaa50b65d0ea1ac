"""`python web_client.py PHOTO CLIENTS SECONDS`: the command line's client, from many threads."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT)]

from celery import current_app  # noqa: E402

from cli import query_client  # noqa: E402
from cli.wiring import Wiring  # noqa: E402
from pipeline.settings import load_settings  # noqa: E402
from workers.routes import QUERY_IMAGE  # noqa: E402


def main() -> None:
    photo, clients, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    current_app.conf.broker_pool_limit = 2 * clients
    data, folder = photo.read_bytes(), Path(tempfile.mkdtemp())
    end = time.monotonic() + seconds

    def ask(number: int) -> list[float]:
        times, file = [], folder / f"{number}.jpg"
        while time.monotonic() < end:
            file.write_bytes(data + f"{number}-{time.time_ns()}".encode())
            start = time.perf_counter()
            message = query_client.message(file, load_settings())
            query_client.PendingQuery(Wiring(), QUERY_IMAGE, (message, 5), 60.0, False).answer()
            times.append(time.perf_counter() - start)
        return times

    with ThreadPoolExecutor(clients) as threads:
        rows = [each for times in threads.map(ask, range(clients)) for each in times]
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
