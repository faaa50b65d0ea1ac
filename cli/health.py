"""The command that health checks run."""

from __future__ import annotations

import socket
import time

import click

from cli.output import print_json, say
from pipeline.errors import ImgrecError
from pipeline.settings import load_settings

MAX_AGE_S = 35.0  # three missed heartbeats


def _queues(worker: str) -> set[str]:
    """Read the queues from a worker's name: embed2@host, embed-index-query-4711@host."""
    return {part.rstrip("0123456789") for part in worker.split("@")[0].split("-")}


@click.command()
@click.argument("queue", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def health(queue: str | None, as_json: bool) -> None:
    """Tell whether this machine's workers are alive.

    Reads the heartbeat files of the workers on this host; needs neither Redis nor the database.
    With QUEUE, only a worker of that queue counts.
    """
    folder, now = load_settings().data_dir / "run", time.time()
    ages = {
        file.stem: round(now - file.stat().st_mtime, 1)
        for file in sorted(folder.glob(f"*@{socket.gethostname()}.alive"))
        if queue is None or queue in _queues(file.stem)
    }
    alive = {name: age for name, age in ages.items() if age <= MAX_AGE_S}
    if as_json:
        print_json({"alive": alive})
    if not alive:
        which = f" of queue '{queue}'" if queue else ""
        raise ImgrecError(f"No worker{which} on this machine has given a sign of life lately.")
    if not as_json:
        for name, age in alive.items():
            say(f"{name}: {age:.0f} s ago")
