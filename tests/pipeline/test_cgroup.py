"""The limits of a container are found wherever its control group stands, in both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import cgroup
from pipeline.cgroup import cores
from pipeline.images.memory_budget import default_limit

GIB = 1024**3
NO_LIMIT_V1 = str(2**63 - 4096)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroup, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(cgroup, "SELF", tmp_path / "self")
    return tmp_path


def write(files: Path, groups: str, **limits: str) -> None:
    (files / "self").write_text(groups)
    for name, value in limits.items():
        file = files / "cgroup" / name.replace("__", "/").replace("DOT", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")


V2, V1 = "0::/\n", "9:cpu,cpuacct:/\n4:memory:/\n0::/\n"
DEEP2 = "0::/kubepods.slice/pod1/worker\n"
DEEP1 = "9:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n"


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        (V2, {"memoryDOTmax": str(GIB)}, GIB),
        (V2, {"memoryDOTmax": "max"}, None),
        (V2, {"memoryDOTmax": "max", "memoryDOThigh": str(GIB)}, GIB),
        (V1, {"memory__memoryDOTlimit_in_bytes": str(GIB)}, GIB),
        (V1, {"memory__memoryDOTlimit_in_bytes": NO_LIMIT_V1}, None),
        # systemd, or Kubernetes with the host's namespace: the group of the process, not the root.
        (DEEP2, {"kubepodsDOTslice__pod1__worker__memoryDOTmax": str(GIB)}, GIB),
        # A group above limits it.
        (DEEP2, {"kubepodsDOTslice__memoryDOTmax": str(GIB)}, GIB),
        (DEEP1, {"memory__docker__abc__memoryDOTlimit_in_bytes": str(GIB)}, GIB),
        # A container of version 1 sees its own group at the root, and the host's path of it.
        (DEEP1, {"memory__memoryDOTlimit_in_bytes": str(GIB)}, GIB),
        ("", {}, None),
    ],
)
def test_the_memory_limit_of_a_group(
    files: Path, groups: str, limits: dict[str, str], expected: int | None
) -> None:
    write(files, groups, **limits)
    assert cgroup.memory_limit() == expected


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        (V2, {"cpuDOTmax": "150000 100000"}, 1.5),
        (V2, {"cpuDOTmax": "max 100000"}, None),
        (V1, {"cpu__cpuDOTcfs_quota_us": "50000", "cpu__cpuDOTcfs_period_us": "100000"}, 0.5),
        (V1, {"cpu__cpuDOTcfs_quota_us": "-1", "cpu__cpuDOTcfs_period_us": "100000"}, None),
        (DEEP2, {"kubepodsDOTslice__pod1__cpuDOTmax": "300000 100000"}, 3.0),
    ],
)
def test_the_cpu_quota_of_a_group(
    files: Path, groups: str, limits: dict[str, str], expected: float | None
) -> None:
    write(files, groups, **limits)
    assert cgroup.cpu_limit() == expected
    assert 1 <= cores() <= max(1, int(expected or 10**6))


def test_workers_share_the_memory_of_their_container(files: Path) -> None:
    write(files, V2, memoryDOTmax=str(300 * 1024**2))
    assert default_limit(1) == 270 * 1024**2
    assert default_limit(3) == 90 * 1024**2


def test_without_a_limit_a_worker_may_use_half_of_the_machine(files: Path) -> None:
    write(files, V2)
    machine = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert default_limit(3) == pytest.approx(machine / 2, rel=0.05)
