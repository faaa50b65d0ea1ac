"""`imgrec import-catalogue URL` and `imgrec enqueue-rebuild feed:NAME`."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from feed_desk import FeedDesk
from feed_server import FeedServer, picture

from pipeline.settings import Settings

Run = Callable[..., Any]


@pytest.fixture
def server() -> Iterator[FeedServer]:
    server = FeedServer()
    yield server
    server.close()


@pytest.fixture
def inline_worker(settings: Settings, tmp_path: Path, server: FeedServer) -> FeedDesk:
    inline_worker = FeedDesk(settings, tmp_path, server)
    inline_worker.inline = True
    return inline_worker


def feed(server: FeedServer, count: int = 3) -> bytes:
    """Write a feed of products, each with one image on the server."""
    rows = ["product_id,title,price,image_link"]
    for number in range(count):
        url = server.put(f"/{number}.png", picture(number), etag=f'"{number}"')
        rows.append(f"A{number},Hat {number},{number}.50,{url}")
    return "\n".join(rows).encode() + b"\n"


def test_a_feed_by_its_address_is_imported_fetched_and_indexed(
    imgrec: Run, inline_worker: FeedDesk, server: FeedServer
) -> None:
    url = server.put("/export/hats.csv.gz", gzip.compress(feed(server)), etag='"1"')
    done = imgrec("import-catalogue", f"{url}?token=secret")
    assert done.code == 0, done.err
    assert done.out.startswith("Imported 3 products (3 new). Products in total: 3.")
    assert "Images: 0 files, 3 addresses." in done.out
    assert "'imgrec enqueue-rebuild feed:hats' fetches and indexes the images." in done.err
    assert "secret" not in done.out + done.err
    done = imgrec("enqueue-rebuild", "feed:hats", "--wait", "--json")
    assert done.code == 0, done.err
    job = done.object
    assert (job["state"], job["stage"], job["images"], job["fetched"]) == ("published", None, 3, 3)
    assert inline_worker.indexed() == ["A0/image-1.png", "A1/image-1.png", "A2/image-1.png"]
    status = imgrec("status", job["job_id"])
    assert "3 new or changed, 0 unchanged" in status.out


def test_an_unchanged_feed_is_told_and_not_imported_again(
    imgrec: Run, inline_worker: FeedDesk, server: FeedServer
) -> None:
    body = feed(server)
    url = server.put("/hats.csv", body, etag='"1"')
    assert imgrec("import-catalogue", url, "--json").object["unchanged"] is False
    revision = inline_worker.resources.products.revision()
    done = imgrec("import-catalogue", url)
    assert done.code == 0
    assert done.out == (
        "The feed 'hats' has not changed since its last import: nothing was imported.\n"
    )
    server.put("/hats.csv", body)  # no tag any more: its content decides
    assert imgrec("import-catalogue", url, "--json").object == {"feed": "hats", "unchanged": True}
    assert inline_worker.resources.products.revision() == revision
    server.put("/hats.csv", body.replace(b"0.50", b"7.50"), etag='"2"')
    assert imgrec("import-catalogue", url, "--json").object["unchanged"] is False
    assert inline_worker.resources.products.catalogue().facts("A0")["price"] == 7.5


def test_an_unchanged_feed_is_imported_again_where_it_is_read_otherwise(
    imgrec: Run, inline_worker: FeedDesk, server: FeedServer
) -> None:
    url = server.put("/hats.csv", feed(server), etag='"1"')
    imgrec("import-catalogue", url)
    assert imgrec("import-catalogue", url, "--type", "price=text", "--json").object["products"] == 3
    assert imgrec("import-catalogue", url, "--name", "other", "--json").object["products"] == 3
    file = server.put("/all.csv", b"product_id,title\nB,Bag\n")
    imgrec("import-catalogue", file, "--replace")  # forgets the others
    again = imgrec("import-catalogue", url, "--name", "other", "--json").object
    assert (again["unchanged"], again["total"]) == (False, 4)


def test_a_dry_run_of_an_address_changes_nothing(
    imgrec: Run, inline_worker: FeedDesk, server: FeedServer
) -> None:
    url = server.put("/hats.csv", feed(server), etag='"1"')
    done = imgrec("import-catalogue", url, "--dry-run")
    assert done.out.startswith("Would import 3 products (3 new).")
    assert inline_worker.resources.feeds.find("hats") is None
    imgrec("import-catalogue", url)
    assert imgrec("import-catalogue", url, "--dry-run", "--json").object["products"] == 3


def test_what_is_wrong_with_a_feed_names_its_address(
    imgrec: Run, inline_worker: FeedDesk, server: FeedServer
) -> None:
    url = server.put("/hats.csv", b"nothing,useful\n1,2\n")
    done = imgrec("import-catalogue", f"{url}?token=secret")
    assert done.code == 2
    assert f"The file '{url}' cannot be imported: no column identifies a product" in done.err
    assert "secret" not in done.err
    assert imgrec("import-catalogue", server.url("/gone.csv")).code == 2
    assert imgrec("import-catalogue", "missing.csv").code == 2
    done = imgrec("import-catalogue", url, "--name", "a b")
    assert (done.code, "cannot be a feed's" in done.err) == (2, True)


def test_private_addresses_of_images_are_left_out_of_an_import_without_the_setting(
    imgrec: Run, inline_worker: FeedDesk, server: FeedServer, tmp_path: Path
) -> None:
    file = tmp_path / "hats.csv"
    file.write_bytes(feed(server))
    inline_worker.start_again(fetch_hosts="*")
    done = imgrec("import-catalogue", file, "--json")
    assert done.object["image_urls"] == 0
    assert done.object["n_warnings"] >= 3
    assert "private network" in done.object["warnings"][0]["reason"]


def test_an_unknown_feed_and_options_of_folders_are_refused(
    imgrec: Run, inline_worker: FeedDesk
) -> None:
    done = imgrec("enqueue-rebuild", "feed:hats")
    assert done.code == 2
    assert "There is no feed 'hats'" in done.err
    done = imgrec("enqueue-rebuild", "feed:hats", "--exclude", "*.png")
    assert (done.code, "--exclude applies to folders" in done.err) == (2, True)


def test_failed_addresses_are_listed_with_their_status(
    imgrec: Run, inline_worker: FeedDesk, server: FeedServer
) -> None:
    url = server.put("/hats.csv", feed(server))
    server.put("/1.png", status=404)
    imgrec("import-catalogue", url)
    job = imgrec("enqueue-rebuild", "feed:hats", "--wait", "--json").object
    listed = imgrec("failures", job["job_id"], "--json").object["failures"]
    assert listed == [
        {
            "path": "A1/image-1",
            "stage": "fetch",
            "reason": f"{server.url('/1.png')}: status 404",
        }
    ]


def test_local_fetches_and_indexes_in_one_process(
    imgrec: Run, inline_worker: FeedDesk, server: FeedServer
) -> None:
    from workers.local import LocalWorker

    inline_worker.import_products(inline_worker.draw_products(4))
    local = LocalWorker(inline_worker.resources.settings)
    vars(local.resources)["clip"] = inline_worker.resources.clip
    job_id = inline_worker.plan_feed()
    work = local.work_at(job_id)
    work._thread.join(120)
    work.check()
    assert inline_worker.job(job_id).state == "published"
