"""Commands about rebuilds: enqueue, watch, look into, cancel."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.output import duration, facts, json_option, local_option, print_json, say, table
from cli.progress import progress_bar
from pipeline.errors import ImgrecError, JobFailed, TimedOut
from pipeline.plan import check_folder, plan_rebuild
from pipeline.settings import load_settings

if TYPE_CHECKING:
    from pipeline.store.jobs import Job, Jobs, Progress
    from workers.local import Work

POLL_S = 0.25
NO_WORKER_AFTER_S = 4.0


@click.command("enqueue-rebuild")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--full", is_flag=True, help="Embed every image again; reuse no vector.")
@click.option(
    "--save-preprocessed",
    is_flag=True,
    help="Keep what the model saw (implies reading every image) below DATA_DIR/preprocessed.",
)
@click.option("--wait", is_flag=True, help="Show the progress until the index is published.")
@click.option("--timeout", type=click.FloatRange(min=0), help="Seconds to wait; the job goes on.")
@json_option
@local_option
def enqueue_rebuild(
    folder: Path,
    full: bool,
    save_preprocessed: bool,
    wait: bool,
    timeout: float | None,
    as_json: bool,
    local: bool,
) -> None:
    """Index a folder of product images.

    Unchanged images keep their vectors; the published index answers until the new one is whole.
    """
    if local:
        _begin_local()
    settings = load_settings()
    check_folder(folder, settings)
    from workers import flow, runtime

    flow.require_redis()
    _tell_of_replacement(folder)
    with _listing(as_json) as listed:
        job_id = plan_rebuild(
            folder,
            settings,
            runtime.jobs(),
            runtime.versions(),
            full=full,
            save_preprocessed=save_preprocessed,
            listed=listed,
        )
    flow.advance(job_id)
    if wait or local:
        _wait(job_id, timeout, as_json, local)
    elif as_json:
        print_json(_object(job_id))
    else:
        click.echo(job_id)
        say(f"Watch it with 'imgrec status {job_id}'.")


@click.command()
@click.argument("job")
@click.option("--wait", is_flag=True, help="Show the progress until the job ends.")
@click.option("--timeout", type=click.FloatRange(min=0), help="Seconds to wait; the job goes on.")
@json_option
@click.option("--local", is_flag=True, help="With --wait: do the work that is left, here.")
def status(job: str, wait: bool, timeout: float | None, as_json: bool, local: bool) -> None:
    """Show how far a rebuild is."""
    if wait:
        if local:
            _begin_local()
        _wait(job, timeout, as_json, local)
    elif as_json:
        print_json(_object(job))
    else:
        _summary(job)


@click.command()
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000))
@json_option
def jobs(limit: int, as_json: bool) -> None:
    """List the rebuilds."""
    found = _jobs().newest(limit)
    if as_json:
        print_json({"jobs": [_object(job.id) for job in found]})
        return
    if not found:
        say("There is no rebuild yet: 'imgrec enqueue-rebuild FOLDER' starts one.")
        return
    rows = []
    for job in found:
        facts = _object(job.id)
        rows.append(
            [
                job.id,
                job.state,
                facts["images"],
                facts["embedded"],
                facts["reused"],
                facts["skipped"],
                facts["index_version"] or "-",
                str(job.root),
            ]
        )
    columns = ["job", "state", "images", "embedded", "reused", "skipped", "index", "folder"]
    table("Rebuilds, newest first", columns, rows, {"images", "embedded", "reused", "skipped"})


@click.command()
@click.argument("job")
@json_option
def failures(job: str, as_json: bool) -> None:
    """List the images that a rebuild left out or warned about."""
    _jobs().get(job)
    found = _jobs().failures(job)
    bad = [failure for failure in found if not failure.warning]
    warned = [failure for failure in found if failure.warning]
    if as_json:
        print_json(
            {
                "job_id": job,
                "failures": [{"path": f.path, "stage": f.stage, "reason": f.reason} for f in bad],
                "warnings": [
                    {"path": f.path, "stage": f.stage, "reason": f.reason} for f in warned
                ],
            }
        )
        return
    for title, rows in (
        (f"Left out: {len(bad)}", bad),
        (f"Indexed, with a warning: {len(warned)}", warned),
    ):
        if rows:
            cells = [[f.path, f.stage, f.reason] for f in rows]
            table(title, ["path", "stage", "reason"], cells, set())
    if not found:
        say(f"Job {job} left no image out.")


@click.command()
@click.argument("job")
@json_option
def cancel(job: str, as_json: bool) -> None:
    """Stop a rebuild; what was published stays."""
    before = _jobs().get(job)
    stopped = _jobs().cancel(job)
    if as_json:
        print_json(_object(job))
    elif stopped:
        say(f"Job {job} is cancelled; workers stop after their current image.")
    else:
        say(f"Job {job} had already ended: {before.state}.")


def _tell_of_replacement(folder: Path) -> None:
    from workers import runtime

    try:
        current = runtime.versions().current()
    except ImgrecError:
        return  # none yet, or a broken one, which this rebuild mends
    root = current.manifest["root"]
    if root != str(folder.resolve()):
        say(
            f"Index {current.name} holds {root}; this rebuild replaces it with {folder.resolve()} "
            "('imgrec index rollback' brings it back)."
        )


def _jobs() -> Jobs:
    from workers import runtime

    return runtime.jobs()


def _object(job_id: str) -> dict[str, Any]:
    """Return the contract's object of a job."""
    job, progress = _jobs().get(job_id), _jobs().progress(job_id)
    return {
        "job_id": job.id,
        "state": job.state,
        "images": progress.images,
        "embedded": progress.embedded,
        "reused": progress.reused,
        "skipped": progress.skipped,
        "warnings": progress.warnings,
        "index_version": job.index_version,
        "seconds": round((job.finished_at or time.time()) - job.created_at, 1),
        "error": job.error,
    }


