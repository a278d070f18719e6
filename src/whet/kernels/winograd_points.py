"""The arithmetic of Winograd's convolutions: inputs, taps and products on their way to the points and back.

Along one axis m outputs of k taps take products at n = m + k - 1 points: 0, plus and minus each of `POINTS`, and
infinity. For n = 6 they are those that Barabasz et al., "Error Analysis and Improving the Accuracy of Winograd
Convolution for Deep Neural Networks" (2020), lead to; the customary 1 and 2 lose twice as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt
from typing import Any

import numpy as np

from whet.codegen.lang import Value, fma
from whet.kernels.gemm import aligned_empty

Array = np.ndarray[Any, Any]

POINTS: dict[int, tuple[float, ...]] = {4: (1.0,), 6: (sqrt(2), sqrt(0.5)), 8: (0.5, 1.0, 2.0)}
"""By n: the points' magnitudes beside 0 and infinity."""

TAPS = 3
"""Of a convolution 3x3, along each axis."""


def to_points(values: Sequence[Value]) -> list[Value]:
    """n numbers along one axis of the input, at the points 0, p, -p for each magnitude, infinity."""
    magnitudes = POINTS[len(values)]
    squares = [p * p for p in magnitudes]
    every = polynomial(squares)
    found = [combine(every, values[0::2])]
    for index, p in enumerate(magnitudes):
        others = polynomial(squares[:index] + squares[index + 1 :])
        even, odd = combine(others, values[2::2]), combine(others, values[1::2])
        found += [add_scaled(even, p, odd), add_scaled(even, -p, odd)]
    return [*found, combine(every, values[1::2])]


def from_points(values: Sequence[Value], m: int) -> list[Value]:
    """The m outputs along one axis, two at least, from the products at n points."""
    sums = [a + b for a, b in zip(values[1:-1:2], values[2:-1:2], strict=True)]
    differences = [a - b for a, b in zip(values[1:-1:2], values[2:-1:2], strict=True)]
    found = []
    for i in range(m):
        total = values[0] if i == 0 else values[-1] if i == m - 1 else None
        for p, value in zip(POINTS[len(values)], differences if i % 2 else sums, strict=True):
            total = value * p**i if total is None else add_scaled(total, p**i, value)
        assert total is not None
        found.append(total)
    return found


def taps_to_points(values: Sequence[Value], m: int) -> list[Value]:
    """3 taps along one axis at the points."""
    g = weight_matrix(m)
    first, middle, last = values
    found = [first * float(g[0, 0])]
    for index in range(len(POINTS[m + TAPS - 1])):
        row = [float(c) for c in g[1 + 2 * index]]
        even, odd = fma(last, last.like(row[2]), first * row[0]), middle * row[1]
        found += [even + odd, even - odd]
    return [*found, last]


def polynomial(roots: Sequence[float]) -> list[float]:
    """The coefficients, lowest first, of the product of (z - root)."""
    result = [1.0]
    for root in roots:
        shifted = [0.0, *result]
        result = [a - root * b for a, b in zip(shifted, [*result, 0.0], strict=True)]
    return [round(c, 12) for c in result]


def combine(coefficients: Sequence[float], values: Sequence[Value]) -> Value:
    """The sum of values times coefficients, of which the last is 1; values beyond them count for nothing."""
    total = values[len(coefficients) - 1]
    for c, value in zip(coefficients[:-1], values, strict=False):
        total = add_scaled(total, c, value)
    return total


def add_scaled(total: Value, factor: float, value: Value) -> Value:
    """total + factor * value."""
    if abs(factor - 1) < 1e-12:
        return total + value
    if abs(factor + 1) < 1e-12:
        return total - value
    return fma(value, value.like(factor), total)


def weight_matrix(m: int, taps: int = TAPS) -> Array:
    """G [n, taps]: the taps' way to points."""
    finite = [0.0, *(sign * p for p in POINTS[m + taps - 1] for sign in (1, -1))]
    rows = []
    for a in finite:
        scale = prod(a - b for b in finite if b != a)
        rows.append([a**j / scale for j in range(taps)])
    return np.array([*rows, [0.0] * (taps - 1) + [1.0]])


def pack_point_weights(weights: Array, g: Array, width: int) -> Array:
    """Weights [outputs, channels, 3, 3] taken to the points by `g` along both axes, as [panels, points, channels,
    width], zeros in the rest of the last panel; computed in float64."""
    taps = pack_tap_weights(weights, width, weights.shape[1])
    both = np.kron(g, g)
    panels, channels = taps.shape[0], taps.shape[1]
    packed = aligned_empty((panels, len(both), channels, width), weights.dtype)
    for panel in range(panels):
        rows = taps[panel].transpose(1, 0, 2).astype(np.float64).reshape(both.shape[1], -1)
        packed[panel] = (both @ rows).reshape(packed.shape[1:])
    return packed


def pack_line_weights(weights: Array, points: int, width: int) -> Array:
    """Weights [outputs, channels, taps] at the points, as [panels, points, channels, width], zeros in the rest of the
    last panel; computed in float64."""
    outputs, channels, taps = weights.shape
    g = weight_matrix(points - taps + 1, taps)
    packed = aligned_empty((-(-outputs // width), points, channels, width), weights.dtype)
    for panel in range(len(packed)):
        part = weights[panel * width : (panel + 1) * width].astype(np.float64)
        packed[panel, :, :, : len(part)] = np.einsum("nk,ock->nco", g, part, optimize=True)
        packed[panel, :, :, len(part) :] = 0
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
