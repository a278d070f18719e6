"""How many threads of this process can run at once: affinity, cgroup quota and physical cores."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

_CPU = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class Quota:
    """CPU time that a cgroup allows, in cores, and the file that says so."""

    cores: float
    source: str


@dataclass(frozen=True, slots=True)
class CoreBudget:
    """What decides on the default number of threads, and the decision."""

    logical: int
    """Hardware threads of the machine."""
    allowed: tuple[int, ...] | None
    """The CPUs of this process's affinity mask; None where the system has none."""
    physical: int
    """Physical cores among them: hardware threads of one core count once."""
    quota: Quota | None
    """The tightest one, if any."""

    @property
    def threads(self) -> int:
        """Threads of a run unless a session says otherwise: physical cores, less what the quota forbids; at least 1."""
        return self.physical if self.quota is None else max(1, min(self.physical, math.ceil(self.quota.cores)))

    @property
    def reason(self) -> str:
        """What the number of threads follows from."""
        if self.quota is not None and self.threads < self.physical:
            return f"the cgroup's quota of {self.quota.cores:g} cores ({self.quota.source})"
        usable = self.logical if self.allowed is None else len(self.allowed)
        cores = f"{self.physical} physical core{'s' * (self.physical != 1)}"
        if usable < self.logical:
            return f"{cores} in the affinity mask of {usable} of {self.logical} CPUs"
        return f"{cores} behind {usable} hardware threads" if self.physical < usable else cores


def core_budget() -> int:
    """Physical cores that this process may use, at least 1: its affinity mask, less what its cgroup's quota forbids."""
    return describe_cores().threads


def describe_cores() -> CoreBudget:
    """The budget of this moment, with what it follows from."""
    logical = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        allowed = tuple(sorted(os.sched_getaffinity(0)))
        return CoreBudget(max(logical, len(allowed)), allowed, physical_cores(allowed), cgroup_quota())
    return CoreBudget(logical, None, psutil.cpu_count(logical=False) or logical, cgroup_quota())


def physical_cores(cpus: Iterable[int], folder: Path = _CPU) -> int:
    """Physical cores among the CPUs; those whose siblings the system does not tell count as cores."""
    return max(1, len({_siblings(cpu, folder) for cpu in cpus}))


def cgroup_quota(root: Path = _CGROUP, own: Path = _OWN_CGROUP) -> Quota | None:
    """The tightest CPU quota of this process's cgroups and of all above them (versions 1 and 2), or None."""
    found: list[Quota] = []
    for folder in dict.fromkeys(_own_folders(root, own)):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        found += _quota(quota, period, folder / "cpu.max")
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        found += _quota(quota, period, folder / "cpu.cfs_quota_us")
    return min(found, key=lambda quota: quota.cores, default=None)


def _quota(quota: str, period: str, source: Path) -> list[Quota]:
    """Microseconds of CPU time in a period of so many, as the kernel writes them: "max" and -1 are no limit."""
    if not (quota.isdecimal() and period.isdecimal() and int(quota) and int(period)):
        return []
    return [Quota(int(quota) / int(period), str(source))]


def _own_folders(root: Path, own: Path) -> list[Path]:
    """The folders that may hold a quota for this process: its own cgroups and all above them.

    In a container, the path of /proc/self/cgroup may be the host's, which the container's tree does not hold: there the
    roots stand for the container's own cgroup.
    """
    folders = [root, root / "unified", root / "cpu", root / "cpu,cpuacct"]
    for line in _read(own).splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        controllers, path = parts[1], parts[2].lstrip("/")
        if controllers and "cpu" not in controllers.split(","):
            continue
        for base in (root / controllers, root / "cpu") if controllers else (root, root / "unified"):
            here = base / path
            while here != base and base in here.parents:
                folders.append(here)
                here = here.parent
            folders.append(base)
    return folders


def _siblings(cpu: int, folder: Path) -> str:
    topology = folder / f"cpu{cpu}" / "topology"
    # The newer name says what is meant; a core's own number is not unique among sockets.
    return _read(topology / "core_cpus_list") or _read(topology / "thread_siblings_list") or str(cpu)


def _read(path: Path) -> str:
    # Kernels and containers differ in which of these files exist and may be read; one that is not there says nothing.
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
