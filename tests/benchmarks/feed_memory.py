"""Measure the memory of a large feed: its import by URL, the plan to fetch, the plan to embed.

    python tests/benchmarks/feed_memory.py 100000 1000000 [--import-only]

Each step is a process of its own, on SQLite. The feed is generated while it is served, so no step
can hold more of it than it should. No image is fetched: what would come is written into the table.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS_AT_ONCE = 1000
HEADER = "id,title,description,price,brand,availability,image_link,additional_image_link\n"


def row(number: int) -> str:
    """Return a product with two images, as a shop writes it."""
    cdn = f"https://cdn{number % 4}.shop.example/catalog/{number // 1000:04d}"
    return (
        f"SKU-{number:07d},Canvas shoe {number},A light shoe of cotton canvas no. {number},"
        f"{number % 90 + 9}.99 EUR,Brand {number % 200},in_stock,"
        f"{cdn}/{number}.jpg?v=3,{cdn}/{number}-b.jpg?v=3\n"
    )


class Handler(BaseHTTPRequestHandler):
    """Serves /ROWS/feed.csv, without a length."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(HEADER.encode())
        for start in range(0, int(self.path.split("/")[1]), ROWS_AT_ONCE):
            numbers = range(start, start + ROWS_AT_ONCE)
            self.wfile.write("".join(map(row, numbers)).encode())

    def log_message(self, *args: object) -> None:
        pass


def measure(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Return the seconds and the highest MiB of a process."""
    start = time.monotonic()
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return time.monotonic() - start, usage.ru_maxrss / 1024


def run(rows: int, port: int, import_only: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="imgrec-feed-memory-") as folder:
        environment = {
            **os.environ,
            "DATA_DIR": folder,
            "DATABASE_URL": f"sqlite:///{folder}/app.db",
            "REDIS_URL": "redis://127.0.0.1:9/0",
            "EMBEDDING_MODEL": str(ROOT / "models" / "imgrec-mini"),
            "FETCH_HOSTS": "*,127.0.0.0/8",
        }
        url = f"http://127.0.0.1:{port}/{rows}/feed.csv"
        steps = [("import", [*command("import"), url])]
        if not import_only:
            steps += [(name, command(name)) for name in ("plan_fetch", "fill", "plan_embed")]
        for name, line in steps:
            seconds, mib = measure(line, environment)
            if name != "fill":
                print(f"{rows:>9,} rows  {name:<10}  {seconds:7.1f} s  {mib:7.1f} MiB", flush=True)


def command(step: str) -> list[str]:
    return [sys.executable, __file__, "--step", step]


def step(name: str, *args: str) -> None:
    """Do one step in this process."""
    sys.path.insert(0, str(ROOT))
    from pipeline.index.versions import VersionStore
    from pipeline.rebuild.plan_feed import plan_fetch, plan_fetched
    from pipeline.settings import load_settings
    from pipeline.store.database import Database
    from pipeline.store.feeds import Feeds
    from pipeline.store.jobs import Jobs

    settings = load_settings()
    database = Database(settings.database_url)
    jobs, feeds = Jobs(database), Feeds(database)
    if name == "import":
        from pipeline.feeds.read_feed import read_feed
        from pipeline.feeds.staging import Staging
        from pipeline.fetch.feed_file import download_feed
        from pipeline.store.catalogue_import import import_feed
        from pipeline.store.feeds import Origin

        with download_feed(args[0], settings) as feed, Staging() as staging:
            assert feed is not None
            outcome = import_feed(
                database, read_feed(feed.path, staging), origin=Origin("shop", args[0])
            )
        assert outcome.urls == 2 * outcome.products
    elif name == "plan_fetch":
        plan_fetch("feed:shop", settings, jobs, feeds)
    elif name == "fill":
        with database.transaction() as tx:
            tx.rows(
                "INSERT INTO fetched SELECT url, 'fetched', '', "
                "lower(hex(randomblob(32))), 50000, '.jpg', '', '', 'job', now_s()"
                " FROM product_urls"
            )
            tx.rows("UPDATE shards SET state = 'done' WHERE kind = 'fetch'")
    elif name == "plan_embed":
        (job,) = jobs.open_jobs()
        claim = jobs.claim_plan(job.id, "me", 600)
        assert claim is not None
        plan_fetched(claim, settings, jobs, VersionStore(settings.index_dir), feeds)


def main() -> None:
    if sys.argv[1:2] == ["--step"]:
        step(*sys.argv[2:])
        return
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    counts = [int(arg) for arg in sys.argv[1:] if arg.isdigit()] or [100_000, 1_000_000]
    for rows in counts:
        run(rows, server.server_port, "--import-only" in sys.argv)
    server.shutdown()


if __name__ == "__main__":
    main()
