"""The command that deletes what is beyond the bounds of the settings."""

from __future__ import annotations

from dataclasses import asdict

import click

from cli.output import json_option, print_fields, print_json
from cli.progress import work_bar
from cli.wiring import Wiring, pass_wiring


@click.command()
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, and delete nothing.")
@json_option
@pass_wiring
def prune(wiring: Wiring, dry_run: bool, as_json: bool) -> None:
    """Delete old rebuilds, index versions, cached cut-outs and unused downloads of feed images.

    The bounds are KEEP_JOBS, KEEP_JOB_ROWS, KEEP_VERSIONS and CUTOUT_CACHE_BYTES. Each publication
    does the same. What a running rebuild or a rollback needs is kept.
    """
    from workers.prune import prune as delete_old

    with work_bar("looking" if dry_run else "deleting", None, as_json):
        pruned = delete_old(wiring.resources, dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, **asdict(pruned)})
        return
    print_fields(
        "Would be deleted" if dry_run else "Deleted",
        [
            ("index versions", ", ".join(pruned.versions) or "none"),
            ("rebuilds", f"{len(pruned.jobs):,}, with {pruned.rows:,} shards and failures"),
            ("folders of ended rebuilds", f"{len(pruned.folders):,}"),
            ("cut-outs", f"{pruned.cutout_bytes / 2**20:,.1f} MiB"),
            (
                "fetched images",
                f"{pruned.fetched_files:,}, {pruned.fetched_bytes / 2**20:,.1f} MiB",
            ),
        ],
    )
