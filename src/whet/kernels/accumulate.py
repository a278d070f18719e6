"""Running totals in registers: how a reduction combines elements, in an order that depends on extents alone.

Sums of float32 run in float32 over short blocks whose sums are added up in float64, so that their error does not grow
with the length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from whet.codegen.irtypes import integer_range
from whet.codegen.lang import (
    Function,
    Operand,
    Value,
    Variables,
    convert,
    greater_or_second,
    maximum,
    minimum,
    reduce,
    select,
)
from whet.dtypes import FLOAT32, FLOAT64, DType
from whet.kernels.walk import over_vectors, plus

SLOTS = 4
"""Accumulators that are filled in turn, so that one addition need not wait for the one before it."""
BLOCK_ROUNDS = 32
"""Additions to one float32 accumulator before it is emptied into float64."""
INFINITY = float("inf")


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How elements are combined: in `chunk`'s type within a block, in `total`'s between blocks.

    "top" is a maximum that may lose NaN, for callers that find out about it otherwise.
    """

    combine: Literal["sum", "prod", "max", "min", "top"]
    chunk: DType
    total: DType

    def join(self, a: Value, b: Value) -> Value:
        """Two partial results made one."""
        if self.combine == "max":
            return maximum(a, b)
        if self.combine == "min":
            return minimum(a, b)
        if self.combine == "top":
            return greater_or_second(a, b)
        return a + b if self.combine == "sum" else a * b

    def identity(self, dtype: DType) -> float | int:
        """The result over nothing."""
        if self.combine in ("sum", "prod"):
            return int(self.combine == "prod")
        low, high = (-INFINITY, INFINITY) if dtype.is_float else integer_range(dtype)
        return high if self.combine == "min" else low

    @property
    def widens(self) -> bool:
        """Whether blocks are short, for accuracy."""
        return self.chunk is not self.total


def summation(dtype: DType, known: int | None = None, lanes: int = 1) -> Arithmetic:
    """Sums of `dtype`; float32 with totals in float64, except over a `known` count of elements that fits one block."""
    if dtype is not FLOAT32 or (known is not None and known <= BLOCK_ROUNDS * SLOTS * lanes):
        return Arithmetic("sum", dtype, dtype)
    return Arithmetic("sum", dtype, FLOAT64)


def pairwise(values: Sequence[Value], join: Callable[[Value, Value], Value]) -> Value:
    """All values made one, neighbours first."""
    level = list(values)
    while len(level) > 1:
        joined = [join(a, b) for a, b in zip(level[::2], level[1::2], strict=False)]
        level = joined + level[len(level) & ~1 :]
    return level[0]


class Totals:
    """The totals of `groups` reductions, each a vector of `lanes`; `slots` accumulators a group in each block."""

    def __init__(self, k: Function, how: Arithmetic, lanes: int, groups: int = 1, slots: int = SLOTS) -> None:
        self.k = k
        self.how = how
        self.lanes = lanes
        self.slots = slots
        self._keys = [(group, slot) for group in range(groups) for slot in range(slots)]
        start = k.constant(how.total, how.identity(how.total), lanes)
        self._totals = k.variables(dict.fromkeys(range(groups), start))

    @property
    def values(self) -> list[Value]:
        """The totals of here and now, lane by lane."""
        return [total for _, total in self._totals.items()]

    def result(self) -> Value:
        """The first group's total over all lanes: one number."""
        return reduce(self.values[0], self.how.join)

    @contextmanager
    def block(self) -> Iterator[Variables[tuple[int, int], Value]]:
        """Accumulators by (group, slot) for a block's elements; emptied into the totals at its end."""
        k, how = self.k, self.how
        start = k.constant(how.chunk, how.identity(how.chunk), self.lanes)
        chunks = k.variables(dict.fromkeys(self._keys, start))
        yield chunks
        for group in self._totals:
            value = pairwise([chunks[group, slot] for slot in range(self.slots)], how.join)
            self._totals[group] = how.join(self._totals[group], convert(value, how.total))

    def _blocks(self, count: Operand, step: int, fold: Callable[[Operand, Operand], None]) -> None:
        if not self.how.widens or (isinstance(count, int) and count <= step):
            fold(0, count)
            return
        with self.k.loop(count, step=step) as start:
            fold(start, minimum(self.k.index(count) - start, step))

    def add_row(self, count: Operand, element: Callable[[Operand, Value | None], Value]) -> None:
        """Add elements 0 to `count`-1: element(i, mask) gives those from i on, one in each lane."""
        k, how = self.k, self.how
        identity = k.constant(how.chunk, how.identity(how.chunk), self.lanes)

        def fold(start: Operand, part: Operand) -> None:
            with self.block() as chunks:

                def body(slot: int, i: Operand, mask: Value | None) -> None:
                    value = element(plus(start, i), mask)
                    if mask is not None:
                        value = select(mask, value, identity)
                    chunks[0, slot] = how.join(chunks[0, slot], value)

                over_vectors(k, part, self.lanes, self.slots, body)

        self._blocks(count, BLOCK_ROUNDS * self.slots * self.lanes, fold)

    def add_columns(self, count: Operand, element: Callable[[int, Operand], Value]) -> None:
        """Add rows 0 to `count`-1 lane by lane: element(group, i) gives a group's lanes of row i."""
        k, how = self.k, self.how

        def fold(start: Operand, part: Operand) -> None:
            with self.block() as chunks:

                def body(slot: int, i: Operand, mask: Value | None) -> None:
                    for group in self._totals:
                        chunks[group, slot] = how.join(chunks[group, slot], element(group, plus(start, i)))

                # One lane is one row here, so that nothing is left to mask.
                over_vectors(k, part, 1, self.slots, body)

        self._blocks(count, BLOCK_ROUNDS * self.slots, fold)
