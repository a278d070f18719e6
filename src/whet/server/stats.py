"""Counters of one model version: plain numbers that only the event loop changes, read by statistics and metrics."""

from __future__ import annotations

import time
from bisect import bisect_left
from dataclasses import dataclass, field

from whet.server.request import RequestTimes

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

    def count_at_once(self, rows: int, times: RequestTimes) -> None:
        """Note a request that ran alone as it came: what its parts would add, without their calls."""
        began, ended, finished = times.started_ns, times.computed_ns, times.finished_ns
        total, infer = finished - times.received_ns, ended - began
        counter = self.success
        counter.count += 1
        counter.ns += total
        self.queue.count += 1
        counter = self.compute_input
        counter.count += 1
        counter.ns += began - times.received_ns
        counter = self.compute_infer
        counter.count += 1
        counter.ns += infer
        counter = self.compute_output
        counter.count += 1
        counter.ns += finished - ended
        self.inference_count += rows
        self.execution_count += 1
        self.last_inference_ms = time.time_ns() // 1_000_000
        self.request_us.observe(total / 1e3)
        self.queue_us.counts[0] += 1
        self.infer_us.observe(infer / 1e3)
        self.batch_rows.observe(rows)
        self.closed["at once"] = self.closed.get("at once", 0) + 1
        batch = self.batches.get(rows)
        if batch is None:
            batch = self.batches[rows] = BatchStats()
        batch.input.count += 1
        batch.output.count += 1
        counter = batch.infer
        counter.count += 1
        counter.ns += infer
