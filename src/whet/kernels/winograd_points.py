"""The arithmetic of Winograd's convolutions: inputs, taps and products on their way to the points and back.

F(m x m, 3 x 3) multiplies at n x n points, n = m + 2: 0, plus and minus each of `POINTS`, and infinity. For m = 4
they are those that Barabasz et al., "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural
Networks" (2020), lead to; the customary 1 and 2 lose twice as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt
from typing import Any

import numpy as np

from whet.codegen.lang import Value, fma
from whet.kernels.gemm import aligned_empty

Array = np.ndarray[Any, Any]

POINTS: dict[int, tuple[float, ...]] = {2: (1.0,), 4: (sqrt(2), sqrt(0.5))}
"""By m: the points' magnitudes beside 0 and infinity."""

TAPS = 3


def to_points(values: Sequence[Value], m: int) -> list[Value]:
    """n numbers along one axis of the input, at the points 0, p, -p for each magnitude, infinity."""
    squares = [p * p for p in POINTS[m]]
    every = _polynomial(squares)
    found = [_combine(every, values[0::2])]
    for index, p in enumerate(POINTS[m]):
        others = _polynomial(squares[:index] + squares[index + 1 :])
        even, odd = _combine(others, values[2::2]), _combine(others, values[1::2])
        found += [_add_scaled(even, p, odd), _add_scaled(even, -p, odd)]
    return [*found, _combine(every, values[1::2])]


def from_points(values: Sequence[Value], m: int) -> list[Value]:
    """The m outputs along one axis from the products at n points."""
    sums = [a + b for a, b in zip(values[1:-1:2], values[2:-1:2], strict=True)]
    differences = [a - b for a, b in zip(values[1:-1:2], values[2:-1:2], strict=True)]
    found = []
    for i in range(m):
        total = values[0] if i == 0 else values[-1] if i == m - 1 else None
        for p, value in zip(POINTS[m], differences if i % 2 else sums, strict=True):
            total = value * p**i if total is None else _add_scaled(total, p**i, value)
        assert total is not None
        found.append(total)
    return found


def taps_to_points(values: Sequence[Value], m: int) -> list[Value]:
    """3 taps along one axis at the points."""
    g = weight_matrix(m)
    first, middle, last = values
    found = [first * float(g[0, 0])]
    for index in range(len(POINTS[m])):
        row = [float(c) for c in g[1 + 2 * index]]
        even, odd = fma(last, last.like(row[2]), first * row[0]), middle * row[1]
        found += [even + odd, even - odd]
    return [*found, last]


def _polynomial(roots: Sequence[float]) -> list[float]:
    """The coefficients, lowest first, of the product of (z - root)."""
    result = [1.0]
    for root in roots:
        shifted = [0.0, *result]
        result = [a - root * b for a, b in zip(shifted, [*result, 0.0], strict=True)]
    return [round(c, 12) for c in result]


def _combine(coefficients: Sequence[float], values: Sequence[Value]) -> Value:
    """The sum of values times coefficients, of which the last is 1; values beyond them count for nothing."""
    total = values[len(coefficients) - 1]
    for c, value in zip(coefficients[:-1], values, strict=False):
        total = _add_scaled(total, c, value)
    return total


def _add_scaled(total: Value, factor: float, value: Value) -> Value:
    """total + factor * value."""
    if abs(factor - 1) < 1e-12:
        return total + value
    if abs(factor + 1) < 1e-12:
        return total - value
    return fma(value, value.like(factor), total)


def weight_matrix(m: int) -> Array:
    """G [n, 3]: the taps' way to points."""
    finite = [0.0, *(sign * p for p in POINTS[m] for sign in (1, -1))]
    rows = []
    for a in finite:
        scale = prod(a - b for b in finite if b != a)
        rows.append([a**j / scale for j in range(TAPS)])
    return np.array([*rows, [0.0, 0.0, 1.0]])


def pack_point_weights(weights: Array, m: int, width: int) -> Array:
    """Weights [outputs, channels, 3, 3] at the points, as [panels, points, channels, width], zeros in the rest of the
    last panel; computed in float64."""
    taps = pack_tap_weights(weights, width, weights.shape[1])
    g = weight_matrix(m)
    both = np.kron(g, g)
    panels, channels = taps.shape[0], taps.shape[1]
    packed = aligned_empty((panels, len(both), channels, width), weights.dtype)
    for panel in range(panels):
        rows = taps[panel].transpose(1, 0, 2).astype(np.float64).reshape(both.shape[1], -1)
        packed[panel] = (both @ rows).reshape(packed.shape[1:])
    return packed


def pack_tap_weights(weights: Array, width: int, depth: int) -> Array:
    """Weights [outputs, channels, 3, 3] as [panels, channels, 9, width], zeros where there are no more outputs in a
    panel, or channels in a part of `depth`."""
    outputs, channels = weights.shape[:2]
    shape = (-(-outputs // width), -(-channels // depth) * depth, TAPS * TAPS, width)
    packed = aligned_empty(shape, weights.dtype)
    flat = weights.reshape(outputs, channels, -1)
    for panel in range(shape[0]):
        part = flat[panel * width : (panel + 1) * width]
        packed[panel, channels:] = 0
        packed[panel, :channels, :, : len(part)] = part.transpose(1, 2, 0)
        packed[panel, :, :, len(part) :] = 0
    return packed
