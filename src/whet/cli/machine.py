"""`whet info --machine`: what this machine is, what was chosen for it, and why."""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import platformdirs

from whet.cli.output import Output, format_bytes
from whet.codegen.target import Target, host_target
from whet.config import KIB
from whet.errors import NotImplemented
from whet.profiling.peak import Peak, machine_peak
from whet.runtime.cores import CoreBudget, describe_cores
from whet.runtime.team import IDLE_SPIN_NS, RUN_SPIN_NS

_CPUINFO = Path("/proc/cpuinfo")
_NOTED = (
    "avx2", "fma", "f16c", "avxvnni", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "avx512bf16",
    "avx512fp16", "amx-tile", "amx-int8", "amx-bf16", "neon", "dotprod", "i8mm", "bf16", "fullfp16", "sve", "sve2",
)  # fmt: skip
"""Features that decide on kernels, of this generation of compilers or the next."""


def show_machine(out: Output, measure: bool) -> None:
    """Print what sessions find on this machine; with `measure`, also what it does at most."""
    cores = describe_cores()
    try:
        target, problem = host_target(), None
    except NotImplemented as error:
        target, problem = None, str(error)
    peak = machine_peak() if measure and target is not None else None
    out.result(_document(cores, target, problem, peak))
    rows = [("system", f"{platform.system()} {platform.release()}, Python {platform.python_version()}")]
    if target is None:
        rows.append(("compiled code", f"none: {problem}"))
    else:
        rows += _target_rows(target)
    rows += _core_rows(cores)
    if peak is not None:
        rows += _peak_rows(peak)
    rows += [(f"cache: {name}", text) for name, text in _cache_rows()]
    out.table("", ("this machine", ""), rows, whole=(0,))
    if not measure:
        out.text("--measure adds what this machine computes and reads at most (a few seconds).")


def _target_rows(target: Target) -> list[tuple[str, str]]:
    caches = (("L1", target.l1_bytes), ("L2", target.l2_bytes), ("L3", target.l3_bytes))
    sizes = ", ".join(f"{name} {size // KIB} KiB" for name, size in caches if size)
    return [
        ("CPU", f"{_cpu_name()} ({target.cpu})"),
        ("features", " ".join(_features(target))),
        ("vectors", f"{target.vector_bits} bits, {target.vector_registers} registers"),
        ("data caches", f"{sizes} (L1 and L2 of a core)"),
    ]


def _core_rows(cores: CoreBudget) -> list[tuple[str, str]]:
    usable = cores.logical if cores.allowed is None else len(cores.allowed)
    smt = f"{usable} hardware threads on {cores.physical} cores" if usable > cores.physical else "one thread a core"
    affinity = "none on this system" if cores.allowed is None else f"CPUs {_ranges(cores.allowed)} of {cores.logical}"
    quota = "none" if cores.quota is None else f"{cores.quota.cores:g} cores ({cores.quota.source})"
    return [
        ("cores", f"{cores.physical}, {smt}"),
        ("affinity", affinity),
        ("cgroup quota", quota),
        ("threads of a run", f"{cores.threads}: {cores.reason}"),
        (
            "waiting workers",
            f"spin {RUN_SPIN_NS // 1000} µs in a run and {IDLE_SPIN_NS // 1000} µs after it, then sleep",
        ),
        ("more threads", f"allowed; workers beyond {cores.threads} threads, and those of goal=throughput, never spin"),
    ]


def _peak_rows(peak: Peak) -> list[tuple[str, str]]:
    def line(gflops: float, near: float, far: float) -> str:
        return f"{gflops:.0f} GFLOP/s float32, {near:.0f} GB/s from L2, {far:.0f} GB/s from memory"

    return [
        ("peak, one thread", line(peak.gflops_one, peak.l2_gbytes_one, peak.memory_gbytes_one)),
        (f"peak, {peak.threads} threads", line(peak.gflops_all, peak.l2_gbytes_all, peak.memory_gbytes_all)),
    ]


def _cache_rows() -> list[tuple[str, str]]:
    return [(name, f"{folder}, {format_bytes(size)} in {files} files") for name, folder, files, size in _caches()]


def _caches() -> list[tuple[str, Path, int, int]]:
    """Whet's caches on disk that exist: name, folder, files, bytes."""
    root = platformdirs.user_cache_path("whet")
    found = []
    for folder in sorted(path for path in root.glob("*") if path.is_dir()):
        sizes = []
        for path in folder.rglob("*"):
            try:
                sizes += [path.stat().st_size] if path.is_file() else []
            except OSError:
                continue  # another process has removed it since
        found.append((folder.name, folder, len(sizes), sum(sizes)))
    return found


def _cpu_name() -> str:
    """What the CPU calls itself."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _features(target: Target) -> list[str]:
    return [name for name in _NOTED if target.has(name)]


def _ranges(numbers: tuple[int, ...]) -> str:
    """Sorted numbers, neighbours joined: 0-3,8."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def _document(cores: CoreBudget, target: Target | None, problem: str | None, peak: Peak | None) -> dict[str, Any]:
    return {
        "system": platform.system(),
        "cpu": _cpu_name(),
        "target": None if target is None else {**asdict(target), "noted_features": _features(target)},
        "problem": problem,
        "cores": {**asdict(cores), "threads": cores.threads, "reason": cores.reason},
        "spin_ns": {"in_a_run": RUN_SPIN_NS, "after_a_run": IDLE_SPIN_NS},
        "peak": None if peak is None else asdict(peak),
        "caches": [
            {"name": name, "folder": str(folder), "files": files, "bytes": size}
            for name, folder, files, size in _caches()
        ],
    }
