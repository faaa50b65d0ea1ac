"""Show a rebuild, and wait for its end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from cli.output import duration, echo_err, print_fields, print_json
from cli.progress import progress_bar
from cli.wiring import Wiring
from pipeline.errors import JobFailed, ServerUnavailable, SettingsDiffer, TimedOut
from pipeline.store.job_object import job_object
from workers.routes import nobody_listens, queue_of_job

if TYPE_CHECKING:
    from pipeline.store.job import Job, Progress
    from pipeline.store.jobs import Jobs
    from workers.local import Work
    from workers.resources import Resources

POLL_S = 0.25
NO_WORKER_AFTER_S = 4.0
COMPARE_EVERY_S = 1.0
WORTH_TUNING_S = 60.0  # of worker time; a shorter rebuild needs no advice


# What shortens a rebuild, by the stage that takes most of the workers' time.
ADVICE = {
    "read": "faster storage for the products folder, or more CPU_THREADS",
    "decode": "more embed workers, or smaller images",
    "cut_out": "more embed workers, or a smaller REMBG_MODEL",
    "embed": "more embed workers, or a GPU (DEVICE)",
    "write": "faster storage for DATA_DIR, or a Redis that is nearer",
}


def show_job(jobs: Jobs, job_id: str) -> None:
    """Show people how far a job is."""
    job = job_object(jobs, job_id)
    print_fields(
        f"Job {job_id}",
        [
            ("state", job["state"]),
            ("index version", job["index_version"] or "-"),
            *([("stage", job["stage"])] if job["stage"] else []),
            ("images", job["images"]),
            *_fetched(job),
            ("embedded", job["embedded"]),
            ("reused", job["reused"]),
            ("skipped", job["skipped"]),
            ("warnings", job["warnings"]),
            *_left_out(job["left_out"]),
            ("time", duration(job["seconds"])),
        ],
    )
    if job["error"]:
        echo_err(f"{'Error' if job['state'] == 'failed' else 'Waiting'}: {job['error']}")
    if sum(job["stage_seconds"].values()) >= WORTH_TUNING_S:
        stage, share = job["bottleneck"]["stage"], job["bottleneck"]["share"]
        echo_err(
            f"Bottleneck: {stage.replace('_', ' ')}, {share:.0%} of worker time. What would help: "
            f"{ADVICE[stage]}."
        )
    if job["skipped"] or job["warnings"]:
        echo_err(f"'imgrec failures {job_id}' lists the images and the reasons.")


def _fetched(job: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the line about what was downloaded, of a job that fetches."""
    if not job["fetched"] and not job["unchanged"]:
        return []
    return [("fetched", f"{job['fetched']:,} new or changed, {job['unchanged']:,} unchanged")]


def _left_out(counts: dict[str, int]) -> list[tuple[str, str]]:
    """Return the line about files and folders that were left out on purpose, if there are any."""
    text = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
    return [("left out", text)] if counts else []


def wait_for_job(
    wiring: Wiring, job_id: str, timeout: float | None, as_json: bool, local: bool
) -> None:
    """Show progress until a job ends, and help it along meanwhile; with `local`, do it here.

    Raises:
        JobFailed: the job failed or was cancelled. TimedOut: not in time; the job goes on.
    """
    resources, work = wiring.resources, None
    if local:
        resources, work = wiring.local.resources, wiring.local.work_at(job_id)
    try:
        job = _watch(resources, job_id, timeout, as_json, work)
    except (KeyboardInterrupt, SettingsDiffer, TimedOut):
        if work is not None:
            work.stop()
            echo_err(
                f"Stopped. 'imgrec status {job_id} --wait --local' continues the job, and so do "
                f"workers that run; 'imgrec cancel {job_id}' cancels it."
            )
        else:
            echo_err(
                f"The job continues. 'imgrec status {job_id}' shows its progress, 'imgrec cancel "
                f"{job_id}' cancels it."
            )
        raise
    except BaseException:
        if work is not None:
            work.stop()
        raise
    if as_json:
        print_json(job_object(resources.jobs, job_id))
    else:
        show_job(resources.jobs, job_id)
    if job.state == "failed":
        raise JobFailed(f"Job {job_id} failed." if not as_json else f"{job.error}")
    if job.state == "cancelled":
        raise JobFailed(f"Job {job_id} was cancelled.")


def _watch(
    resources: Resources, job_id: str, timeout: float | None, quiet: bool, work: Work | None
) -> Job:
    jobs, helper = resources.jobs, _Reconciler(resources)
    deadline = None if timeout is None else time.monotonic() + timeout
    with progress_bar(quiet) as show:
        while True:
            try:
                job = jobs.get(job_id)
                progress = jobs.progress(job_id)
            except ServerUnavailable as error:
                helper.wait_for(error)  # the job outlives a database that restarts; so does this
            else:
                show(job, progress)
                if not job.open:
                    return job
                if job.error:
                    helper.say(f"Waiting: {job.error}")
                if work is None:
                    helper.compare(job)
                    helper.step(job, progress)
            if deadline is not None and time.monotonic() > deadline:
                raise TimedOut(f"Job {job_id} is not finished after {timeout:g} s.")
            if work is not None:
                work.check()
            time.sleep(POLL_S)


class _Reconciler:
    """Do the reconciler's work while somebody waits, and say what keeps the job from moving."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._next = time.monotonic() + NO_WORKER_AFTER_S
        self._looked_at = -1
        self._compare_next = 0.0
        self._said: set[str] = set()

    def step(self, job: Job, progress: Progress) -> None:
        from workers.reconcile import reconcile

        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._resources.settings.reconcile_s
        try:
            reconcile(self._resources)
            stuck = progress.looked_at == self._looked_at
            self._looked_at = progress.looked_at
            if stuck:
                queue = queue_of_job(job, progress)
                if not self._resources.dispatcher.workers()[queue]:
                    self.say(nobody_listens(queue))
        except ServerUnavailable as error:
            self.wait_for(error)

    def compare(self, job: Job) -> None:
        """End the wait where no worker works with this job's database and folder; else say which.

        Raises:
            SettingsDiffer: none of them.
        """
        from workers.agreement import Mismatch, require_agreement
        from workers.reconcile import queues_of_rebuild

        registry = self._resources.dispatcher.registry
        if registry is None or time.monotonic() < self._compare_next:
            return
        self._compare_next = time.monotonic() + COMPARE_EVERY_S
        try:
            report = registry.unknown_job(job.id)
            present = registry.present()
        except ServerUnavailable as error:
            self.wait_for(error)
            return
        queues, parts = queues_of_rebuild(job.root), ("database", "data")
        mine = self._resources.identifier.read(*parts) if present else None
        mismatch = Mismatch.find(mine, present, queues, parts) if mine else None
        told = " ".join(str(each) for each in (report, mismatch) if each)
        if mine is not None and mismatch is not None and mismatch.all_differ:
            if report is not None:
                raise SettingsDiffer(told)
            require_agreement(registry, mine, queues, parts, present)
        elif told:
            self.say(told)

    def wait_for(self, error: ServerUnavailable) -> None:
        """Say once that a server is away, and that it is waited for."""
        self.say(f"{error} Waiting for it.")

    def say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            echo_err(text)
