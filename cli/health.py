"""The command that health checks run."""

from __future__ import annotations

import socket

import click

from cli.output import echo_err, print_json
from cli.wiring import Wiring, pass_wiring
from pipeline.errors import ImgrecError
from pipeline.store.heartbeat import READY, read_heartbeats


def _queues(worker: str) -> set[str]:
    """Read the queues from a worker's name: embed2@host, embed-index-query-4711@host."""
    return {part.rstrip("0123456789") for part in worker.split("@")[0].split("-")}


@click.command()
@click.argument("queue", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@pass_wiring
def health(wiring: Wiring, queue: str | None, as_json: bool) -> None:
    """Tell whether this machine's workers are alive and well.

    Reads the heartbeat files of the workers on this host; needs neither Redis nor the database.
    With QUEUE, only workers of that queue count.
    """
    found = [
        sign
        for sign in read_heartbeats(wiring.settings.data_dir / "run", socket.gethostname())
        if queue is None or queue in _queues(sign.name)
    ]
    well = [sign for sign in found if not sign.problem]
    ill = {sign.name: sign.problem for sign in found if sign.problem}
    if as_json:
        print_json({"alive": {sign.name: round(sign.age_s, 1) for sign in well}, "ill": ill})
    else:
        for sign in well:
            waits = "" if sign.state == READY else f", {sign.state}"
            echo_err(f"{sign.name}: {sign.age_s:.0f} s ago{waits}")
    if ill:
        told = "; ".join(f"{name}: {trouble}" for name, trouble in ill.items())
        raise ImgrecError(f"{told}. Restart it; 'imgrec up' does so by itself.")
    if not well:
        which = f" of queue '{queue}'" if queue else ""
        raise ImgrecError(f"No worker{which} on this machine has given a sign of life lately.")
