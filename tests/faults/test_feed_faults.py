"""Workers that die between the addresses of a feed and its index."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from faults.fault_run import FaultRun
from feed_server import NETWORK, FeedServer, picture

PRODUCTS = 40
CONNECTIONS = 4
LINES = {
    "fetch.after_claim": "with the shard claimed, before the first request",
    "fetch.after_store": "with an image's file written, before its row",
    "fetch.after_record": "in the middle of a shard",
    "fetch.after_mark": "after the ledger, before the next message",
}


@pytest.fixture
def server() -> Iterator[FeedServer]:
    server = FeedServer()
    yield server
    server.close()


def draw_feed(fault_run: FaultRun, server: FeedServer) -> None:
    """Serve a feed of good images and one that is gone; import it as `shop`."""
    rows = ["product_id,title,image_link"]
    for number in range(PRODUCTS):
        url = server.put(
            f"/{number}.png", picture(1000 * fault_run.seed + number), etag=f'"{number}"'
        )
        rows.append(f"SKU-{number},Hat,{url}")
        fault_run.good.append(f"SKU-{number}/image-1.png")
    rows.append(f"GONE,Cap,{server.url('/gone.png')}")
    fault_run.bad.append("GONE/image-1")
    file = fault_run.stack.folder / "shop.csv"
    file.write_text("\n".join(rows))
    fault_run.stack.environment |= {
        "FETCH_HOSTS": NETWORK,
        "FETCH_RATE": "1000",
        "FETCH_CONNECTIONS": str(CONNECTIONS),
        "SHARD_SIZE": "20",
    }
    assert fault_run.stack.imgrec("import-catalogue", str(file)).returncode == 0


def enqueue(fault_run: FaultRun) -> str:
    job_id: str = fault_run.stack.answer("enqueue-rebuild", "feed:shop")["job_id"]
    return job_id


@pytest.mark.fault(43, "kill -9 of a fetch worker at {line}")
@pytest.mark.short("fetch.after_store")
@pytest.mark.parametrize("line", LINES)
def test_a_fetch_worker_killed_at_any_line_loses_no_image_and_fetches_none_needlessly(
    fault_run: FaultRun, server: FeedServer, line: str
) -> None:
    draw_feed(fault_run, server)
    at = line
    if line in ("fetch.after_store", "fetch.after_record"):
        at = f"{line}:{server.url(f'/{fault_run.rng.randrange(PRODUCTS)}.png')}"
    victim = fault_run.stack.supervise("fetch", **fault_run.armed(at))
    fault_run.stack.workers("embed", "index")
    job_id = enqueue(fault_run)
    fault_run.wait_for_failpoint()
    fault_run.publishes(job_id)
    assert victim.restarts == 1
    # What was under way when the worker died is asked for again, and nothing else.
    again = server.counts().total() - (PRODUCTS + 1)
    assert 0 <= again <= CONNECTIONS


@pytest.mark.fault(44, "kill -9 of the index worker at {line}, while it plans what was fetched")
@pytest.mark.parametrize(
    "line", ["plan_fetched.after_claim", "plan.after_piece", "plan_fetched.before_finish"]
)
def test_an_index_worker_killed_while_it_plans_indexes_no_image_twice(
    fault_run: FaultRun, server: FeedServer, line: str
) -> None:
    draw_feed(fault_run, server)
    victim = fault_run.stack.supervise("index", **fault_run.armed(line))
    fault_run.stack.workers("fetch", "embed")
    job_id = enqueue(fault_run)
    fault_run.wait_for_failpoint()
    fault_run.publishes(job_id)
    assert victim.restarts == 1
    assert server.counts().total() == PRODUCTS + 1


@pytest.mark.fault(45, "a host that answers every third request with 429, 503 or nothing")
def test_a_host_that_fails_now_and_then_loses_no_image(
    fault_run: FaultRun, server: FeedServer
) -> None:
    draw_feed(fault_run, server)
    answers = dict(server.pages)
    for number in range(0, PRODUCTS, 3):
        path = f"/{number}.png"
        how = fault_run.rng.choice(["429", "503", "reset"])

        def answer(handler: object, path: str = path, how: str = how) -> None:
            server.pages[path] = answers[path]  # the next request gets the image
            if how != "reset":
                handler.send_response(int(how))  # type: ignore[attr-defined]
                handler.send_header("Retry-After", "1")  # type: ignore[attr-defined]
                handler.end_headers()  # type: ignore[attr-defined]

        server.put(path, answer=answer)
    fault_run.hit()
    fault_run.stack.workers("fetch", "embed", "index")
    fault_run.publishes(enqueue(fault_run))
