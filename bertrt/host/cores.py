"""How many cores this process may really use."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["MAX_THREADS", "usable_cores"]

# More threads than this are a slip, and starting millions would bring the machine down.
MAX_THREADS = 1024


def usable_cores(root: Path = Path("/")) -> int:
    """The cores in the process's affinity mask, fewer where a cgroup's CPU quota allows less.

    A quota is rounded down, to at least 1: a thread more than the quota pays for is stopped by the
    scheduler in the middle of its work, and the others wait for it.

    Args:
        root: where /proc and /sys are looked for.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _cgroup_quota(root)
    return cores if quota is None else max(1, min(cores, int(quota)))


def _cgroup_quota(root: Path) -> float | None:
    """The smallest quota, in cores, of the process's cgroup and those above it."""
    quotas = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, read_quota = root / "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            base, read_quota = root / "sys/fs/cgroup/cpu", _quota_v1
        else:
            continue
        group = base / path.lstrip("/")
        # Inside a container the path may name a group that is not visible: its ancestors are.
        for directory in (group, *group.parents):
            quota = read_quota(directory)
            if quota is not None:
                quotas.append(quota)
            if directory == base:
                break
    return min(quotas, default=None)


def _quota_v2(directory: Path) -> float | None:
    fields = _read(directory / "cpu.max").split()
    if len(fields) != 2 or fields[0] == "max":
        return None
    return int(fields[0]) / int(fields[1])


def _quota_v1(directory: Path) -> float | None:
    quota = _read(directory / "cpu.cfs_quota_us").strip()
    period = _read(directory / "cpu.cfs_period_us").strip()
    if not quota or not period or int(quota) <= 0:
        return None
    return int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
