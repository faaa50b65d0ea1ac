"""What this process may use of its machine: its CPU cores, and the limits of its control group.

A container and a service of systemd have a control group.

A limit of any group above counts, too. In a container of its own namespace the group is `/`;
otherwise /proc/self/cgroup says where it stands. Linux only; elsewhere there is no limit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/sys/fs/cgroup")
SELF = Path("/proc/self/cgroup")
# docs.kernel.org: admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst; scheduler/sched-bwc.rst.
MEMORY_V2, MEMORY_V1 = ("memory.max", "memory.high"), ("memory.limit_in_bytes",)


def memory_limit() -> int | None:
    """Return the least memory limit in bytes; None where there is none."""
    limits = [
        int(text)
        for names, controller in ((MEMORY_V2, ""), (MEMORY_V1, "memory"))
        for folder in _folders(controller)
        for name in names
        if (text := _read(folder / name)).isdigit()
    ]
    # Version 1 writes "no limit" as the largest multiple of a page.
    return min((limit for limit in limits if limit < 2**62), default=None)


def cpu_limit() -> float | None:
    """Return how many CPUs the least quota allows, e.g. 1.5; None where there is none."""
    quotas = []
    for folder in _folders(""):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        quotas.append((quota, period))
    for folder in _folders("cpu"):
        quotas.append((_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")))
    limits = [
        int(quota) / int(period)
        for quota, period in quotas  # no quota is "max", or -1
        if quota.isdigit() and period.isdigit() and int(period)
    ]
    return min(limits, default=None)


def cores() -> int:
    """Return the number of CPU cores that this process may use; a container may have fewer."""
    if hasattr(os, "sched_getaffinity"):
        n_cores = len(os.sched_getaffinity(0))
    else:
        n_cores = os.cpu_count() or 1
    quota = cpu_limit()
    return n_cores if quota is None else min(n_cores, max(1, int(quota)))


def _folders(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's group and of those above; version 2 has no name."""
    mounts = [ROOT / controller] if controller else [ROOT, ROOT / "unified"]
    for line in _read(SELF).splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            group = PurePosixPath(path.lstrip("/"))
            for mount in mounts:
                yield from (mount / place for place in (group, *group.parents))


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, ValueError):
        return ""
