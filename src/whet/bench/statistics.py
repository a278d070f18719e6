"""Latency statistics of a list of timings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Latency:
    """Latencies of single runs in milliseconds; throughput in runs (or rows, where a batch is given) a second."""

    runs: int
    mean_ms: float
    lower_quartile_ms: float
    median_ms: float
    p95_ms: float
    p99_ms: float
    min_ms: float
    max_ms: float
    throughput_per_s: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def summarize(seconds: Sequence[float], batch: int = 1) -> Latency:
    """Statistics over timings in seconds. Raises ValueError when there is none."""
    if not seconds:
        raise ValueError("no timings to summarize")
    ms = np.asarray(seconds, dtype=np.float64) * 1e3
    quartile, median, p95, p99 = np.percentile(ms, [25, 50, 95, 99])
    return Latency(
        runs=len(seconds),
        mean_ms=float(ms.mean()),
        lower_quartile_ms=float(quartile),
        median_ms=float(median),
        p95_ms=float(p95),
        p99_ms=float(p99),
        min_ms=float(ms.min()),
        max_ms=float(ms.max()),
        throughput_per_s=batch * len(seconds) / float(np.sum(seconds)),
    )
