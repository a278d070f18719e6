"""The machine's figures and this process's own, from the operating system."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil

SHORTEST_S = 0.5
"""The utilization is taken over at least this long: of two who ask at once, both get the same figure."""


@dataclass(frozen=True, slots=True)
class MachineSample:
    """Figures of one moment. Utilization is 0 to 1 over all CPUs; times are seconds, sizes bytes."""

    cpu_utilization: float
    memory_total: int
    memory_used: int
    process_cpu_s: float
    process_resident: int
    process_virtual: int
    process_threads: int
    process_open_files: int
    process_started: float


class Machine:
    """Reads the figures. `sample` may block for some hundred microseconds: call it outside of the event loop."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._started = self._process.create_time()
        self._times = _cpu_times()
        self._at = time.monotonic()
        self._utilization = 0.0

    def sample(self) -> MachineSample:
        """The figures now; utilization since the sample before."""
        self._update_utilization()
        memory = psutil.virtual_memory()
        with self._process.oneshot():
            own, cpu = self._process.memory_info(), self._process.cpu_times()
            threads = self._process.num_threads()
        open_files = self._process.num_fds() if hasattr(self._process, "num_fds") else 0
        return MachineSample(
            self._utilization, memory.total, memory.total - memory.available, cpu.user + cpu.system, own.rss, own.vms,
            threads, open_files, self._started,
        )  # fmt: skip

    def _update_utilization(self) -> None:
        now = time.monotonic()
        if now - self._at < SHORTEST_S and self._utilization:
            return
        busy, total = _cpu_times()
        old_busy, old_total = self._times
        if total > old_total:
            self._utilization = min(max((busy - old_busy) / (total - old_total), 0.0), 1.0)
        self._times, self._at = (busy, total), now


def _cpu_times() -> tuple[float, float]:
    """Seconds that CPUs were busy, and all of their seconds."""
    times = psutil.cpu_times()
    # Linux counts guests' time in that of `user` already.
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total - times.idle - getattr(times, "iowait", 0.0), total
