"""The type of the file system of a path. Linux only; elsewhere it is unknown."""

from __future__ import annotations

import re
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")  # proc_pid_mountinfo(5)
NETWORK = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre"),
        *("gpfs", "beegfs", "ocfs2", "gfs2", "pvfs2", "coda", "ncpfs"),
    }
)


def file_system(path: Path) -> str:
    """Return the type of the file system that holds a path, e.g. ext4; "" where it is unknown."""
    target, best = path.resolve(), ("", "")
    try:
        lines = MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        # Spaces and the like are written as \040.
        mount = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), fields.split()[4])
        # The later of two mounts on one folder covers the earlier.
        if target.is_relative_to(mount) and len(mount) >= len(best[0]):
            best = (mount, rest.split()[0])
    return best[1]


def shares_memory(path: Path) -> bool:
    """Tell whether the processes that map a file there see each other's changes at once.

    Not over a network, and not on every file system in user space.
    """
    kind = file_system(path)
    return kind not in NETWORK and kind != "fuse" and not kind.startswith("fuse.")