def _summary(job_id: str) -> None:
    job = _object(job_id)
    facts(
        f"Job {job_id}",
        [
            ("state", job["state"]),
            ("index version", job["index_version"] or "-"),
            ("images", job["images"]),
            ("embedded", job["embedded"]),
            ("reused", job["reused"]),
            ("skipped", job["skipped"]),
            ("warnings", job["warnings"]),
            ("time", duration(job["seconds"])),
        ],
    )
    if job["error"]:
        say(f"Error: {job['error']}")
    if job["skipped"] or job["warnings"]:
        say(f"'imgrec failures {job_id}' tells which images and why.")


@contextmanager
def _listing(quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show a spinner with the number of images listed so far."""
    if quiet:
        yield lambda count: None
        return
    from rich.console import Console

    with Console(stderr=True).status("Listing the folder ...") as spinner:
        yield lambda count: spinner.update(f"Listing the folder: {count:,} images")


def _begin_local() -> None:
    from workers import local

    local.begin()


def _wait(job_id: str, timeout: float | None, as_json: bool, local: bool = False) -> None:
    """Show progress until a job ends, and help it along meanwhile; with `local`, do it here.

    Raises:
        JobFailed: the job failed or was cancelled. TimedOut: not in time; the job goes on.
    """
    _jobs().get(job_id)
    work = None
    if local:
        from workers.local import Work

        work = Work(job_id)
    try:
        job = _watch(job_id, timeout, as_json, work)
    except (KeyboardInterrupt, TimedOut):
        if work is not None:
            work.stop()
            say(f"Stopped; 'imgrec status {job_id} --wait --local' goes on with it.")
        else:
            say(
                f"The job goes on: 'imgrec status {job_id}' shows it, 'imgrec cancel {job_id}' "
                "ends it."
            )
        raise
    except BaseException:
        if work is not None:
            work.stop()
        raise
    if as_json:
        print_json(_object(job_id))
    else:
        _summary(job_id)
    if job.state == "failed":
        raise JobFailed(f"Job {job_id} failed." if not as_json else f"{job.error}")
    if job.state == "cancelled":
        raise JobFailed(f"Job {job_id} was cancelled.")


def _watch(job_id: str, timeout: float | None, quiet: bool, work: Work | None) -> Job:
    from workers import runtime

    jobs, helper = runtime.jobs(), _Helper()
    deadline = None if timeout is None else time.monotonic() + timeout
    with progress_bar(quiet) as show:
        while True:
            job = jobs.get(job_id)
            progress = jobs.progress(job_id)
            show(job, progress)
            if not job.open:
                return job
            if deadline is not None and time.monotonic() > deadline:
                raise TimedOut(f"Job {job_id} is not done after {timeout:g} s.")
            if work is not None:
                work.check()
            else:
                helper.help(progress)
            time.sleep(POLL_S)


class _Helper:
    """Do the reconciler's work while somebody waits, and say what keeps the job from moving."""

    def __init__(self) -> None:
        self._next = time.monotonic() + NO_WORKER_AFTER_S
        self._looked_at = -1
        self._said: set[str] = set()

    def help(self, progress: Progress) -> None:
        from pipeline.errors import ServerAway
        from workers import flow

        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + load_settings().reconcile_s
        try:
            flow.reconcile()
            stuck = progress.looked_at == self._looked_at
            self._looked_at = progress.looked_at
            if stuck:
                queue = "index" if progress.shards_done == progress.shards else "embed"
                if not flow.workers_on(queue):
                    self._say(
                        f"No worker listens on queue '{queue}'. Start one with 'celery worker -Q "
                        f"{queue}', or all with 'imgrec up'."
                    )
        except ServerAway as error:
            self._say(f"{error} Waiting for it.")

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            say(text)
