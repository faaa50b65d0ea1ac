"""Rows about folders: room on the disk, and the rights of this user."""

from __future__ import annotations

import shlex
import shutil

from cli.checks.row import CheckContext, CheckFailed, CheckWarning
from pipeline.access import (
    named_folders,
    require_data_dir,
    require_readable,
    require_writable,
    user_name,
)
from pipeline.errors import FolderUnavailable, ImgrecError

GIB = 1024**3
# A rebuild writes its shards and a whole new version beside the one that serves.
COPIES = 3
LEAST_FREE = GIB


def disk(context: CheckContext) -> str:
    """A rebuild can write all it has to, and there is room for it."""
    settings = context.settings
    data_dir = settings.data_dir
    require_data_dir(settings)
    folder = data_dir
    while not folder.exists():
        folder = folder.resolve().parent
    free = shutil.disk_usage(folder).free
    published = _published_bytes(context)
    least = max(LEAST_FREE, COPIES * published)
    if free < least:
        raise CheckFailed(
            f"{free / GIB:.1f} GiB free in {data_dir}, but a rebuild needs {least / GIB:.1f} GiB",
            f"du -sh {shlex.quote(str(folder))}/* and free space there, or set DATA_DIR to a "
            "larger disk in .env",
        )
    return f"{free / GIB:.1f} GiB free in {data_dir}"


def rights(context: CheckContext) -> str:
    """This user may read and write the other folders; that of the database has a row of its own."""
    settings = context.settings
    for name, folder in named_folders(settings):
        require_readable(folder, name)
    require_readable(settings.training_dir, "DATA_DIR")
    try:
        for name, folder in named_folders(settings):
            if name not in ("DATA_DIR", "DATABASE_URL"):
                require_writable(folder, name)
    except FolderUnavailable as error:  # only training, or a download, writes there
        raise CheckWarning(str(error), "needed only to train or to download a model") from error
    return f"{user_name()} may read and write every folder"


def _published_bytes(context: CheckContext) -> int:
    try:
        files = context.resources.versions.current().manifest["files"]
    except (ImgrecError, OSError):
        return 0
    return sum(file["bytes"] for file in files.values())
