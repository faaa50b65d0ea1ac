"""The command that health checks run."""

from __future__ import annotations

import click

from cli.output import echo_err, print_json
from cli.wiring import Wiring, pass_wiring
from pipeline.errors import ImgrecError
from pipeline.store.heartbeat import READY, read_heartbeats
from workers.routes import queues_of_worker


@click.command()
@click.argument("queue", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@pass_wiring
def health(wiring: Wiring, queue: str | None, as_json: bool) -> None:
    """Tell whether this machine's workers are healthy.

    QUEUE limits the check to the workers of one queue. Only heartbeat files are read; neither
    Redis nor the database is needed.
    """
    workers = [
        worker
        for worker in read_heartbeats(wiring.settings.run_dir)
        if queue is None or queue in queues_of_worker(worker.name)
    ]
    healthy = [worker for worker in workers if not worker.problem]
    unhealthy = {worker.name: worker.problem for worker in workers if worker.problem}
    if as_json:
        ages = {worker.name: round(worker.age_s, 1) for worker in healthy}
        # "ill" is the key's old name, which stays until the next release.
        print_json({"alive": ages, "unhealthy": unhealthy, "ill": unhealthy})
    else:
        for worker in healthy:
            state = "" if worker.state == READY else f", {worker.state}"
            echo_err(f"{worker.name}: last heartbeat {worker.age_s:.0f} s ago{state}")
    if unhealthy:
        problems = "; ".join(f"{name}: {problem}" for name, problem in unhealthy.items())
        raise ImgrecError(f"{problems}. Restart the worker; 'imgrec up' does so automatically.")
    if not healthy:
        which = f" of queue '{queue}'" if queue else ""
        raise ImgrecError(f"No worker{which} on this machine has a recent heartbeat.")
