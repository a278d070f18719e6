"""The default number of threads: affinity masks, topologies and cgroup trees of all kinds, as files in a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from whet.runtime.cores import CoreBudget, Quota, cgroup_quota, core_budget, describe_cores, physical_cores


def tree(root: Path, files: dict[str, str]) -> Path:
    """A folder with these files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def quota(tmp_path: Path, files: dict[str, str], own: str) -> float | None:
    tree(tmp_path / "cgroup", files)
    (tmp_path / "own").write_text(own)
    found = cgroup_quota(tmp_path / "cgroup", tmp_path / "own")
    return None if found is None else found.cores


V2 = [
    pytest.param({"cpu.max": "max 100000\n"}, "0::/\n", None, id="no limit"),
    pytest.param({"cpu.max": "150000 100000\n"}, "0::/\n", 1.5, id="a container's root"),
    pytest.param({"a/b/cpu.max": "50000 100000\n"}, "0::/a/b\n", 0.5, id="its own"),
    pytest.param({"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, "0::/a/b\n", 2.0, id="one above"),
    pytest.param({"a/cpu.max": "100000 100000\n", "a/b/cpu.max": "300000 100000\n"}, "0::/a/b\n", 1.0, id="tightest"),
    pytest.param({"other/cpu.max": "100000 100000\n"}, "0::/a\n", None, id="a stranger's"),
    pytest.param({"cpu.max": "100000 50000\n"}, "0::/docker/0123\n", 2.0, id="the host's path, not in the container"),
    pytest.param({"unified/a/cpu.max": "100000 100000\n"}, "1:name=systemd:/\n0::/a\n", 1.0, id="hybrid"),
]
V1 = [
    pytest.param({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "3:cpu:/\n", None, id="no limit"),
    pytest.param({"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, "3:cpu:/\n", 2.5, id="root"),
    pytest.param(
        {"cpu,cpuacct/a/cpu.cfs_quota_us": "100000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
        "4:cpu,cpuacct:/a\n2:memory:/b\n", 1.0, id="joined controllers",
    ),
    pytest.param(
        {"cpu/a/cpu.cfs_quota_us": "100000", "cpu/a/cpu.cfs_period_us": "100000"},
        "4:cpuacct,cpu:/a\n", 1.0, id="joined in another order than the folder is named",
    ),
    pytest.param(
        {"memory/a/cpu.cfs_quota_us": "100000", "memory/a/cpu.cfs_period_us": "100000"},
        "2:memory:/a\n", None, id="not the controller of time",
    ),
]  # fmt: skip
ODD = [
    pytest.param({}, "", None, id="nothing"),
    pytest.param({"cpu.max": ""}, "0::/\n", None, id="empty"),
    pytest.param({"cpu.max": "100000"}, "0::/\n", None, id="no period"),
    pytest.param({"cpu.max": "100000 0"}, "0::/\n", None, id="a period of 0"),
    pytest.param({"cpu.max": "many 100000"}, "0::/\n", None, id="no number"),
    pytest.param({"cpu/cpu.cfs_quota_us": "1e5", "cpu/cpu.cfs_period_us": "100000"}, "", None, id="no whole number"),
    pytest.param({"cpu.max": "100000 100000"}, "nonsense\n:\n0::/../../etc\n", 1.0, id="a broken list of cgroups"),
]


@pytest.mark.parametrize(("files", "own", "expected"), [*V2, *V1, *ODD])
def test_quota(tmp_path: Path, files: dict[str, str], own: str, expected: float | None) -> None:
    assert quota(tmp_path, files, own) == expected


def test_a_quota_names_its_file(tmp_path: Path) -> None:
    tree(tmp_path, {"a/cpu.max": "150000 100000"})
    (tmp_path / "own").write_text("0::/a\n")
    found = cgroup_quota(tmp_path, tmp_path / "own")
    assert found == Quota(1.5, str(tmp_path / "a" / "cpu.max"))


def topology(root: Path, siblings: dict[int, str], name: str = "thread_siblings_list") -> Path:
    return tree(root, {f"cpu{cpu}/topology/{name}": text + "\n" for cpu, text in siblings.items()})


@pytest.mark.parametrize("name", ["thread_siblings_list", "core_cpus_list"])
def test_hardware_threads_of_a_core_count_once(tmp_path: Path, name: str) -> None:
    folder = topology(tmp_path, {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"}, name)
    assert physical_cores(range(8), folder) == 4
    assert physical_cores([0, 4], folder) == 1
    assert physical_cores([0, 1, 4], folder) == 2
    assert physical_cores([], folder) == 1


def test_cores_that_the_system_does_not_describe_count(tmp_path: Path) -> None:
    assert physical_cores(range(3), tmp_path) == 3


def budget(logical: int, allowed: int, physical: int, cores: float | None = None) -> CoreBudget:
    return CoreBudget(logical, tuple(range(allowed)), physical, None if cores is None else Quota(cores, "/cpu.max"))


@pytest.mark.parametrize(
    ("found", "threads", "reason"),
    [
        (budget(2, 2, 2), 2, "2 physical cores"),
        (budget(1, 1, 1), 1, "1 physical core"),
        (budget(8, 8, 4), 4, "4 physical cores behind 8 hardware threads"),
        (budget(8, 2, 1), 1, "1 physical core in the affinity mask of 2 of 8 CPUs"),
        (budget(8, 8, 4, 1.5), 2, "the cgroup's quota of 1.5 cores (/cpu.max)"),
        (budget(8, 8, 4, 0.2), 1, "the cgroup's quota of 0.2 cores (/cpu.max)"),
        (budget(8, 8, 4, 6.0), 4, "4 physical cores behind 8 hardware threads"),
    ],
)
def test_the_tightest_bound_decides(found: CoreBudget, threads: int, reason: str) -> None:
    assert (found.threads, found.reason) == (threads, reason)


def test_the_budget_of_this_process() -> None:
    found = describe_cores()
    assert found.threads == core_budget() >= 1
    assert found.logical >= found.physical


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity masks")
def test_one_cpu_means_one_thread_and_more_on_demand_sleep() -> None:
    """A process bound to one CPU: one thread by default; a session that asks for three gets two workers, that sleep."""
    code = """
import os
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
from tests.runtime_programs import Count, one_kernel
import numpy as np
from whet.runtime.cores import core_budget
from whet.runtime.layout import Worker
from whet.runtime.team import team
assert core_budget() == 1
out, context = np.zeros(50, np.int64), one_kernel(Count(), 50).context(3)
context.prepare(())
for _ in range(20):
    context.run([], [out.ctypes.data])
assert (out == 20).all()
assert team().workers == 2
for index in range(2):
    block = team().mailbox(index)
    assert block[Worker.IDLE_SPIN] == block[Worker.RUN_SPIN] == 0
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert done.returncode == 0, done.stderr
