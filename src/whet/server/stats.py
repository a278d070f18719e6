"""Counters of one model version: plain numbers that only the event loop changes, read by statistics and metrics."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

DURATION_BOUNDS_US: tuple[float, ...] = (
    50, 100, 200, 350, 500, 750, 1_000, 1_500, 2_000, 3_500, 5_000, 7_500, 10_000, 15_000, 20_000, 35_000, 50_000,
    75_000, 100_000, 150_000, 200_000, 350_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000,
)  # fmt: skip
"""Upper bounds of the histograms' buckets of durations."""

ROW_BOUNDS: tuple[float, ...] = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512)
"""Upper bounds of the buckets of batch sizes."""


class Histogram:
    """Counts by bucket, with the sum; the last bucket is what lies above every bound."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def observe_all(self, values: npt.NDArray[Any]) -> None:
        """Several values."""
        counts = self.counts
        for bucket, count in enumerate(np.bincount(np.searchsorted(self.bounds, values))):
            counts[bucket] += int(count)
        self.sum += float(values.sum())

    @property
    def count(self) -> int:
        return sum(self.counts)


@dataclass(slots=True)
class Duration:
    """How often something happened and how long it took altogether, as the statistics extension shows it."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns


@dataclass(slots=True)
class BatchStats:
    """Runs of one batch size."""

    input: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)
    output: Duration = field(default_factory=Duration)


@dataclass(slots=True)
class ModelStats:
    """What one model version did. Durations in nanoseconds where the name has no unit; see `Duration`."""

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    cache_hit: Duration = field(default_factory=Duration)
    cache_miss: Duration = field(default_factory=Duration)
    inference_count: int = 0
    execution_count: int = 0
    last_inference_ms: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    closed: dict[str, int] = field(default_factory=dict)
    batches: dict[int, BatchStats] = field(default_factory=dict)
    request_us: Histogram = field(default_factory=lambda: Histogram(DURATION_BOUNDS_US))
    queue_us: Histogram = field(default_factory=lambda: Histogram(DURATION_BOUNDS_US))
    infer_us: Histogram = field(default_factory=lambda: Histogram(DURATION_BOUNDS_US))
    batch_rows: Histogram = field(default_factory=lambda: Histogram(ROW_BOUNDS))

    def count_at_once(self, noted: Sequence[tuple[int, int, int, int, int]]) -> None:
        """Count requests that ran alone as they came: their rows, and when each was received, begun, computed and
        finished. All together, as this takes less time than the same for each of them."""
        rows, received, began, ended, finished = np.array(noted, np.int64).T
        count = len(noted)
        total, infer = finished - received, ended - began
        for duration, ns in (
            (self.success, total), (self.compute_input, began - received), (self.compute_infer, infer),
            (self.compute_output, finished - ended),
        ):  # fmt: skip
            duration.count += count
            duration.ns += int(ns.sum())
        self.queue.count += count
        self.inference_count += int(rows.sum())
        self.execution_count += count
        # Another one may have ended on a thread since.
        last_ms = (time.time_ns() - time.monotonic_ns() + int(finished[-1])) // 1_000_000
        self.last_inference_ms = max(self.last_inference_ms, last_ms)
        self.request_us.observe_all(total / 1e3)
        self.queue_us.counts[0] += count
        self.infer_us.observe_all(infer / 1e3)
        self.batch_rows.observe_all(rows)
        self.closed["at once"] = self.closed.get("at once", 0) + count
        for size in np.unique(rows):
            of_size = rows == size
            batch = self.batches.setdefault(int(size), BatchStats())
            for duration in (batch.input, batch.infer, batch.output):
                duration.count += int(of_size.sum())
            batch.infer.ns += int(infer[of_size].sum())
