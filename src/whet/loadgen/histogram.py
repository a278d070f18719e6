"""Counts of durations with a bounded relative error, which add up over windows and processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

# A duration in nanoseconds keeps its 11 leading bits: a bucket is at most 1/1024 of its value wide.
BITS = 11
HALF = 1 << (BITS - 1)


class Histogram:
    """Durations in seconds, kept as counts of logarithmic-linear buckets (as HdrHistogram has them)."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0
        self.total_s = 0.0
        self.max_s = 0.0
        self.min_s = float("inf")

    def add(self, durations_s: Sequence[float]) -> None:
        """Count these."""
        if not durations_s:
            return
        values = np.maximum(np.asarray(durations_s, np.float64), 0.0)
        # frexp gives the place of the leading bit exactly.
        nanoseconds = (values * 1e9).astype(np.int64)
        _, exponents = np.frexp(nanoseconds.astype(np.float64))
        shifts = np.maximum(exponents.astype(np.int64) - BITS, 0)
        keys, counts = np.unique(shifts * HALF + (nanoseconds >> shifts), return_counts=True)
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
            self._counts[key] = self._counts.get(key, 0) + count
        self.count += values.size
        self.total_s += float(values.sum())
        self.max_s = max(self.max_s, float(values.max()))
        self.min_s = min(self.min_s, float(values.min()))

    def merge(self, other: Histogram) -> None:
        """Count all that `other` holds."""
        for key, count in other._counts.items():
            self._counts[key] = self._counts.get(key, 0) + count
        self.count += other.count
        self.total_s += other.total_s
        self.max_s = max(self.max_s, other.max_s)
        self.min_s = min(self.min_s, other.min_s)

    @property
    def mean_s(self) -> float:
        """Exact mean; 0 of nothing."""
        return self.total_s / self.count if self.count else 0.0

    def percentile(self, percent: float) -> float:
        """The smallest duration that `percent` of them do not exceed, within 1/1024; 0 of nothing."""
        if not self.count:
            return 0.0
        rank = max(1, int(np.ceil(round(self.count * percent / 100, 6))))
        keys: npt.NDArray[np.int64] = np.array(sorted(self._counts), np.int64)
        upto = np.cumsum([self._counts[key] for key in keys.tolist()])
        key = int(keys[int(np.searchsorted(upto, rank))])
        shift = max(key // HALF - 1, 0)
        low = (key - shift * HALF) << shift
        middle = (low + ((1 << shift) >> 1)) / 1e9
        return min(max(middle, self.min_s), self.max_s)


def merged(parts: Iterable[Histogram]) -> Histogram:
    """One histogram of all that `parts` hold."""
    whole = Histogram()
    for part in parts:
        whole.merge(part)
    return whole
