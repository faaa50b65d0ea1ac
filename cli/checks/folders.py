"""Rows about folders: room on the disk, and the rights of this user."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from cli.checks.row import CheckContext, CheckFailed
from pipeline.errors import ImgrecError

GIB = 1024**3
# A rebuild writes its shards and a whole new version beside the one that serves.
COPIES = 3
LEAST_FREE = GIB


def disk(context: CheckContext) -> str:
    """The disk has room for a rebuild."""
    data_dir = context.settings.data_dir
    folder = data_dir
    while not folder.exists():
        folder = folder.resolve().parent
    free = shutil.disk_usage(folder).free
    published = sum(file.stat().st_size for file in _published_files(context))
    least = max(LEAST_FREE, COPIES * published)
    if free < least:
        raise CheckFailed(
            f"{free / GIB:.1f} GiB free in {data_dir}, but a rebuild needs {least / GIB:.1f} GiB",
            f"du -sh {shlex.quote(str(folder))}/* and free space there, or set DATA_DIR to a "
            "larger disk in .env",
        )
    return f"{free / GIB:.1f} GiB free in {data_dir}"


def _published_files(context: CheckContext) -> list[Path]:
    try:
        return list(context.resources.versions.current().folder.iterdir())
    except (ImgrecError, OSError):
        return []
