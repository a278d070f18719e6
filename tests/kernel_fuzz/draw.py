"""Random choices that a seed repeats: extents around the widths of vectors, layouts with gaps, values, types."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from whet.dtypes import (
    BFLOAT16,
    BOOL,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    INT8,
    INT16,
    INT32,
    INT64,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    DType,
)  # fmt: skip

Array = np.ndarray[Any, Any]
T = TypeVar("T")

FLOATS = (FLOAT32, FLOAT32, FLOAT32, FLOAT64, FLOAT16, BFLOAT16)
INTEGERS = (INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64)
ALL_TYPES = (*FLOATS, *INTEGERS, BOOL)
_EXTENTS = (1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9, 11, 13, 15, 16, 17, 19, 23, 31, 32, 33, 47, 63, 64, 65, 70, 127, 130)
_ROUNDING = {FLOAT16: 2e-3, BFLOAT16: 1.6e-2, FLOAT32: 3e-6, FLOAT64: 1e-11}


def tolerance(*dtypes: DType) -> float:
    """Some roundings of the coarsest of the float types; 0 without one."""
    return max((_ROUNDING.get(d, 0.0) for d in dtypes), default=0.0)


class Draw:
    """All randomness of one kernel or one call, from a seed."""

    def __init__(self, *seed: int) -> None:
        self.random = random.Random(hash(seed))
        self._seed = seed
        self._rng: np.random.Generator | None = None

    @property
    def rng(self) -> np.random.Generator:
        if self._rng is None:
            self._rng = np.random.default_rng(self._seed)
        return self._rng

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def one(self, choices: Sequence[T]) -> T:
        return self.random.choice(choices)

    def integer(self, low: int, high: int) -> int:
        """From low to high, both included."""
        return self.random.randint(low, high)

    def extent(self, most: int = 130, least: int = 0) -> int:
        """A length: now and then `least`, else mostly a short one or one near a multiple of a vector."""
        if self.chance(0.04):
            return least
        most = max(most, 1)
        if self.chance(0.2):
            return self.integer(max(least, 1), max(most, least, 1))
        chosen = self.one(_EXTENTS)
        return chosen if least <= chosen <= most else self.integer(max(least, 1), max(most, least, 1))

    def extents(self, rank: int, budget: int = 400, least: int = 0) -> tuple[int, ...]:
        """Extents of at most about `budget` elements; a random axis may be long."""
        result = [1] * rank
        for axis in self.random.sample(range(rank), rank):
            result[axis] = self.extent(min(budget, 130), least)
            budget = max(budget // max(result[axis], 1), 1)
        return tuple(result)

    def strides(
        self, extents: Sequence[int], unit: int | None = None, shared: bool = False, backwards: bool = True
    ) -> tuple[int, ...]:
        """Strides of a layout without overlaps: any order of the axes, gaps; `unit` names an axis of stride 1.

        `shared`: some strides may be 0 (the axis repeats). `backwards`: some may be negative.
        """
        rank = len(extents)
        order = list(range(rank))
        if self.chance(0.5):
            self.random.shuffle(order)
        if unit is not None:
            order.remove(unit)
            order.append(unit)
        gaps = self.chance(0.6)
        result = [0] * rank
        step = 1
        for place, axis in enumerate(reversed(order)):
            if (place or unit is None) and gaps and self.chance(0.5):
                step += self.integer(1, 5)
            result[axis] = step
            step = step * max(extents[axis], 1)
            if axis != unit:
                if shared and self.chance(0.15):
                    result[axis] = 0
                elif backwards and self.chance(0.1):
                    result[axis] = -result[axis]
        return tuple(result)

    def long(self) -> int:
        """A length past the blocks in which long rows are summed up."""
        return self.one((2047, 2048, 2049, 2300, 4095, 4100))

    def block(self, length: int) -> int:
        """Elements of a tile for an axis of `length`."""
        return self.one((1, 2, 3, 8, 16, 17, 64, max(length, 1), max(length, 1), max(length - 1, 1), 1000))

    def values(self, dtype: DType, extents: Sequence[int], special: bool = False) -> Array:
        """Numbers that `dtype` holds, small enough to be multiplied; with `special`, now and then NaN, infinities and
        the type's extremes."""
        shape = tuple(extents)
        if dtype is BOOL:
            return self.rng.random(shape) < 0.4
        if dtype.is_float:
            found = self.rng.standard_normal(shape).astype(np.float32).astype(dtype.numpy)
            if special and self.chance(0.2) and found.size:
                flat = found.reshape(-1)
                for _ in range(self.integer(1, 3)):
                    flat[self.integer(0, flat.size - 1)] = self.one((np.nan, np.inf, -np.inf, 0.0, -0.0))
            return found
        low, high = (0, 100) if dtype.kind == "uint" else (-100, 100)
        found = self.rng.integers(low, high, shape).astype(dtype.numpy)
        if special and self.chance(0.2) and found.size:
            info = np.iinfo(dtype.numpy)
            found.reshape(-1)[self.integer(0, found.size - 1)] = self.one((info.min, info.max))
        return found
