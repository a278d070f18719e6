"""How far two results are apart, measured against each value's own range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from whet import dtypes

TOLERANCE = 1e-4
"""Largest accepted difference of whole models, as a fraction of the expected value's own range."""

ROUNDING_SCALE = 1e5
"""How many roundings a range counts for at least: within TOLERANCE, ten roundings always pass. A nearly constant value,
or one in half precision, cannot be right to 1e-4 of a smaller range."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One value's comparison. `error` is the largest absolute difference over the range (max - min) of the expected
    value; 0 for equal values, infinity where element type, shape, NaN positions or non-numeric content differ.
    `rounding` is the actual element type's epsilon times the largest magnitude; 0 where nothing is rounded."""

    name: str
    error: float
    max_abs: float
    value_range: float
    problem: str = ""
    rounding: float = 0.0

    def within(self, tolerance: float) -> bool:
        """Whether the difference is at most `tolerance` of the range, or of `ROUNDING_SCALE` roundings."""
        return self.error <= tolerance or self.max_abs <= tolerance * ROUNDING_SCALE * self.rounding


def compare_all(
    names: Sequence[str], actual: Sequence[Any], expected: Sequence[Any], *, same_type: bool = True
) -> list[Difference]:
    """Compare results one by one. `same_type=False` lets element types differ (a float64 reference)."""
    return [compare(n, a, e, same_type=same_type) for n, a, e in zip(names, actual, expected, strict=True)]


def compare(name: str, actual: Any, expected: Any, *, same_type: bool = True) -> Difference:
    """Compare two results: arrays, lists of results, dicts, or None."""
    if isinstance(expected, (list, tuple)):
        return _compare_items(name, actual, list(expected), same_type)
    if isinstance(expected, dict):
        if not isinstance(actual, dict) or list(actual) != list(expected):
            return _mismatch(name, "the maps have different keys")
        return _compare_items(name, list(actual.values()), list(expected.values()), same_type)
    if expected is None or actual is None:
        return Difference(name, 0.0, 0.0, 0.0) if expected is actual else _mismatch(name, "only one of both is empty")
    return _compare_arrays(name, np.asarray(actual), np.asarray(expected), same_type)


def _compare_items(name: str, actual: Any, expected: list[Any], same_type: bool) -> Difference:
    if not isinstance(actual, (list, tuple)) or len(actual) != len(expected):
        return _mismatch(name, "the sequences have different lengths")
    worst = Difference(name, 0.0, 0.0, 0.0)
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        found = compare(f"{name}[{index}]", a, e, same_type=same_type)
        if found.error > worst.error:
            worst = found
    return worst


def _compare_arrays(
    name: str, actual: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], same_type: bool
) -> Difference:
    if actual.shape != expected.shape:
        return _mismatch(name, f"shapes differ: {list(actual.shape)} and {list(expected.shape)}")
    if same_type and actual.dtype != expected.dtype:
        return _mismatch(name, f"element types differ: {actual.dtype} and {expected.dtype}")
    if expected.size == 0:
        return Difference(name, 0.0, 0.0, 0.0)
    if expected.dtype.kind in "OUS" or actual.dtype.kind in "OUS":
        return Difference(name, 0.0, 0.0, 0.0) if np.array_equal(actual, expected) else _mismatch(name, "texts differ")
    if expected.dtype.kind == "c":
        parts = [_compare_arrays(name, f(actual), f(expected), same_type) for f in (np.real, np.imag)]
        return parts[0] if parts[0].error >= parts[1].error else parts[1]
    a, e = actual.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(e)
    if not np.array_equal(np.isnan(a), np.isnan(e)) or not np.array_equal(
        a[~finite & ~np.isnan(e)], e[~finite & ~np.isnan(e)]
    ):
        return _mismatch(name, "NaN or infinite elements differ")
    if not finite.any():
        return Difference(name, 0.0, 0.0, 0.0)
    a, e = a[finite], e[finite]
    max_abs = float(np.max(np.abs(a - e)))
    span = float(e.max() - e.min())
    if max_abs == 0.0:
        return Difference(name, 0.0, 0.0, span)
    magnitude = float(np.max(np.abs(e)))
    # A constant value has no range of its own: its magnitude stands in.
    scale = span if span > 0.0 else max(magnitude, 1e-38)
    known = dtypes.from_numpy(actual.dtype)
    epsilon = float(ml_dtypes.finfo(actual.dtype).eps) if known is not None and known.is_float else 0.0  # type: ignore[no-untyped-call]
    return Difference(name, max_abs / scale, max_abs, span, rounding=epsilon * magnitude)


def _mismatch(name: str, problem: str) -> Difference:
    return Difference(name, float("inf"), float("inf"), 0.0, problem)
