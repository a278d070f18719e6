"""One axis of a Winograd convolution 3x3: how many inputs and points a tile has, and the ways between them.

With stride 2 an output is a sum over two neighbouring even inputs and the odd one between them. The even ones are a
convolution of two taps, which takes m + 1 points for m outputs; the odd ones are multiplied as they are. That makes
2m + 1 products where nine taps in two dimensions take 3m, and the odd products share one weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from whet.codegen.lang import Value, fma, minimum
from whet.kernels.winograd_points import (
    TAPS,
    Array,
    add_scaled,
    combine,
    from_points,
    polynomial,
    taps_to_points,
    to_points,
    weight_matrix,
)

EVEN_POINTS: dict[int, tuple[float, ...]] = {2: (0.0, 1.0), 4: (0.0, 1.0, -0.5, -2.0)}
"""By m, with stride 2: the points beside infinity of the even inputs, found by their errors."""


@dataclass(frozen=True, slots=True)
class Axis:
    """`m` outputs of a tile, `stride` apart in the input."""

    m: int
    stride: int = 1

    @property
    def reach(self) -> int:
        """Inputs under a tile, which is also how many products there are."""
        return (self.m - 1) * self.stride + TAPS

    @property
    def weights(self) -> int:
        """Different weights among the products'."""
        return self.m + 2

    def weight(self, point: Value) -> Value:
        """Which weight a product takes."""
        return minimum(point, self.weights - 1) if self.stride == 2 else point

    def inputs(self, values: Sequence[Value]) -> list[Value]:
        """A tile's inputs at the points."""
        if self.stride == 1:
            return to_points(values)
        finite, even = EVEN_POINTS[self.m], values[0::2]
        found = [combine(polynomial([*finite[:i], *finite[i + 1 :]]), even) for i in range(len(finite))]
        return [*found, combine(polynomial(finite), even), *values[1::2]]

    def outputs(self, values: Sequence[Value]) -> list[Value]:
        """A tile's outputs from the products."""
        if self.stride == 1:
            return from_points(values, self.m)
        finite, odd = EVEN_POINTS[self.m], values[self.m + 1 :]
        found = []
        for i in range(self.m):
            total = odd[i] + values[self.m] if i == self.m - 1 else odd[i]
            for point, value in zip(finite, values, strict=False):
                total = add_scaled(total, point**i, value) if point or i == 0 else total
            found.append(total)
        return found

    def taps(self, values: Sequence[Value]) -> list[Value]:
        """3 taps as the different weights."""
        if self.stride == 1:
            return taps_to_points(values, self.m)
        first, middle, last = values
        found = []
        for row in self.matrix()[: len(EVEN_POINTS[self.m])]:
            total = first * float(row[0])
            found.append(total if row[2] == 0 else fma(last, last.like(float(row[2])), total))
        return [*found, last, middle]

    def tap(self, weight: int, values: Sequence[Value]) -> Value:
        """3 taps as one of the different weights."""
        terms = [(float(f), v) for f, v in zip(self.matrix()[weight], values, strict=True) if f != 0]
        factor, value = terms[0]
        total = value if factor == 1 else value * factor
        for factor, value in terms[1:]:
            total = add_scaled(total, factor, value)
        return total

    def matrix(self) -> Array:
        """G [weights, 3]: what `taps` does."""
        if self.stride == 1:
            return weight_matrix(self.m)
        rows = []
        finite = EVEN_POINTS[self.m]
        for a in finite:
            scale = prod(a - b for b in finite if b != a)
            rows.append([1 / scale, 0.0, a / scale])
        return np.array([*rows, [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
