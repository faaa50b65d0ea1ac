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


def draw_feed(trial: FaultRun, server: FeedServer) -> None:
    """Serve a feed of good images and one that is gone; import it as `shop`."""
    rows = ["product_id,title,image_link"]
    for number in range(PRODUCTS):
        url = server.put(f"/{number}.png", picture(1000 * trial.seed + number), etag=f'"{number}"')
        rows.append(f"SKU-{number},Hat,{url}")
        trial.good.append(f"SKU-{number}/image-1.png")
    rows.append(f"GONE,Cap,{server.url('/gone.png')}")
    trial.bad.append("GONE/image-1")
    file = trial.stand.folder / "shop.csv"
    file.write_text("\n".join(rows))
    trial.stand.environment |= {
        "FETCH_HOSTS": NETWORK,
        "FETCH_RATE": "1000",
        "FETCH_CONNECTIONS": str(CONNECTIONS),
        "SHARD_SIZE": "20",
    }
    assert trial.stand.imgrec("import-catalogue", str(file)).returncode == 0


def enqueue(trial: FaultRun) -> str:
    job_id: str = trial.stand.answer("enqueue-rebuild", "feed:shop")["job_id"]
    return job_id


@pytest.mark.fault(43, "kill -9 of a fetch worker at {line}")
@pytest.mark.short("fetch.after_store")
@pytest.mark.parametrize("line", LINES)
def test_a_fetch_worker_killed_at_any_line_loses_no_image_and_fetches_none_needlessly(
    trial: FaultRun, server: FeedServer, line: str
) -> None:
    draw_feed(trial, server)
    at = line
    if line in ("fetch.after_store", "fetch.after_record"):
        at = f"{line}:{server.url(f'/{trial.dice.randrange(PRODUCTS)}.png')}"
    victim = trial.stand.keep("fetch", **trial.armed(at))
    trial.stand.workers("embed", "index")
    job_id = enqueue(trial)
    trial.strikes()
    trial.publishes(job_id)
    assert victim.deaths == 1
    # What was under way when the worker died is asked for again, and nothing else.
    again = server.counts().total() - (PRODUCTS + 1)
    assert 0 <= again <= CONNECTIONS


@pytest.mark.fault(44, "kill -9 of the index worker at {line}, while it plans what was fetched")
@pytest.mark.parametrize(
    "line", ["plan_fetched.after_claim", "plan.after_piece", "plan_fetched.before_finish"]
)
def test_an_index_worker_killed_while_it_plans_indexes_no_image_twice(
    trial: FaultRun, server: FeedServer, line: str
) -> None:
    draw_feed(trial, server)
    victim = trial.stand.keep("index", **trial.armed(line))
    trial.stand.workers("fetch", "embed")
    job_id = enqueue(trial)
    trial.strikes()
    trial.publishes(job_id)
    assert victim.deaths == 1
    assert server.counts().total() == PRODUCTS + 1


@pytest.mark.fault(45, "a host that answers every third request with 429, 503 or nothing")
def test_a_host_that_fails_now_and_then_loses_no_image(trial: FaultRun, server: FeedServer) -> None:
    draw_feed(trial, server)
    answers = dict(server.pages)
    for number in range(0, PRODUCTS, 3):
        path = f"/{number}.png"
        how = trial.dice.choice(["429", "503", "reset"])

        def answer(handler: object, path: str = path, how: str = how) -> None:
            server.pages[path] = answers[path]  # the next request gets the image
            if how != "reset":
                handler.send_response(int(how))  # type: ignore[attr-defined]
                handler.send_header("Retry-After", "1")  # type: ignore[attr-defined]
                handler.end_headers()  # type: ignore[attr-defined]

        server.put(path, answer=answer)
    trial.hit()
    trial.stand.workers("fetch", "embed", "index")
    trial.publishes(enqueue(trial))
