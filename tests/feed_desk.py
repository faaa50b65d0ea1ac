"""A worker of this process, and a shop whose images lie behind the addresses of a feed."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from feed_server import NETWORK, FeedServer, picture
from inline_worker import InlineWorker

from pipeline.allowed_hosts import AllowedHosts
from pipeline.feeds.read_feed import read_feed
from pipeline.feeds.staging import Staging
from pipeline.rebuild.plan_feed import plan_fetch
from pipeline.settings import Settings
from pipeline.store.catalogue_import import import_feed
from pipeline.store.feeds import Origin
from pipeline.store.job import Job

FAST = {"fetch_hosts": NETWORK, "fetch_rate": 1000.0, "fetch_connections": 8}


class FeedDesk(InlineWorker):
    """Imports tables of products with addresses, and rebuilds from them."""

    def __init__(self, settings: Settings, tmp_path: Path, server: FeedServer) -> None:
        super().__init__(settings.model_copy(update=FAST), tmp_path)
        self.server = server
        self._file = tmp_path / "products.csv"

    def draw_products(self, count: int, each: int = 1) -> list[tuple[str, list[str]]]:
        """Serve the images of some products; return their ids and addresses."""
        return [
            (
                f"SKU-{number:03d}",
                [
                    self.server.put(
                        f"/{number}-{place}.png",
                        picture(10 * number + place),
                        etag=f'"{number}-{place}"',
                    )
                    for place in range(each)
                ],
            )
            for number in range(count)
        ]

    def import_products(
        self,
        products: Sequence[tuple[str, list[str]]],
        name: str = "shop",
        *,
        replace: bool = False,
    ) -> None:
        with self._file.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["product_id", "title", "image_url"])
            writer.writerows([name, f"Product {name}", "|".join(urls)] for name, urls in products)
        private = AllowedHosts.parse(NETWORK, star=True).networks
        with Staging() as staging:
            feed = read_feed(self._file, staging, private=private)
            assert feed.problems.n_warnings == 0, feed.problems.warnings
            origin = Origin(name, "p.csv")
            import_feed(self.resources.database, feed, replace=replace, origin=origin)

    def plan_feed(self, name: str = "shop", *, full: bool = False) -> str:
        resources = self.resources
        return plan_fetch(
            f"feed:{name}", resources.settings, resources.jobs, resources.feeds, full=full
        )

    def rebuild_feed(self, name: str = "shop", *, full: bool = False) -> Job:
        job_id = self.plan_feed(name, full=full)
        self.advance(job_id)
        self.work()
        return self.job(job_id)

    def indexed(self) -> list[str]:
        return list(self.resources.versions.current().paths)
