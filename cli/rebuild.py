"""Commands about rebuilds: enqueue, watch, look into, cancel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from cli.output import Seconds, echo, echo_err, json_option, local_option, print_json, print_table
from cli.watch import show_job, wait_for_job
from cli.wiring import Wiring, pass_wiring
from pipeline.access import require_data_dir
from pipeline.errors import ImgrecError, ServerUnavailable, WrongUse, quote
from pipeline.images.decode import DECODING
from pipeline.images.exclude import Exclude
from pipeline.images.fetched import feed_name
from pipeline.rebuild.plan import check_source, plan_rebuild
from pipeline.rebuild.plan_feed import check_feed, plan_fetch
from pipeline.store.job_object import job_object, to_object

if TYPE_CHECKING:
    from pipeline.index.versions import VersionStore
    from workers.resources import Resources


@click.command("enqueue-rebuild")
@click.argument("folder")
@click.option("--full", is_flag=True, help="Embed every image again; reuse no vector.")
@click.option(
    "--save-preprocessed",
    is_flag=True,
    help="Save the preprocessed images below DATA_DIR/preprocessed; reads every image.",
)
@click.option(
    "--exclude",
    "patterns",
    multiple=True,
    metavar="GLOB",
    help="Leave out files and folders that match, as in a .gitignore. Can be repeated.",
)
@click.option(
    "--wait", is_flag=True, help="Show the progress and wait until the index is published."
)
@click.option("--timeout", type=Seconds, help="Seconds to wait; the job continues.")
@json_option
@local_option
@pass_wiring
def enqueue_rebuild(
    wiring: Wiring,
    folder: str,
    full: bool,
    save_preprocessed: bool,
    patterns: tuple[str, ...],
    wait: bool,
    timeout: float | None,
    as_json: bool,
    local: bool,
) -> None:
    """Index a folder of product images.

    FOLDER can also be the address of an object store, e.g. s3://bucket/prefix, or feed:NAME: the
    images that an imported feed lists, which are fetched first. Unchanged images keep their
    vectors. The published index answers until the new one is complete.
    """
    settings = wiring.settings
    exclude = Exclude(patterns)
    from pipeline.embed.fingerprint import require_readable_model
    from workers.reconcile import advance, queues_of_rebuild

    resources = wiring.local.resources if local else wiring.resources
    is_feed = feed_name(folder) is not None
    if is_feed and patterns:
        raise WrongUse("--exclude applies to folders and stores, not to feeds.")
    if is_feed:
        check_feed(folder, resources.feeds)
        name = folder
    else:
        name = check_source(folder, settings, exclude).name
    if local:
        require_data_dir(settings)
        require_readable_model(settings.embedding_model)
    resources.dispatcher.require_broker()
    resources.require_agreement(queues_of_rebuild(folder), "database", "data")
    _tell_of_base(name, resources.versions, full)
    with _listing(as_json) as listed:
        job_id = _plan(
            resources,
            folder,
            exclude,
            {"full": full, "save_preprocessed": save_preprocessed, "listed": listed},
        )
    for pattern in exclude.unused:
        echo_err(f"--exclude {quote(pattern)} matched no file or folder below {folder}.")
    try:
        advance(resources, job_id)
    except ServerUnavailable as error:  # the plan stands, and the reconciler sends it
        if not wait:
            raise
        echo_err(f"{error} Waiting for it.")
    if wait or local:
        wait_for_job(wiring, job_id, timeout, as_json, local)
    elif as_json:
        print_json(job_object(resources.jobs, job_id))
    else:
        echo(job_id)
        echo_err(f"'imgrec status {job_id}' shows the progress.")


@click.command()
@click.argument("job")
@click.option("--wait", is_flag=True, help="Show the progress and wait until the job ends.")
@click.option("--timeout", type=Seconds, help="Seconds to wait; the job continues.")
@json_option
@click.option("--local", is_flag=True, help="With --wait: do the remaining work in this process.")
@pass_wiring
def status(
    wiring: Wiring, job: str, wait: bool, timeout: float | None, as_json: bool, local: bool
) -> None:
    """Show the progress of a rebuild."""
    jobs = wiring.resources.jobs
    if wait:
        jobs.get(job)
        if local:
            require_data_dir(wiring.settings)
        wait_for_job(wiring, job, timeout, as_json, local)
    elif as_json:
        print_json(job_object(jobs, job))
    else:
        show_job(jobs, job)


@click.command()
@click.option(
    "--limit",
    default=20,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="Number of rebuilds.",
)
@json_option
@pass_wiring
def jobs(wiring: Wiring, limit: int, as_json: bool) -> None:
    """List the rebuilds."""
    listing = wiring.resources.jobs.list_with_progress(limit)
    if as_json:
        print_json({"jobs": [to_object(job, progress) for job, progress in listing]})
        return
    if not listing:
        echo_err("No rebuilds yet: 'imgrec enqueue-rebuild FOLDER' starts one.")
        return
    rows = []
    for job, progress in listing:
        rows.append(
            [
                job.id,
                job.state,
                progress.images,
                progress.embedded,
                progress.reused,
                progress.skipped,
                job.index_version or "-",
                job.root,
            ]
        )
    columns = ["job", "state", "images", "embedded", "reused", "skipped", "index", "folder"]
    print_table(
        "Rebuilds, newest first", columns, rows, {"images", "embedded", "reused", "skipped"}
    )


@click.command()
@click.argument("job")
@json_option
@pass_wiring
def failures(wiring: Wiring, job: str, as_json: bool) -> None:
    """List the images that a rebuild left out or warned about."""
    wiring.resources.jobs.get(job)
    entries = wiring.resources.jobs.failures(job)
    bad = [failure for failure in entries if not failure.warning]
    warned = [failure for failure in entries if failure.warning]
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
            print_table(title, ["path", "stage", "reason"], cells, set())
    if not entries:
        echo_err(f"Job {job} left out no images.")


@click.command()
@click.argument("job")
@json_option
@pass_wiring
def cancel(wiring: Wiring, job: str, as_json: bool) -> None:
    """Cancel a rebuild; the published index stays."""
    jobs = wiring.resources.jobs
    before = jobs.get(job)
    stopped = jobs.cancel(job)
    if as_json:
        print_json(job_object(jobs, job))
    elif stopped:
        echo_err(f"Cancelled job {job}. Workers stop after their current image.")
    else:
        echo_err(f"Job {job} had already ended: {before.state}.")


def _plan(resources: Resources, root: str, exclude: Exclude, how: dict[str, Any]) -> str:
    """Write the plan of a rebuild; return the job's id."""
    settings, jobs = resources.settings, resources.jobs
    if feed_name(root) is not None:
        return plan_fetch(root, settings, jobs, resources.feeds, **how)
    return plan_rebuild(root, settings, jobs, resources.versions, exclude=exclude, **how)


def _tell_of_base(name: str, versions: VersionStore, full: bool) -> None:
    try:
        current = versions.current()
    except ImgrecError:
        return  # none yet, or a broken one, which this rebuild mends
    root = current.manifest["root"]
    if root != name:
        echo_err(
            f"Index {current.name} was built from {root}; this rebuild replaces it with one of "
            f"{name}. 'imgrec index rollback' restores the old one."
        )
    if current.decoding < DECODING and not full:
        echo_err(
            f"Index {current.name} has vectors of an earlier release, which ignored color profiles "
            "and misread some CMYK and 16-bit images. If you have such images, run 'imgrec "
            "enqueue-rebuild' once with --full."
        )


@contextmanager
def _listing(quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show a spinner with the number of images listed so far."""
    if quiet:
        yield lambda count: None
        return
    from rich.console import Console

    with Console(stderr=True).status("Listing the images ...") as spinner:
        yield lambda count: spinner.update(f"Listing the images: {count:,}")
