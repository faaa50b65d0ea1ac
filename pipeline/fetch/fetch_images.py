"""Fetch the images of some addresses, side by side, within the limits of each host."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from pipeline.fetch.image import ImageRefused, TryAgain
from pipeline.fetch.turns import HostLimits, Turn, Turns

THREADS = 16
FIRST_PAUSE_S = 1.0  # before the second attempt; each pause is twice as long as the one before
MAX_PAUSE_S = 120.0  # a host that asks to wait longer is not waited for
LOOK_S = 0.25  # between two looks at whether to stop


@dataclass(frozen=True)
class Attempts:
    """How often an address is asked at most, and how long the first pause is."""

    limit: int
    first_pause_s: float = FIRST_PAUSE_S


def fetch_images(
    urls: Sequence[str],
    fetch: Callable[[str], None],
    give_up: Callable[[str, str, bool], None],
    limits: HostLimits,
    attempts: Attempts,
    check: Callable[[int], None],
) -> None:
    """Fetch each address once, and again where its host asks to wait or does not answer.

    Args:
        fetch: fetches one address and records it, in a thread; raises ImageRefused or TryAgain.
        give_up: records an address that gives no image: address, reason, and whether it may give
            one later.
        check: called with the number of addresses done, four times a second; raises to stop.

    Raises:
        What `check` raises, and every other error of `fetch`; downloads under way end first.
    """
    turns = Turns(urls, limits)
    running: dict[Future[None], Turn] = {}
    n_done = 0
    with ThreadPoolExecutor(THREADS, thread_name_prefix="fetch") as pool:
        while turns or running:
            check(n_done)
            turn, wait_s = turns.take() if len(running) < THREADS else (None, LOOK_S)
            if turn is not None:
                running[pool.submit(fetch, turn.url)] = turn
                continue
            pause_s = max(0.0, min(wait_s, LOOK_S))
            if not running:
                time.sleep(pause_s)
                continue
            for future in wait(running, pause_s, FIRST_COMPLETED).done:
                n_done += _end(turns, running.pop(future), future, give_up, attempts)
    check(n_done)


def _end(
    turns: Turns,
    turn: Turn,
    future: Future[None],
    give_up: Callable[[str, str, bool], None],
    attempts: Attempts,
) -> int:
    """Look at what came of a turn; return the number of addresses that are done by it."""
    try:
        future.result()
    except ImageRefused as error:
        give_up(turn.url, str(error), False)
        turns.done(turn, answered=True)
        return 1
    except TryAgain as error:
        return _try_again(turns, turn, error, give_up, attempts)
    turns.done(turn, answered=True)
    return 1


def _try_again(
    turns: Turns,
    turn: Turn,
    error: TryAgain,
    give_up: Callable[[str, str, bool], None],
    attempts: Attempts,
) -> int:
    left = turns.done(turn, answered=error.answered)
    asked_s, reason = error.after_s, str(error)
    if asked_s is not None and asked_s > MAX_PAUSE_S:
        reason += f", and asks to wait {asked_s:,.0f} s"
        # It speaks for all of its addresses: to ask on would only have us shut out.
        left += turns.leave(turn.host)
    elif turn.attempt < attempts.limit and not left:
        backoff_s = attempts.first_pause_s * 2 ** (turn.attempt - 1) * random.uniform(0.75, 1.25)
        pause_s = backoff_s if asked_s is None else max(asked_s, backoff_s)
        # A host that says how long to wait speaks for all of its addresses.
        turns.again(turn, min(pause_s, MAX_PAUSE_S), whole_host=asked_s is not None)
        return 0
    elif turn.attempt > 1:
        reason += f" in {turn.attempt} attempts"
    give_up(turn.url, reason, True)
    for url in left:
        why = f"its host did not answer to other addresses ({error})"
        give_up(url, f"its host answers {reason}" if asked_s is not None else why, True)
    return 1 + len(left)
