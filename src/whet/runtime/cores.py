"""How many threads of this process can run at once: affinity, cgroup quota and physical cores."""

from __future__ import annotations

import math
import os
from pathlib import Path

import psutil

_CPU = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def core_budget() -> int:
    """Physical cores that this process may use, at least 1: its affinity mask, less what its cgroup's quota forbids."""
    quota = cgroup_cores()
    cores = physical_cores()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def physical_cores() -> int:
    """Physical cores in this process's affinity mask (hardware threads of one core count once)."""
    if hasattr(os, "sched_getaffinity"):
        allowed = os.sched_getaffinity(0)
        cores = {_siblings(cpu) for cpu in allowed}
        return max(1, len(cores))
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def cgroup_cores(root: Path = _CGROUP, own: Path = _OWN_CGROUP) -> float | None:
    """The tightest CPU quota of this process's cgroups, in cores, or None without one (versions 1 and 2)."""
    found: list[float] = []
    for folder in _own_folders(root, own):
        limit = _read(folder / "cpu.max").split()
        if len(limit) == 2 and limit[0] != "max":
            found.append(int(limit[0]) / int(limit[1]))
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota and period and int(quota) > 0:
            found.append(int(quota) / int(period))
    return min(found, default=None)


def _own_folders(root: Path, own: Path) -> list[Path]:
    """The folders that may hold a quota for this process: its own cgroups and all above them."""
    folders = [root, root / "cpu", root / "cpu,cpuacct"]
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        base = root if not controllers else root / controllers
        here = base / path.lstrip("/")
        while here != base and base in here.parents:
            folders.append(here)
            here = here.parent
    return folders


def _siblings(cpu: int) -> str:
    return _read(_CPU / f"cpu{cpu}" / "topology" / "thread_siblings_list") or str(cpu)


def _read(path: Path) -> str:
    # Kernels and containers differ in which of these files exist and may be read; one that is not there says nothing.
    try:
        return path.read_text().strip()
    except OSError:
        return ""
