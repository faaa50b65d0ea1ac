"""Many addresses: each is asked as often as needed, and what is wrong with one harms no other."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest
from feed_server import FeedServer, picture

from pipeline.allowed_hosts import AllowedHosts
from pipeline.fetch.fetch_images import Attempts, fetch_images
from pipeline.fetch.image import TryAgain, download
from pipeline.fetch.turns import SILENT_AFTER, HostLimits
from pipeline.outbound import Client

FAST = HostLimits(8, 1000)
ONCE_MORE = Attempts(3, first_pause_s=0.01)
CLIENT = Client(AllowedHosts.parse("127.0.0.0/8"), "FETCH_HOSTS", 10**6, 10.0, 5)


class Log:
    """Fetches for real, and notes what came of each address."""

    def __init__(self) -> None:
        self.images: Counter[str] = Counter()
        self.given_up: dict[str, tuple[str, bool]] = {}
        self.looks: list[int] = []

    def fetch(self, url: str) -> None:
        download(CLIENT, url, max_pixels=10**6, robots=frozenset())
        self.images[url] += 1

    def give_up(self, url: str, reason: str, later: bool) -> None:
        assert url not in self.given_up
        self.given_up[url] = (reason, later)

    def run(
        self, urls: list[str], limits: HostLimits = FAST, attempts: Attempts = ONCE_MORE
    ) -> None:
        fetch_images(urls, self.fetch, self.give_up, limits, attempts, self.looks.append)


def test_every_address_ends_as_an_image_or_with_its_reason(server: FeedServer) -> None:
    good = [server.put(f"/{n}.png", picture(n)) for n in range(30)]
    gone = server.url("/gone.png")
    broken = server.put("/broken.png", b"sorry", status=500)
    log = Log()
    log.run([*good, gone, broken])
    assert log.images == Counter(good)
    assert log.given_up == {
        gone: ("status 404", False),
        broken: ("status 500 in 3 attempts", True),
    }
    assert server.counts()["/gone.png"] == 1
    assert server.counts()["/broken.png"] == 3
    assert log.looks[-1] == 32


def test_a_server_that_recovers_loses_nothing(server: FeedServer) -> None:
    left = Counter({"/a.png": 2})
    lock = threading.Lock()
    page = picture(1)

    def answer(handler: object) -> None:
        with lock:
            left["/a.png"] -= 1
            fails = left["/a.png"] >= 0
        handler.send_response(503 if fails else 200)  # type: ignore[attr-defined]
        handler.send_header("Content-Length", "0" if fails else str(len(page)))  # type: ignore[attr-defined]
        handler.end_headers()  # type: ignore[attr-defined]
        handler.wfile.write(b"" if fails else page)  # type: ignore[attr-defined]

    url = server.put("/a.png", answer=answer)
    log = Log()
    log.run([url])
    assert log.images == {url: 1}
    assert log.given_up == {}


def test_retry_after_holds_back_the_whole_host(server: FeedServer) -> None:
    first = server.put("/0.png", status=429, headers={"Retry-After": "1"})
    others = [server.put(f"/{n}.png", picture(n)) for n in range(1, 4)]
    log = Log()
    log.run([first, *others], HostLimits(1, 1000), Attempts(2))
    start = server.times("/0.png")[0]
    assert all(server.times(f"/{n}.png")[0] - start >= 1 for n in range(1, 4))
    assert log.images == Counter(others)
    assert log.given_up == {first: ("status 429 in 2 attempts", True)}


def test_a_host_that_asks_to_wait_too_long_is_neither_waited_for_nor_asked_on(
    server: FeedServer,
) -> None:
    url = server.put("/a.png", status=429, headers={"Retry-After": "86400"})
    others = [server.put(f"/{n}.png", picture(n)) for n in range(3)]
    log = Log()
    log.run([url, *others], HostLimits(1, 1000))
    reason = "status 429, and asks to wait 86,400 s"
    assert log.given_up == {url: (reason, True)} | dict.fromkeys(
        others, (f"its host answers {reason}", True)
    )
    assert server.counts() == {"/a.png": 1}


def test_a_host_is_asked_on_no_more_connections_than_allowed(server: FeedServer) -> None:
    urls = [server.put(f"/{n}.png", picture(n), seconds=0.05) for n in range(12)]
    Log().run(urls, HostLimits(2, 1000))
    assert server.most_at_once == 2


def test_a_host_is_asked_at_no_higher_rate_than_allowed(server: FeedServer) -> None:
    urls = [server.put(f"/{n}.png", picture(n)) for n in range(11)]
    Log().run(urls, HostLimits(8, 20))
    at = sorted(at for at, _, _ in server.requests)
    assert at[-1] - at[0] >= 10 / 20 - 0.05  # connections take unequal times


def test_a_silent_host_costs_few_attempts(server: FeedServer) -> None:
    asked: Counter[str] = Counter()

    def fetch(url: str) -> None:
        asked[url] += 1
        raise TryAgain("the address did not answer within 20 s", answered=False)

    log = Log()
    urls = [f"http://silent.example/{n}.png" for n in range(200)]
    fetch_images(urls, fetch, log.give_up, HostLimits(4, 1e6), Attempts(3, 30.0), log.looks.append)
    assert sorted(log.given_up) == sorted(urls)
    assert all(later for _, later in log.given_up.values())
    assert SILENT_AFTER <= asked.total() < SILENT_AFTER + 10


def test_what_stops_the_work_lets_downloads_under_way_end(server: FeedServer) -> None:
    urls = [server.put(f"/{n}.png", picture(n), seconds=0.2) for n in range(40)]
    log = Log()

    class Stop(Exception):
        pass

    def check(done: int) -> None:
        if server.requests:
            raise Stop

    with pytest.raises(Stop):
        fetch_images(urls, log.fetch, log.give_up, HostLimits(4, 1000), ONCE_MORE, check)
    assert log.images.total() == len(server.requests) < 40


def test_an_error_of_the_program_ends_the_work() -> None:
    def fetch(url: str) -> None:
        raise OSError(28, "No space left on device")

    start = time.monotonic()
    with pytest.raises(OSError, match="No space left"):
        fetch_images(
            ["http://a.example/1"], fetch, Log().give_up, FAST, ONCE_MORE, lambda done: None
        )
    assert time.monotonic() - start < 60
