"""Counters of a model: many requests counted at once are what each of them adds."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter

import numpy as np

from whet.server.stats import DURATION_BOUNDS_US, ROW_BOUNDS, Histogram, ModelStats


def test_requests_that_are_counted_together() -> None:
    rng = np.random.default_rng()
    stats = ModelStats()
    noted: list[tuple[int, int, int, int, int]] = []
    for size in (1, 5, 300):
        part = []
        for _ in range(size):
            received = time.monotonic_ns() - 1_000_000_000
            parts = [int(10 ** rng.uniform(2, 11)) for _ in range(3)]
            began, ended, finished = (received + sum(parts[: i + 1]) for i in range(3))
            part.append((int(rng.integers(1, 600)), received, began, ended, finished))
        stats.count_at_once(part)
        noted += part
    count = len(noted)
    spans = {
        "success": [f - r for _, r, _, _, f in noted],
        "compute_input": [b - r for _, r, b, _, _ in noted],
        "compute_infer": [e - b for _, _, b, e, _ in noted],
        "compute_output": [f - e for _, _, _, e, f in noted],
        "queue": [0] * count,
    }
    for name, ns in spans.items():
        counted = getattr(stats, name)
        assert (counted.count, counted.ns) == (count, sum(ns)), name
    sizes = [rows for rows, *_ in noted]
    assert (stats.inference_count, stats.execution_count, stats.closed) == (sum(sizes), count, {"at once": count})
    for found, bounds, values in (
        (stats.request_us, DURATION_BOUNDS_US, [v / 1e3 for v in spans["success"]]),
        (stats.infer_us, DURATION_BOUNDS_US, [v / 1e3 for v in spans["compute_infer"]]),
        (stats.queue_us, DURATION_BOUNDS_US, [0.0] * count),
        (stats.batch_rows, ROW_BOUNDS, [float(v) for v in sizes]),
    ):
        places = Counter(bisect_left(bounds, v) for v in values)
        assert found.counts == [places[i] for i in range(len(bounds) + 1)]
        np.testing.assert_allclose(found.sum, sum(values), rtol=1e-12)
    assert {rows: batch.infer.count for rows, batch in stats.batches.items()} == Counter(sizes)
    assert sum(batch.infer.ns for batch in stats.batches.values()) == sum(spans["compute_infer"])
    last_s = (max(noted[i][4] for i in (0, 5, 305)) - time.monotonic_ns()) / 1e9 + time.time()
    assert abs(stats.last_inference_ms / 1e3 - last_s) < 5


def test_a_request_that_ended_later_is_the_last_one() -> None:
    stats = ModelStats()
    now_ms = time.time_ns() // 1_000_000
    stats.last_inference_ms = now_ms
    earlier = time.monotonic_ns() - 10_000_000_000
    stats.count_at_once([(1, earlier, earlier, earlier, earlier)])
    assert stats.last_inference_ms == now_ms


def test_bounds_belong_to_the_bucket_below() -> None:
    one, all_of_them = Histogram(ROW_BOUNDS), Histogram(ROW_BOUNDS)
    values = np.array([0.5, *ROW_BOUNDS, 513, 1e9])
    for value in values:
        one.observe(float(value))
    all_of_them.observe_all(values)
    assert one.counts == all_of_them.counts
    assert one.count == len(values)
